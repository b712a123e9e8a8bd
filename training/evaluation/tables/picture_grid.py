"""A labelled grid of pictures in one file small enough to be committed or posted."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from teasr_core.errors import InputError

MAX_BYTES = 1_000_000
_GAP_PX = 4
_LABEL_PX = 24
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
    widths = [max(row[column].width for row in rows) for column in range(len(labels))]
    heights = [row[0].height for row in rows]
    size = (sum(widths) + _GAP_PX * (len(widths) - 1), _LABEL_PX + sum(heights) + _GAP_PX * (len(heights) - 1))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    x = 0
    for column, label in enumerate(labels):
        pen.text((x + 4, 3), label, fill="black", font=font)
        y = _LABEL_PX
        for row in rows:
            sheet.paste(row[column], (x, y))
            y += row[column].height + _GAP_PX
        x += widths[column] + _GAP_PX
    return sheet


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
