"""A labelled grid of pictures in one file small enough to be committed or posted."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from teasr_core.errors import InputError
from teasr_core.image.labelled_sheet import Cell, draw_sheet

MAX_BYTES = 1_000_000
_QUALITIES = (92, 84, 76, 68, 60)


def save_grid(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    path: str | Path,
    cell_px: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write a grid, such as LQ | 1 step | 8 steps | HQ, one row per photograph, labels above the columns.

    rows: (H, W, 3) uint8 RGB; a smaller picture (the LQ) is enlarged to its row's tallest by nearest neighbour, so that
    its pixels show. cell_px: fit cells into this many pixels; None keeps them. path: .png, or .jpg whose quality is
    lowered down to 60 to fit `max_bytes`.
    Raises InputError for rows that do not match `labels`, another suffix, or a file that cannot be made small enough.
    """
    if not rows or any(len(row) != len(labels) for row in rows):
        found = [len(row) for row in rows]
        raise InputError(f"grid: found rows of {found} pictures, expected {len(labels)} in each, one for each label")
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"grid: found the file name '{Path(path).name}', expected .png or .jpg; change its suffix")
    data = _encode(_draw([_fit_row(row, cell_px) for row in rows], labels), suffix, max_bytes)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def _fit_row(row: Sequence[np.ndarray], cell_px: int | None) -> list[Image.Image]:
    height, width = max(picture.shape[:2] for picture in row)
    shrink = min(1.0, cell_px / max(height, width)) if cell_px else 1.0
    target = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    cells = []
    for picture in row:
        enlarges = picture.shape[0] < target[1]
        method = Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS
        image = Image.fromarray(picture)
        cells.append(image if image.size == target else image.resize(target, method))
    return cells


def _draw(rows: list[list[Image.Image]], labels: Sequence[str]) -> Image.Image:
    cells = [[Cell(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None]) for image in row] for row in rows]
    labelled = [replace(cell, label=label) for cell, label in zip(cells[0], labels, strict=True)]
    return draw_sheet([labelled, *cells[1:]])


def _encode(sheet: Image.Image, suffix: str, max_bytes: int) -> bytes:
    size = 0
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        if suffix == ".png":
            sheet.save(buffer, "PNG", optimize=True)
        else:
            sheet.save(buffer, "JPEG", quality=quality, subsampling=0)
        size = buffer.tell()
        if size <= max_bytes:
            return buffer.getvalue()
        if suffix == ".png":
            break
    raise InputError(
        f"grid: found {size} bytes for {sheet.width}x{sheet.height} pixels, expected at most {max_bytes}; "
        "use .jpg, fewer rows or a smaller cell_px"
    )
