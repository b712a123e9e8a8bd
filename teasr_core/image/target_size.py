"""The exact size of a result: by factor, edge, sides or megapixels, with their limits."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError

MIN_SCALE, MAX_SCALE = 0.25, 8.0
TRAINED_SCALE = 4.0  # the model was trained on no larger factor

# ComfyUI's "Scale Image to Total Pixels" counts the same way, so 4 megapixels are 2048 x 2048 in both.
PIXELS_PER_MEGAPIXEL = 1024 * 1024

_FLOAT_SLACK = 1e-9  # 3 * (1 / 3) must still count as 1 when a limit is compared or a side is floored


@dataclass(frozen=True)
class TargetSize:
    """A size in whole pixels, both sides at least 1."""

    width: int
    height: int


@dataclass(frozen=True)
class SizeRequest:
    """How large the result of any image shall be; `target` gives the exact size for one of them.

    mode: a key of SIZE_MODES. numbers: what that mode needs: a factor, an edge in pixels, width and height in pixels,
    or megapixels. max_megapixels: the largest result, 0 for no limit.
    Raises InputError for another mode.
    """

    mode: str
    numbers: tuple[float, ...]
    max_megapixels: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in SIZE_MODES:
            raise InputError(f"size is {self.mode!r}: expected {', '.join(SIZE_MODES)}; choose one of them")

    def target(self, width: int, height: int) -> TargetSize:
        """The size of the result of an image of width x height. Raises InputError as the mode's function does."""
        return cap_megapixels(SIZE_MODES[self.mode](width, height, *self.numbers), self.max_megapixels)


def exceeds_training(width: int, height: int, target: TargetSize) -> bool:
    """Whether a side grows by a larger factor than the model was trained on, so that less detail is to be expected."""
    return target.width > TRAINED_SCALE * width or target.height > TRAINED_SCALE * height


def mean_scale(width: int, height: int, target: TargetSize) -> float:
    """The factor by which an image of width x height grows to the target: of both sides, their geometric mean."""
    return math.sqrt(target.width * target.height / (width * height))


def size_by_factor(width: int, height: int, scale: float) -> TargetSize:
    """Multiply both sides by `scale` (0.25..8) and round half up, to at least 1 px.

    Raises InputError for a scale that is NaN, infinite or outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    scale = _checked_scale(scale, "scale")
    return TargetSize(_round_side(width * scale), _round_side(height * scale))


def size_exact(width: int, height: int, target_width: int, target_height: int) -> TargetSize:
    """Take the target size as it is; it may change the aspect ratio.

    Raises InputError when either axis would be scaled by less than 0.25 or more than 8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    target = TargetSize(check_side(target_width, "target width"), check_side(target_height, "target height"))
    _checked_scale(target.width / width, f"width {width} -> {target.width}: scale")
    _checked_scale(target.height / height, f"height {height} -> {target.height}: scale")
    return target


def size_by_shortest(width: int, height: int, shortest_px: int) -> TargetSize:
    """Make the shorter side `shortest_px`; the other one follows the aspect ratio (rounded half up).

    Raises InputError when the implied scale is outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    return _size_by_edge(width, height, min(width, height), check_side(shortest_px, "shortest edge"), "shortest edge")


def size_by_longest(width: int, height: int, longest_px: int) -> TargetSize:
    """Make the longer side `longest_px`; the other one follows the aspect ratio (rounded half up).

    Raises InputError when the implied scale is outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    return _size_by_edge(width, height, max(width, height), check_side(longest_px, "longest edge"), "longest edge")


def size_by_megapixels(width: int, height: int, megapixels: float) -> TargetSize:
    """Give about `megapixels` x 1024 x 1024 pixels at the same aspect ratio (each side rounded half up).

    Raises InputError for a count that is NaN, infinite or not positive, or an implied scale outside 0.25..8.
    """
    width, height = check_side(width, "width"), check_side(height, "height")
    megapixels = check_megapixels(megapixels)
    scale = math.sqrt(megapixels * PIXELS_PER_MEGAPIXEL / (width * height))
    scale = _checked_scale(scale, f"{width} x {height} to {megapixels:g} megapixels: scale")
    return TargetSize(_round_side(width * scale), _round_side(height * scale))


SIZE_MODES: dict[str, Callable[..., TargetSize]] = {
    "factor": size_by_factor,
    "shortest": size_by_shortest,
    "longest": size_by_longest,
    "exact": size_exact,
    "megapixels": size_by_megapixels,
}


def cap_megapixels(size: TargetSize, max_mp: float) -> TargetSize:
    """Return `size` when it has at most `max_mp` x 1024 x 1024 pixels or `max_mp` is 0 (off), else a smaller size.

    The smaller size keeps the aspect ratio and never exceeds the cap, so its sides are rounded down (at least 1 px).
    The cap guards memory and applies after the request was checked, so it may push the scale below 0.25.
    Raises InputError for a cap that is NaN, infinite or negative.
    """
    max_mp = _number(max_mp, "max_megapixels")
    if max_mp < 0:
        raise InputError(f"max_megapixels is {max_mp:g}; expected 0 (off) or more; set it to 0 to lift the cap")
    width, height = check_side(size.width, "width"), check_side(size.height, "height")
    max_px = max(1, math.floor(max_mp * PIXELS_PER_MEGAPIXEL + _FLOAT_SLACK))
    if max_mp == 0 or width * height <= max_px:
        return size
    scale = math.sqrt(max_px / (width * height))
    capped_width = max(1, math.floor(width * scale + _FLOAT_SLACK))
    capped_height = max(1, math.floor(height * scale + _FLOAT_SLACK))
    # Only a side held up at 1 px can leave the product above the cap; the other side then gives way.
    return TargetSize(
        min(capped_width, max(1, max_px // capped_height)), min(capped_height, max(1, max_px // capped_width))
    )


def check_side(value: int, name: str) -> int:
    """Return `value` as a side in pixels. Raises InputError unless it is a whole number, at least 1."""
    try:
        side = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; expected a whole number of pixels; round it first") from None
    if side < 1:
        raise InputError(f"{name} is {side}; expected at least 1 pixel; choose a larger one")
    return side


def check_megapixels(value: float) -> float:
    """Return `value` as a size by area. Raises InputError for NaN, infinity or a number that is not positive."""
    megapixels = _number(value, "megapixels")
    if megapixels <= 0:
        raise InputError(f"megapixels is {megapixels:g}; expected a number above 0; choose for example 4")
    return megapixels


def _size_by_edge(width: int, height: int, edge: int, edge_px: int, name: str) -> TargetSize:
    _checked_scale(edge_px / edge, f"{name} {edge} -> {edge_px}: scale")
    # The multiplication comes first, so that the named edge is exact and ties round as they would on paper.
    return TargetSize(_round_side(width * edge_px / edge), _round_side(height * edge_px / edge))


def _round_side(value: float) -> int:
    return max(1, math.floor(value + 0.5))


def _number(value: float, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; expected a number; correct it") from None
    if not math.isfinite(number):
        raise InputError(f"{name} is {number}; expected a finite number; correct it")
    return number


def _checked_scale(value: float, name: str) -> float:
    scale = _number(value, name)
    if not MIN_SCALE - _FLOAT_SLACK <= scale <= MAX_SCALE + _FLOAT_SLACK:
        raise InputError(f"{name} is {scale:.4g}; expected {MIN_SCALE:g} to {MAX_SCALE:g}; choose a size in that range")
    return scale
