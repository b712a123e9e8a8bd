"""A labelled sheet of pictures: what each is above it, its figures under it. Pillow alone."""

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
    """image: (1, 3, H, W) float in [0, 1] or, as `sheet_pixels` gives it, uint8. label: above it. note: under it."""

    image: torch.Tensor
    label: str
    note: str = ""


def comparison_grid(rows: Sequence[Sequence[Cell]]) -> torch.Tensor:
    """The sheet as an image (1, 3, H, W) float32 in [0, 1], pictures pixel for pixel, black text on white.

    A column is as wide as its widest picture or text, a row as tall as its tallest picture and two lines of text; rows
    may differ in length. InputError without any cell.
    """
    if not any(rows):
        raise InputError("a comparison of no pictures: expected at least one")
    font = ImageFont.load_default(FONT_PX)
    columns = max(len(row) for row in rows)
    widths = [max(_width(row[k], font) for row in rows if k < len(row)) for k in range(columns)]
    heights = [max((cell.image.shape[-2] for cell in row), default=0) + 2 * TEXT_PX for row in rows]
    sheet = Image.new("RGB", (sum(widths) + GAP_PX * (columns - 1), sum(heights) + GAP_PX * (len(rows) - 1)), "white")
    pen = ImageDraw.Draw(sheet)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for cell, width in zip(row, widths, strict=False):
            pen.text((x + MARGIN_PX, y + 1), cell.label, fill="black", font=font)
            pixels = sheet_pixels(cell.image)[0].permute(1, 2, 0).numpy()  # (H, W, 3)
            sheet.paste(Image.fromarray(pixels), (x, y + TEXT_PX))
            pen.text((x + MARGIN_PX, y + TEXT_PX + cell.image.shape[-2] + 1), cell.note, fill="black", font=font)
            x += width + GAP_PX
        y += height + GAP_PX
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)[None].float() / 255


def sheet_pixels(image: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) float in [0, 1] to uint8 on the CPU, in memory of its own: what of a picture a sheet needs."""
    return image if image.dtype == torch.uint8 else to_levels(image).cpu()


def _width(cell: Cell, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    text = max(font.getlength(cell.label), font.getlength(cell.note))
    return max(cell.image.shape[-1], round(text) + 2 * MARGIN_PX)
