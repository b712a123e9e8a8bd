"""A weight as a file packs it, and a Linear that keeps it so: it becomes numbers only while the layer is used.

A `Packing` says how some tensors mean one weight and holds none of them, so that whoever holds the tensors may move or
stream them. Its two kinds are `gguf_blocks.GgufPacking` and `comfy_quantised.ComfyPacking`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

# Weights that are unpacked at a time, so that what they take in float32 beside the result stays small. On a CPU they
# also stay in its cache, which was fastest; an accelerator is kept busy by more.
CPU_CHUNK, ACCELERATOR_CHUNK = 2**20, 2**23


@dataclass(frozen=True)
class Packing(ABC):
    """How tensors mean the weight `shape`, (out, in) of a Linear. format: its name, for example Q4_K.

    num_bytes: of the tensors together.
    """

    format: str
    shape: tuple[int, ...]
    num_bytes: int

    def describe(self) -> str:
        """The format in a few words."""
        return self.format

    @abstractmethod
    def unpack(self, tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """The weight, of `shape` in `dtype`, a fresh tensor on the device of `tensors`; computed in float32."""


@dataclass(frozen=True)
class PackedTensor:
    """A packed weight with its tensors, all on one device."""

    packing: Packing
    tensors: tuple[torch.Tensor, ...]

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in `dtype`."""
        return self.packing.unpack(self.tensors, dtype)


def chunks(count: int, size: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `count` rows of `size` weights, in pieces that suit the device."""
    step = max(1, (CPU_CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK) // size)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


class PackedLinear(nn.Module):
    """x -> x W^T + b, (..., in) -> (..., out), with a packed W that is unpacked in x's dtype at every call.

    The packed tensors are buffers: `.to(device)` and diffusers' offloading move them, and they do not make the dtype
    of the model theirs. They are there after `store`.
    """

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bias = bias
        self.packing: Packing | None = None

    def store(self, packed: PackedTensor) -> None:
        """Keep the tensors of a weight (out, in). They stay on their device."""
        expected = (self.out_features, self.in_features)
        assert packed.packing.shape == expected, f"weight of shape {packed.packing.shape}, expected {expected}"
        self.packing = packed.packing
        for index, tensor in enumerate(packed.tensors):
            self.register_buffer(f"packed_{index}", tensor, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.packing is not None, "the weight was never stored: load the model before using it"
        weight = self.packing.unpack(tuple(self.buffers()), x.dtype)  # (out, in)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))  # (..., out)

    def extra_repr(self) -> str:
        form = None if self.packing is None else self.packing.format
        return f"in_features={self.in_features}, out_features={self.out_features}, format={form}"
