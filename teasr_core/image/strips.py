"""Filters that work strip by strip, so that their intermediate tensors do not grow with the picture."""

from collections.abc import Iterator

import torch

STRIP_PX = 1 << 20


def strips_with_reach(image: torch.Tensor, reach: int, strip_px: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices of rows from the top down: a strip, the strip with the rows that a filter reaches, and where the
    strip lies within those.

    image: (..., H, W). reach: how many rows on each side a filter reads. A strip has about strip_px pixels and at least
    eight times as many rows as the reach, so that the rows read twice cost little.
    """
    height, width = image.shape[-2:]
    rows = max(8 * reach, strip_px // width)
    for y in range(0, height, rows):
        top, end = max(0, y - reach), min(height, y + rows)
        yield slice(y, end), slice(top, end + reach), slice(y - top, end - top)
