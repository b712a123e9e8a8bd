"""One still picture in memory, with everything about its file that must survive the trip."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Picture:
    """Upright pixels and what the file said about them.

    rgb: float32 (1, 3, H, W) in [0, 1], as encoded in the file (no colour management). alpha: float32 (1, 1, H, W),
    straight, or None. bit_depth: 8 or 16. is_grey: the file had one colour channel, the three of `rgb` are equal.
    icc: the colour profile. exif: as Pillow writes it (from b"Exif\\0\\0"), orientation 1. dpi: (x, y) dots per inch.
    Make a changed one with `dataclasses.replace`.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None = None
    bit_depth: int = 8
    is_grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
