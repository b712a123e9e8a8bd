"""A labelled sheet of pictures: a label above each, a note such as its time below it. Drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from .levels import to_levels

GAP_PX, TEXT_PX, FONT_PX = 6, 20, 14
MARGIN_PX = 4  # left of a text


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture of the sheet: (1, 3, H, W), float in [0, 1] or, as `sheet_pixels` gives it, uint8."""

    image: torch.Tensor
    label: str = ""
    note: str = ""


def comparison_grid(rows: Sequence[Sequence[Cell]], gap_px: int = GAP_PX) -> torch.Tensor:
    """Draw the sheet (`draw_sheet`) as an image (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(draw_sheet(rows, gap_px))).permute(2, 0, 1)[None].float() / 255


def draw_sheet(rows: Sequence[Sequence[Cell]], gap_px: int = GAP_PX) -> Image.Image:
    """Draw pictures pixel for pixel, with black text on white.

    A column is as wide as its widest picture or text. A row is as tall as its tallest picture, with a line of text
    above where one of its cells has a label, and a line below where any cell of the sheet has a note. Rows may differ
    in length; their pictures are gap_px apart. Raises InputError for a sheet without any cell.
    """
    if not any(rows):
        raise InputError("a comparison of no pictures: expected at least one")
    font = ImageFont.load_default(FONT_PX)
    columns = max(len(row) for row in rows)
    widths = [max(_width(row[k], font) for row in rows if k < len(row)) for k in range(columns)]
    label_px = [TEXT_PX if any(cell.label for cell in row) else 0 for row in rows]
    note_px = TEXT_PX if any(cell.note for row in rows for cell in row) else 0
    picture_px = [max((cell.image.shape[-2] for cell in row), default=0) for row in rows]
    heights = [above + picture + note_px for above, picture in zip(label_px, picture_px, strict=True)]
    sheet = Image.new("RGB", (sum(widths) + gap_px * (columns - 1), sum(heights) + gap_px * (len(rows) - 1)), "white")
    pen = ImageDraw.Draw(sheet)
    y = 0
    for row, height, above in zip(rows, heights, label_px, strict=True):
        x = 0
        for cell, width in zip(row, widths, strict=False):
            pen.text((x + MARGIN_PX, y + 1), cell.label, fill="black", font=font)
            pixels = sheet_pixels(cell.image)[0].permute(1, 2, 0).numpy()  # (H, W, 3)
            sheet.paste(Image.fromarray(pixels), (x, y + above))
            pen.text((x + MARGIN_PX, y + above + cell.image.shape[-2] + 1), cell.note, fill="black", font=font)
            x += width + gap_px
        y += height + gap_px
    return sheet


def sheet_pixels(image: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) float in [0, 1] to uint8 on the CPU, in memory of its own: all that a sheet needs of a picture."""
    return image if image.dtype == torch.uint8 else to_levels(image).cpu()


def _width(cell: Cell, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    text = max(font.getlength(cell.label), font.getlength(cell.note))
    return max(cell.image.shape[-1], round(text) + 2 * MARGIN_PX if text else 0)
