"""The input is kept where it is one flat colour, as in bars, clipped highlights and drawn backgrounds.

Photographs hardly ever have a clean flat colour, so a model of photographs leaves specks on it
(docs/log/sampling.md). It has nothing to add there.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from .strips import STRIP_PX, strips_with_reach

# A pixel is flat when no neighbours within REACH_PX of it differ by more than rounding. A single 8-bit step counts as a
# difference, however far it is enlarged.
REACH_PX = 16
SOFT_PX = 8  # on each side of the line between kept and flat; within REACH_PX - SOFT_PX of detail nothing changes
_ROUNDING = 1e-5  # on [0, 1]; the resize of one colour is off by 1e-7

_STRIP_PX = STRIP_PX

_average = partial(F.avg_pool2d, count_include_pad=False)


def keep_flat_(image: torch.Tensor, reference: torch.Tensor) -> None:
    """Replace, in place, the pixels of `image` by those of `reference` where that is flat, with a soft transition.

    image, reference: (3, H, W) float32 in [0, 1]. A large picture is processed in strips; each is read with the rows
    that affect it, so that the result does not depend on the strips.
    """
    for rows, weight in flat_weights(reference):
        if bool(weight.any()):
            image[:, rows].lerp_(reference[:, rows], weight)


def flat_weights(reference: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Strip by strip: the rows of a picture (3, H, W), and a weight (rows, W) from 0 where it is not flat to 1."""
    for rows, wider, inside in strips_with_reach(reference, REACH_PX + SOFT_PX + 1, _STRIP_PX):
        yield rows, _flatness(reference[:, wider])[inside]


def _flatness(reference: torch.Tensor) -> torch.Tensor:
    """(3, H, W) -> (H, W), from 0 where it is not flat to 1 where it is."""
    down = reference.diff(dim=1).abs_().amax(dim=0)  # (H - 1, W)
    across = reference.diff(dim=2).abs_().amax(dim=0)  # (H, W - 1)
    steps = torch.zeros_like(reference[0])  # (H, W): the largest difference to a neighbour
    for part, difference in (steps[1:], down), (steps[:-1], down), (steps[:, 1:], across), (steps[:, :-1], across):
        torch.maximum(part, difference, out=part)
    # Most photographs have no flat area. Blocks of REACH_PX, one of which lies in every window of 2 REACH_PX + 1, show
    # that with a sixteenth of the work.
    block = [min(REACH_PX, side) for side in steps.shape]
    if float(F.max_pool2d(steps[None, None], block, ceil_mode=True).min()) > _ROUNDING:
        return torch.zeros_like(steps)
    worst = pooled(F.max_pool2d, steps, REACH_PX)
    return pooled(_average, (worst <= _ROUNDING).float(), SOFT_PX)


def pooled(pool: Callable[..., torch.Tensor], plane: torch.Tensor, reach: int) -> torch.Tensor:
    """Pool (H, W) over the square of side 2 reach + 1 around each pixel, cut off at the picture's edge."""
    down = pool(plane[None, None], (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    return pool(down, (1, 2 * reach + 1), stride=1, padding=(0, reach))[0, 0]
