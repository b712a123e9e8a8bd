"""One still picture in memory, with everything about its file that must survive the trip."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Picture:
    """Upright pixels and what the file said about them.

    rgb: float32 (1, 3, H, W) in [0, 1], as encoded in the file (no colour management). alpha: float32 (1, 1, H, W),
    straight, or None. bit_depth: 8 or 16. is_grey: the file had one colour channel, the three of `rgb` are equal.
    icc: the colour profile. exif: a block from b"Exif\\0\\0" on, orientation 1. dpi: (x, y) dots per inch.
    xmp: the packet. text, color: PNG's text chunks and its chunks on colour (cICP, gAMA ...), each as (type, data).
    left_out: metadata of the file that is not here, in words. notes: what else was odd about the file, in clauses.
    Make a changed one with `dataclasses.replace`.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None = None
    bit_depth: int = 8
    is_grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None
    text: tuple[tuple[bytes, bytes], ...] = ()
    color: tuple[tuple[bytes, bytes], ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def icc_space(self) -> bytes:
        """The four letters by which the colour profile names its space, such as b"RGB " or b"GRAY"; b"" without one."""
        return (self.icc or b"")[16:20]

    @property
    def note(self) -> str | None:
        """Everything that its owner should be told, in one line; None where there is nothing."""
        lost = f"left out: {', '.join(dict.fromkeys(self.left_out))}" if self.left_out else ""
        return "; ".join(dict.fromkeys(clause for clause in (*self.notes, lost) if clause)) or None
