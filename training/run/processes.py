"""One process or several, through accelerate: which device, which share of the work, and the mean of the gradients.

The objective runs several forwards and backwards a step, which DistributedDataParallel's hooks are not made for: the
adapter's gradients are averaged once, when the step is complete.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Processes:
    """device: "auto" (what accelerate finds) or "cpu"."""

    def __init__(self, device: str = "auto") -> None:
        from accelerate import Accelerator

        use_cpu = device == "cpu" or not torch.accelerator.is_available()
        self._accelerator = Accelerator(cpu=use_cpu)
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index
        self.is_main: bool = self._accelerator.is_main_process

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every `.grad` by its mean over the processes; a parameter without one counts as zero."""
        if self.count == 1:
            return
        for parameter in parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._accelerator.reduce(grad, "mean")  # type: ignore[assignment]

    def any(self, flag: bool) -> bool:
        """True in every process if it is in one: all of them stop at the same step."""
        if self.count == 1:
            return flag
        votes = self._accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum")
        return float(votes) > 0  # type: ignore[arg-type]
