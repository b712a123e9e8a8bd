"""A condition encoder from its configuration and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..block_dct import DCT_CHANNELS
from .encoder import ConditionEncoder
from .residual import ResidualEncoder
from .rrdb import RrdbEncoder


def make_condition_encoder(config: Mapping[str, Any]) -> ConditionEncoder:
    """An untrained encoder from its `config()`. Raises KeyError, TypeError or ValueError for an unknown one."""
    kind = config.get("kind", ResidualEncoder.kind)
    if kind == ResidualEncoder.kind:
        return ResidualEncoder(DCT_CHANNELS, int(config["width"]), int(config["blocks"]))
    if kind == RrdbEncoder.kind:
        return RrdbEncoder(int(config["blocks"]), int(config["width"]), int(config["growth"]))
    raise ValueError(f"condition encoder of the kind {kind!r}, known are {ResidualEncoder.kind}, {RrdbEncoder.kind}")


def load_condition_encoder(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> ConditionEncoder:
    """Build a frozen float32 encoder from its `config()` and its state dict.

    Raises KeyError, TypeError, ValueError or RuntimeError where they do not fit together.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"its configuration is {config!r}")
    with torch.device("meta"):  # drawing weights would use the global random state
        encoder = make_condition_encoder(config)
    encoder.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder.eval().requires_grad_(False)
