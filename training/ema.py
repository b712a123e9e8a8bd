"""Exponential moving average of weights, in float32."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Ema:
    """shadow <- d shadow + (1-d) weight, with d = min(decay, (1+step)/(10+step)) so that the start is forgotten."""

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in named_parameters}

    @torch.no_grad()
    def update(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = dict(named_parameters)
        for name, shadow in self.shadow.items():
            shadow.lerp_(weights[name].detach(), 1 - decay)
