"""One process or several, through accelerate: which device, which share of the work, and the mean of the gradients.

A step has several forwards and backwards, for which DistributedDataParallel's hooks are not made. So the gradients are
averaged once, when all of them are there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from teasr_core.device import choose_device

LAUNCHED = {"WORLD_SIZE", "ACCELERATE_USE_CPU"}  # variables that `accelerate launch` and torchrun set


class Processes:
    """This process among those that a launcher has started; without a launcher, it is the only one.

    device: "auto" (an accelerator where there is one) or "cpu".
    """

    def __init__(self, device: str = "auto") -> None:
        self.count, self.index, self.is_main = 1, 0, True
        if not LAUNCHED & os.environ.keys():  # then a run does without accelerate
            self.device = choose_device(device)
            if self.device.type != "cpu":
                self.device = torch.device(self.device.type, torch.accelerator.current_device_index())
            return
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available())
        self.device = self._accelerator.device
        self.count, self.index = self._accelerator.num_processes, self._accelerator.process_index
        self.is_main = self._accelerator.is_main_process

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every `.grad` by its mean over the processes.

        A gradient that one process lacks counts as zero; a parameter that has none anywhere is left without.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        has_gradient = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        holders: Any = self._accelerator.reduce(has_gradient, "sum")  # (number of parameters,)
        for parameter, holder_count in zip(parameters, holders.tolist(), strict=True):
            if holder_count:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._accelerator.reduce(grad, "mean")  # type: ignore[assignment]

    def any(self, flag: bool) -> bool:
        """True in every process if it is in one: all of them stop at the same step."""
        if self.count == 1:
            return flag
        votes = self._accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum")
        return float(votes) > 0  # type: ignore[arg-type]
