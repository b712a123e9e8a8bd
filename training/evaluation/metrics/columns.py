"""The metrics of an evaluation: key, title and which way is better. Tables, plot and files all read this list."""

from __future__ import annotations

from dataclasses import dataclass

HIGHER, LOWER, NEITHER = "higher", "lower", "neither"
_ARROWS = {HIGHER: " ↑", LOWER: " ↓", NEITHER: ""}


@dataclass(frozen=True)
class Column:
    """One metric. needs_hq: it compares the result with the original. digits: decimals in tables."""

    key: str
    title: str
    better: str
    digits: int
    needs_hq: bool

    @property
    def heading(self) -> str:
        return self.title + _ARROWS[self.better]

    def text(self, value: float | None) -> str:
        """The value as a table shows it; "-" where there is none."""
        return "-" if value is None else format(value, f".{self.digits}f")


# Left to right in the tables. The keys are permanent: scores.csv and results.json hold them.
COLUMNS = (
    Column("psnr_y", "PSNR-Y", HIGHER, 2, True),
    Column("ssim_y", "SSIM-Y", HIGHER, 4, True),
    Column("lpips", "LPIPS", LOWER, 4, True),
    Column("lpips_squeeze", "LPIPS-squeeze", LOWER, 4, True),
    Column("dists", "DISTS", LOWER, 4, True),
    Column("fid", "FID", LOWER, 2, True),
    Column("gmsd", "GMSD", LOWER, 4, True),
    Column("niqe", "NIQE", LOWER, 2, False),
    Column("niqe_pyiqa", "NIQE (pyiqa)", LOWER, 2, False),
    Column("musiq", "MUSIQ", HIGHER, 2, False),
    Column("maniqa_pipal", "MANIQA", HIGHER, 4, False),
    Column("clipiqa", "CLIPIQA", HIGHER, 4, False),
    Column("gradient", "gradient", NEITHER, 2, False),
    Column("flat_gradient", "flat", NEITHER, 2, True),
    Column("hq_flat_gradient", "flat of HQ", NEITHER, 2, True),
    Column("flat_ratio", "flat / HQ", NEITHER, 2, True),
    Column("grid_peak", "grid peak", LOWER, 2, False),
)
HIDDEN = ("flat_gradient", "hq_flat_gradient")  # in the files; the tables show their ratio


def column(key: str) -> Column:
    """The column of a key. A KeyError for an unknown key is a bug of our own."""
    return {column.key: column for column in COLUMNS}[key]


def best_values(values: list[float | None], which: Column) -> list[bool]:
    """Mark the best values at the precision that is shown; none where neither direction is better."""
    shown = [None if value is None else round(value, which.digits) for value in values]
    known = [value for value in shown if value is not None]
    if which.better == NEITHER or len(known) < 2:
        return [False] * len(values)
    best = max(known) if which.better == HIGHER else min(known)
    return [value == best for value in shown]
