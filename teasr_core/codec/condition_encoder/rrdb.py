"""A residual-in-residual dense network as the condition encoder, from the latent to pixels and back to a latent.

The network is RRDBNet of ESRGAN and Real-ESRGAN (Wang et al., arXiv 1809.00219 and 2107.10833) on the grid of the
codec's 4 px blocks: one block is to it what a pixel of the low-quality picture is to Real-ESRGAN's x4 network, so that
its weights can start from those (docs/training/target_pictures.md). At smaller scales sharp pictures are encoded on a
finer grid (`RrdbEncoder.finer`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...image.fine_detail import fine_detail
from ...image.strips import strips_with_reach
from ..block_dct import BLOCK, DCT_CHANNELS
from . import winograd
from .encoder import ConditionEncoder
from .winograd import FeatureStack

SLOPE = 0.2  # of the leaky ReLU
SHARE = 0.2  # of each residual branch
# The layers after the trunk have up to 16 times as many pixels as the latent, so they work in strips.
HEAD_REACH = 2  # rows of the latent that they see on each side
HEAD_STRIP = 1 << 14  # pixels of the latent in a strip
# `fine_detail` of pictures that are encoded on their own grid, and of those that are encoded on one twice as fine.
SOFT_TO_SHARP = (0.02, 0.2)


class PlainStack:
    """Features (B, C, H, W), one above another, for PyTorch's own convolutions: what `FeatureStack` is on phases."""

    def __init__(self) -> None:
        self.features: list[torch.Tensor] = []

    def push(self, features: torch.Tensor) -> None:
        self.features.append(features)

    def clear(self) -> None:
        self.features.clear()

    def convolve(self, conv: nn.Conv2d, slope: float) -> torch.Tensor:
        """What `conv` and a leaky ReLU make of all that the stack holds; a slope of 1 changes nothing."""
        results = conv(torch.cat(self.features, dim=1))
        return results if slope == 1 else F.leaky_relu_(results, slope)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all features before it, and a residual branch of weight 0.2."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        outputs = (*[growth] * 4, features)
        self.convs: Any = nn.ModuleList(  # torch types a ModuleList's items too loosely to be of use
            [nn.Conv2d(features + i * growth, out, 3, padding=1) for i, out in enumerate(outputs)]
        )

    def forward(self, x: torch.Tensor, stack: PlainStack | FeatureStack) -> torch.Tensor:
        """x: features, or phases of one picture's. stack: an empty one for them, which is left empty."""
        stack.push(x)
        for conv in self.convs[:-1]:
            stack.push(stack.convolve(conv, SLOPE))
        branch = stack.convolve(self.convs[-1], slope=1)
        stack.clear()
        return branch.mul_(SHARE).add_(x)


class RrdbBlock(nn.Module):
    """Three dense blocks with a residual branch of weight 0.2 around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.dense: Any = nn.ModuleList([DenseBlock(features, growth) for _ in range(3)])

    def forward(self, x: torch.Tensor, stack: PlainStack | FeatureStack) -> torch.Tensor:
        """As `DenseBlock.forward`."""
        h = x
        for dense in self.dense:
            h = dense(h, stack)
        return h.mul_(SHARE).add_(x)


class RrdbEncoder(ConditionEncoder):
    """`blocks` blocks on the latent's grid, two nearest-neighbour doublings to pixels, and the block DCT.

    A 5x5 convolution of the latent itself is added to the result: it carries what the first convolution's few features
    lose at small scale factors.
    """

    kind = "rrdb"
    tile = 288
    overlap = 32

    def __init__(self, blocks: int, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        if not (0 < blocks <= 64 and 0 < width <= 1024 and 0 < growth <= 1024):
            raise ValueError(f"condition encoder of {blocks} blocks, {width} features and a growth of {growth}")
        self.blocks, self.width, self.growth = blocks, width, growth
        self.first = nn.Conv2d(DCT_CHANNELS, width, 3, padding=1)
        self.body: Any = nn.ModuleList([RrdbBlock(width, growth) for _ in range(blocks)])
        self.trunk = nn.Conv2d(width, width, 3, padding=1)
        self.up1 = nn.Conv2d(width, width, 3, padding=1)
        self.up2 = nn.Conv2d(width, width, 3, padding=1)
        self.detail = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.skip = nn.Conv2d(DCT_CHANNELS, DCT_CHANNELS, 5, padding=2, bias=False)
        nn.init.zeros_(self.skip.weight)

    def forward(self, z_lq: torch.Tensor) -> torch.Tensor:
        return self._latent_of(self.picture(z_lq)) + self.skip(z_lq)

    def finer(self, image: torch.Tensor, scale: float) -> float:
        """The network is best where a block holds one pixel of the low-quality picture, as at a scale of 4.

        Smaller scales are encoded as if they were 4, but no more than twice as fine, and only as far as the picture has
        detail as fine as that: a soft one is restored better on its own grid (docs/log/encoder.md).
        """
        finest = min(2.0, BLOCK / scale)
        if finest <= 1:
            return 1.0
        soft, sharp = SOFT_TO_SHARP
        sharpness = math.log(max(fine_detail(image), soft) / soft) / math.log(sharp / soft)
        return min(finest, 1 + sharpness)

    def picture(self, z_lq: torch.Tensor) -> torch.Tensor:
        """(B, 48, h, w) -> the network's own picture (B, 3, 4h, 4w) around [0, 1], not clamped, without the skip."""
        first = h = self.first(z_lq.contiguous(memory_format=torch.channels_last))  # (B, width, h, w)
        h = self._body_on_phases(h) if winograd.pays(h) else self._body(h, PlainStack())
        h = first + self.trunk(h)
        strips = strips_with_reach(h, HEAD_REACH, HEAD_STRIP)
        pictures = [self._head(h[:, :, seen])[:, :, own.start * BLOCK : own.stop * BLOCK] for _, seen, own in strips]
        return torch.cat(pictures, dim=2)

    def _head(self, h: torch.Tensor) -> torch.Tensor:
        """(B, width, h, w) -> (B, 3, 4h, 4w)."""
        for up in (self.up1, self.up2):
            h = F.leaky_relu_(up(F.interpolate(h, scale_factor=2.0, mode="nearest")), SLOPE)
        return self.last(F.leaky_relu_(self.detail(h), SLOPE))

    def _body(self, h: torch.Tensor, stack: PlainStack | FeatureStack) -> torch.Tensor:
        for block in self.body:
            h = block(h, stack)
        return h

    def _body_on_phases(self, h: torch.Tensor) -> torch.Tensor:
        height, width = h.shape[2:]
        stack = FeatureStack(height, width, self.width + 4 * self.growth)
        result = torch.empty_like(h)
        for k, features in enumerate(h):
            result[k] = winograd.from_phases(self._body(winograd.to_phases(features), stack), height, width)
        return result

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "blocks": self.blocks, "width": self.width, "growth": self.growth}

    def description(self) -> str:
        return f"{self.blocks} residual-in-residual dense blocks of {self.width} features"
