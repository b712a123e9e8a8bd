"""Draws the pack's icon and banner for the Comfy Registry: one scene, coarse on the left and fine on the right.

    python scripts/draw_registry_art.py

Writes docs/pictures/icon.png (400x400) and docs/pictures/banner.png (1260x540). Everything is computed, so there is no
photograph whose licence would have to be named. The registry asks for a square icon of at most 400 px and a banner of
21:9.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
ICON_PX = 400
BANNER_PX = (1260, 540)
COARSE = 20  # pixels of the enlarged side that one low-quality pixel covers
SKY, SUN, FAR, NEAR = (24, 36, 74), (255, 196, 92), (58, 96, 148), (16, 22, 44)


def scene(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: a sun with rings over two ridges, sharp at every size."""
    y, x = np.mgrid[0:height, 0:width] / height
    picture = np.empty((height, width, 3), dtype=np.float64)
    picture[:] = SKY
    picture += (y[..., None] * np.array([70, 60, 50])).clip(0, 60)
    distance = np.hypot(x - 0.5 * width / height, y - 0.42)
    rings = (distance < 0.30) & ((distance * 60) % 2 < 1.2) | (distance < 0.17)
    picture[rings] = SUN
    for colour, base, sizes in ((FAR, 0.66, (9, 23, 51)), (NEAR, 0.80, (7, 19, 43))):
        ridge = base + sum(0.05 / k * np.sin(size * x + size) for k, size in enumerate(sizes, 1))
        picture[y > ridge] = colour
    return picture.clip(0, 255).astype(np.uint8)


def half_restored(width: int, height: int) -> Image.Image:
    """The scene with its left part as a low-quality picture shows it, and a thin line between the two."""
    fine = Image.fromarray(scene(width, height))
    coarse = fine.resize((width // COARSE, height // COARSE), Image.Resampling.BOX)
    middle = width // 2
    fine.paste(coarse.resize((width, height), Image.Resampling.NEAREST).crop((0, 0, middle, height)), (0, 0))
    ImageDraw.Draw(fine).rectangle((middle - 1, 0, middle + 1, height), fill="white")
    return fine


def main() -> None:
    half_restored(ICON_PX, ICON_PX).save(PICTURES / "icon.png", optimize=True)
    banner = half_restored(*BANNER_PX)
    draw = ImageDraw.Draw(banner)
    for text, size, top in (("TEASR", 120, 360), ("1 to 30 steps, one diffusion transformer", 28, 484)):
        draw.text((60, top), text, font=ImageFont.load_default(size), fill="white", stroke_width=3, stroke_fill=NEAR)
    banner.save(PICTURES / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
