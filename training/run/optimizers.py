"""The optimisers: AdamW in three places (on the device in float32, in 8 bits there, or in float32 on the CPU), Prodigy,
Adafactor.

Each keeps its state in tensors by parameter name, which is what a checkpoint stores.
Sources: Mishchenko and Defazio 2023, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner" (package prodigyopt);
Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (torch.optim.Adafactor).
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from teasr_core.errors import ConfigError

PRODIGY_GROUP = ("d", "d_max", "d_numerator", "k")  # the estimated rate, what it is computed from, the steps


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
        self.kind = settings.kind
        self.inner = _optimizer(list(self.stepped.values()), settings)

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
        """`{key}.{parameter}` -> tensor, and `group.{key}` of what all share; nearly empty before the first step."""
        group = self.inner.param_groups[0]
        tensors = {f"group.{key}": torch.tensor(group[key], dtype=torch.float64) for key in self._group_keys}
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
            if key == "group":
                if name in self._group_keys:
                    self.inner.param_groups[0][name] = type(self.inner.param_groups[0][name])(tensor.item())
            else:
                found.setdefault(name, {})[key] = tensor
        for name, parameter in self.stepped.items():
            state: dict[str, Any] = found.get(name, {})
            master = state.pop("master", None)
            if self.offloaded:  # parameters were loaded before
                with torch.no_grad():
                    parameter.copy_(_master(self.parameters[name]) if master is None else master)
            if not state:
                continue
            if self.kind in ("adamw-8bit", "prodigy"):  # they count steps in a Python int
                state["step"] = int(state["step"])
            self.inner.state[parameter] = {
                k: v.to(parameter.device) if torch.is_tensor(v) and k != "step" else v for k, v in state.items()
            }

    @property
    def _group_keys(self) -> tuple[str, ...]:
        """Numbers of the parameter group that change from step to step."""
        return PRODIGY_GROUP if self.kind == "prodigy" else ()

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for name, master in self.stepped.items():
            self.parameters[name].copy_(master)


def _optimizer(parameters: list[torch.nn.Parameter], settings: OptimSettings) -> torch.optim.Optimizer:
    """The inner optimiser; its learning rate is set before each step."""
    if settings.kind == "adafactor":
        # Its second eps is the least size by which a weight scales its step: with 1 the rate means what AdamW's does,
        # and a LoRA's B, which starts at zero, moves at once. betas and settings.eps have no meaning here.
        return torch.optim.Adafactor(parameters, lr=0.0, eps=(None, 1.0), weight_decay=settings.weight_decay)
    options: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
    if settings.kind == "adamw-8bit":
        return _class_of("bitsandbytes.optim", "AdamW8bit", settings.kind)(parameters, lr=0.0, **options)
    if settings.kind == "prodigy":
        prodigy = _class_of("prodigyopt", "Prodigy", settings.kind)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that weight decay is decoupled
            return prodigy(parameters, use_bias_correction=True, safeguard_warmup=True, **options)
    return torch.optim.AdamW(parameters, lr=0.0, foreach=True, **options)


def _master(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.detach().to("cpu", torch.float32, copy=True)


def _class_of(module: str, name: str, kind: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(
            f"optim.kind is '{kind}' and the package {package} is not installed: "
            f"pip install {package}, or set optim.kind to adamw or adamw-cpu"
        ) from None
