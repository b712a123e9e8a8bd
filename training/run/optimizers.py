"""AdamW in three places: on the device in float32, in 8 bits there, or in float32 on the CPU.

Each keeps its state in tensors by parameter name, which is what a checkpoint stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from teasr_core.errors import ConfigError


class OptimSettings(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


class NamedOptimizer:
    """An optimiser over named parameters whose state can be saved and loaded as named tensors.

    `adamw-cpu` keeps float32 masters and both moments in host memory: 12 bytes a parameter leave the device, each step
    costs one copy down and one up.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], settings: OptimSettings) -> None:
        self.parameters = dict(parameters)
        self.offloaded = settings.kind == "adamw-cpu"
        self.stepped = self.parameters
        if self.offloaded:
            self.stepped = {n: torch.nn.Parameter(_master(p)) for n, p in self.parameters.items()}
        options: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
        if settings.kind == "adamw-8bit":
            self.inner: torch.optim.Optimizer = _adamw_8bit()(list(self.stepped.values()), lr=0.0, **options)
        else:
            self.inner = torch.optim.AdamW(list(self.stepped.values()), lr=0.0, foreach=True, **options)

    def step(self, lr: float) -> None:
        """Update every parameter from its `.grad` at this learning rate."""
        for group in self.inner.param_groups:
            group["lr"] = lr
        if self.offloaded:
            for name, master in self.stepped.items():
                grad = self.parameters[name].grad
                master.grad = None if grad is None else grad.to("cpu", torch.float32)
        self.inner.step()
        if self.offloaded:
            self._copy_masters()

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """`{key}.{parameter}` -> tensor; empty before the first step."""
        tensors = {}
        for name, parameter in self.stepped.items():
            state = self.inner.state.get(parameter, {})
            for key, value in state.items():
                value = value if torch.is_tensor(value) else torch.tensor(float(value))
                # bitsandbytes gives all parameters one quantisation map; a safetensors file shares nothing
                tensors[f"{key}.{name}"] = value.clone() if key.startswith("qmap") else value
            if self.offloaded and state:
                tensors[f"master.{name}"] = parameter.detach()
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state_tensors`; parameters it does not name start afresh."""
        found: dict[str, dict[str, torch.Tensor]] = {}
        for full_name, tensor in tensors.items():
            key, _, name = full_name.partition(".")
            found.setdefault(name, {})[key] = tensor
        for name, parameter in self.stepped.items():
            state: dict[str, Any] = found.get(name, {})
            master = state.pop("master", None)
            if self.offloaded:  # parameters were loaded before
                with torch.no_grad():
                    parameter.copy_(_master(self.parameters[name]) if master is None else master)
            if not state:
                continue
            if "state1" in state:  # bitsandbytes counts steps in a Python int
                state["step"] = int(state["step"])
            self.inner.state[parameter] = {
                k: v.to(parameter.device) if torch.is_tensor(v) and k != "step" else v for k, v in state.items()
            }

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for name, master in self.stepped.items():
            self.parameters[name].copy_(master)


def _master(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.detach().to("cpu", torch.float32, copy=True)


def _adamw_8bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ConfigError(
            "optim.kind is 'adamw-8bit' and the package bitsandbytes is not installed: "
            "pip install bitsandbytes, or set optim.kind to adamw or adamw-cpu"
        ) from None
    return AdamW8bit
