"""Exponential moving average of weights, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class Ema:
    """shadow <- d shadow + (1-d) weight, with d = min(decay, (1+step)/(10+step)) so that the start is forgotten."""

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in named_parameters}

    @torch.no_grad()
    def update(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = dict(named_parameters)
        for name, shadow in self.shadow.items():
            shadow.lerp_(weights[name].detach().to(shadow), 1 - decay)

    @contextmanager
    def swapped_in(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> Iterator[None]:
        """Inside the block the parameters hold the averaged weights; afterwards their own again, bit for bit."""
        weights = dict(named_parameters)
        own = {name: p.detach().clone() for name, p in weights.items()}
        try:
            _fill(weights, self.shadow)
            yield
        finally:
            _fill(weights, own)


@torch.no_grad()
def _fill(weights: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in weights.items():
        parameter.copy_(values[name])
