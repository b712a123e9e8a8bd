"""A large picture strip by strip, so that what a filter makes on the way does not grow with the picture."""

from collections.abc import Iterator

import torch

STRIP_PX = 1 << 20


def strips_with_reach(image: torch.Tensor, reach: int, strip_px: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of rows, from the top down: (a strip, the strip with what a filter reaches, the strip within that).

    image: (..., H, W). reach: rows on each side. A strip has about strip_px pixels, and is tall enough for its reach to
    cost little.
    """
    height, width = image.shape[-2:]
    rows = max(8 * reach, strip_px // width)
    for y in range(0, height, rows):
        top, end = max(0, y - reach), min(height, y + rows)
        yield slice(y, end), slice(top, end + reach), slice(y - top, end - top)
