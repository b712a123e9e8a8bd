"""Where the input is one flat colour, the result is that colour: bars, clipped highlights, drawn backgrounds.

A model of photographs leaves specks on a clean flat colour, which hardly any photograph has (docs/log/sampling.md). It
has nothing to add there, so the input is kept.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from .strips import STRIP_PX, strips_with_reach

# Flat: no neighbouring pixels within REACH_PX of a pixel differ by more than rounding. A single 8-bit step, however
# far it is enlarged, is no rounding.
REACH_PX = 16
SOFT_PX = 8  # on each side of the line between kept and flat; within REACH_PX - SOFT_PX of detail nothing changes
_ROUNDING = 1e-5  # on [0, 1]; the resize of one colour is off by 1e-7

_STRIP_PX = STRIP_PX

_average = partial(F.avg_pool2d, count_include_pad=False)


def keep_flat_(image: torch.Tensor, reference: torch.Tensor) -> None:
    """`image` takes the pixels of `reference` where that is flat, with a soft transition; in place.

    image, reference: (3, H, W) float32 in [0, 1]. A large picture is taken in strips, each with the rows it looks at,
    so that it comes out as it does in the whole.
    """
    for rows, wider, inside in strips_with_reach(image, REACH_PX + SOFT_PX + 1, _STRIP_PX):
        weight = _flatness(reference[:, wider])[inside]  # (rows, W)
        if bool(weight.any()):
            image[:, rows].lerp_(reference[:, rows], weight)


def _flatness(reference: torch.Tensor) -> torch.Tensor:
    """(3, H, W) -> (H, W), from 0, not flat, to 1."""
    down = reference.diff(dim=1).abs_().amax(dim=0)  # (H - 1, W)
    across = reference.diff(dim=2).abs_().amax(dim=0)  # (H, W - 1)
    steps = torch.zeros_like(reference[0])  # (H, W): the largest difference to a neighbour
    for part, difference in (steps[1:], down), (steps[:-1], down), (steps[:, 1:], across), (steps[:, :-1], across):
        torch.maximum(part, difference, out=part)
    # Most photographs have none, which their blocks tell sixteen times sooner: each window of 2 REACH_PX + 1 holds one.
    block = [min(REACH_PX, side) for side in steps.shape]
    if float(F.max_pool2d(steps[None, None], block, ceil_mode=True).min()) > _ROUNDING:
        return torch.zeros_like(steps)
    worst = _pooled(F.max_pool2d, steps, REACH_PX)
    return _pooled(_average, (worst <= _ROUNDING).float(), SOFT_PX)


def _pooled(pool: Callable[..., torch.Tensor], plane: torch.Tensor, reach: int) -> torch.Tensor:
    """(H, W) pooled over the square of 2 reach + 1 around each pixel, or what of it is in the picture."""
    down = pool(plane[None, None], (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return pool(down, (1, 2 * reach + 1), stride=1, padding=(0, reach))[0, 0]
