"""The part of a picture that is restored: its soft edge, where it lies in the latent, and how it is put back.

A region is drawn as a mask, 1 = restore. Its edge is soft towards the inside alone, so that every pixel outside the
mask is the resized input to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import InputError
from .flat_areas import pooled
from .resize import check_image
from .target_size import TargetSize

SOFT_PX = 16  # the edge rises over so many pixels of the result, and over fewer in a thin region
FLOOR = 0.05  # less than this is outside: the noise that a JPEG leaves around a drawn mask
# The colour fix reads so far around a pixel (31 px for the low band, 25 px for flat areas).
REACH_PX = 32

Box = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Region:
    """weight (B or 1, 1, H, W) float32 at the size of the result: 0 where the input stays, 1 where it is replaced."""

    weight: torch.Tensor

    @property
    def is_empty(self) -> bool:
        return not bool(self.weight.any())

    def of_image(self, k: int) -> Region:
        """The region of image k of a batch."""
        return Region(self.weight[k : k + 1]) if len(self.weight) > 1 else self

    def in_latent(self, height: int, width: int, downscale: int) -> torch.Tensor:
        """(height, width) bool: the latent pixels under the region, of the first image. Padding is outside it."""
        inside = (self.weight[:1] > 0).float()  # (1, 1, H, W)
        size = inside.shape[-2:]
        padded = F.pad(inside, (0, downscale * width - size[1], 0, downscale * height - size[0]))
        return F.max_pool2d(padded, downscale)[0, 0] > 0

    def box(self) -> Box:
        """(rows, columns) around the first image's region and what the colour fix reads; empty where nothing is in."""
        inside = self.weight[0, 0] > 0  # (H, W)
        return _span(inside.any(dim=1)), _span(inside.any(dim=0))


def make_region(mask: torch.Tensor, picture: TargetSize, size: TargetSize) -> Region:
    """The region that `mask` draws on a picture which is resized to `size`.

    mask: (B, 1, h, w) float32 in [0, 1], 1 = restore, drawn on the picture or on the result, at any resolution.
    Raises InputError for another aspect ratio than theirs. A mask of one value suits every picture.
    """
    check_image(mask, "region", channels=1)
    mask = mask.cpu()
    mask = torch.where(mask < FLOOR, torch.zeros_like(mask), mask.clamp(max=1.0))  # (B, 1, h, w)
    if bool((mask == mask.flatten()[0]).all()):
        return Region(mask.flatten()[0].expand(1, 1, size.height, size.width))
    height, width = mask.shape[-2:]
    if not any(_same_aspect(width, height, other) for other in (picture, size)):
        raise InputError(
            f"the region is {width} x {height} pixels, the picture {picture.width} x {picture.height}: expected a mask "
            "that was drawn on this picture, so give one of the same aspect ratio"
        )
    scale = max(size.width / width, size.height / height)
    if scale < 0.5:  # a mask much finer than the result would take long, and its edge could not be seen
        height, width, scale = 2 * size.height, 2 * size.width, 0.5
        mask = F.interpolate(mask, (height, width), mode="area")
        mask = torch.where(mask < FLOOR, torch.zeros_like(mask), mask)
    inside = (mask > 0).float()  # (B, 1, h, w)
    weight = mask * torch.stack([_ramp(one[0], SOFT_PX / scale) for one in inside])[:, None]
    to = (size.height, size.width)
    if to != (height, width):
        weight = F.interpolate(weight, to, mode="bilinear", antialias=True)
    return Region(weight.clamp(0, 1) * F.interpolate(inside, to, mode="nearest-exact"))


def blend(resized: torch.Tensor, restored: torch.Tensor, region: Region) -> torch.Tensor:
    """A copy of `resized` (1, C, H, W) with `restored` (1, C, h, w), which fills the region's box, put in by weight."""
    rows, columns = region.box()
    weight = region.weight[:, :, rows, columns].to(restored)  # (1, 1, h, w)
    out = resized.clone()
    out[:, :, rows, columns] = torch.lerp(resized[:, :, rows, columns], restored, weight)
    return out


def decode_in_box(
    decode: Callable[[torch.Tensor], torch.Tensor], latent: torch.Tensor, region: Region, downscale: int
) -> torch.Tensor:
    """Decode the part of a latent (1, C, ..., h, w) that the region needs: an image (1, 3, H, W), 0 elsewhere."""
    height, width = latent.shape[-2:]
    rows, columns = (
        _in_latent(span, downscale, side) for span, side in zip(region.box(), (height, width), strict=True)
    )
    part = decode(latent[..., rows, columns])  # (1, 3, h', w')
    image = part.new_zeros(*part.shape[:2], downscale * height, downscale * width)
    image[..., _in_pixels(rows, downscale), _in_pixels(columns, downscale)] = part
    return image


def _in_latent(span: slice, downscale: int, side: int) -> slice:
    """The latent pixels of a span, with eight more, so that the edge of a convolution stays out, in whole fours."""
    margin, grid = 8, 4
    start = max(0, span.start // downscale - margin) // grid * grid
    stop = -(-(-(-span.stop // downscale) + margin) // grid) * grid
    return slice(start, min(side, stop))


def _in_pixels(span: slice, downscale: int) -> slice:
    return slice(downscale * span.start, downscale * span.stop)


def _span(inside: torch.Tensor) -> slice:
    found = inside.nonzero()
    if len(found) == 0:
        return slice(0, 0)
    return slice(max(0, int(found[0]) - REACH_PX), min(len(inside), int(found[-1]) + 1 + REACH_PX))


def _same_aspect(width: int, height: int, other: TargetSize) -> bool:
    """Whether one is the other, enlarged and with its sides rounded to whole pixels."""
    return (
        abs(width * other.height / other.width - height) <= 1 or abs(height * other.width / other.height - width) <= 1
    )


def _ramp(inside: torch.Tensor, soft: float) -> torch.Tensor:
    """(h, w) of 0 and 1 -> a ramp that rises from the edge inwards over `soft` pixels, and over half of a thin
    part's depth where that is less. The picture's own border is no edge.
    """
    depth = _depth(inside)  # (h, w)
    deepest = pooled(F.max_pool2d, depth, 2 * max(1, round(soft)))
    return ((depth - 0.5) / (deepest / 2).clamp(0.5, max(0.5, soft))).clamp(0, 1)


def _depth(inside: torch.Tensor) -> torch.Tensor:
    """The number of steps, across and down, from each pixel to the nearest one that is 0. (h, w)

    Two passes over the rows and two over the columns (Rosenfeld and Pfaltz 1968, Distance Functions on Digital
    Pictures).
    """
    depth = inside * sum(inside.shape)
    for dim in (-1, -2):
        place = torch.arange(inside.shape[dim], dtype=inside.dtype, device=inside.device)
        place = place if dim == -1 else place[:, None]
        before = (depth - place).cummin(dim).values + place
        after = (depth + place).flip(dim).cummin(dim).values.flip(dim) - place
        depth = torch.minimum(before, after)
    return depth
