"""`demo`: the main job on a picture that comes with a library, as one image: LQ | 1 | 4 | 8 steps."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from ..image.levels import to_levels
from ..image.resize import resize
from ..image.target_size import TargetSize
from ..picture_files.find import Picture, check_output, save_picture
from ..restore import RestoreOptions, RestoreRequest
from ..restorer import load_restorer
from ..sampling.schedule import manual_plan
from .terminal import write_line

STEPS = (1, 4, 8)
CROP_PX, SCALE = 288, 4  # of the original, and how much smaller the low-quality input is
LABEL_PX = 22


def demo(output: Path, dtype: str, overwrite: bool) -> int:
    check_output(output, has_alpha=False, overwrite=overwrite)
    lq = low_quality(sample_photograph())  # (1, 3, 72, 72)
    restorer = load_restorer(dtype)
    size = TargetSize(CROP_PX, CROP_PX)
    panels = [("LQ (Lanczos)", resize(lq, size))]
    for steps in STEPS:
        image, report = restorer.restore(lq, RestoreRequest(RestoreOptions(size), manual_plan(steps)))
        panels.append((f"{steps} step{'s' if steps > 1 else ''}", image))
        write_line(report.line())
    save_picture(Picture(labelled_row(panels)), output, overwrite=overwrite)
    write_line(f"wrote {output}: LQ | {' | '.join(str(s) for s in STEPS)} steps")
    return 0


def sample_photograph() -> np.ndarray:
    """A CROP_PX square of scikit-image's cat (CC0), uint8 (H, W, 3)."""
    try:
        from skimage import data
    except ImportError:
        raise InputError(
            "the demo picture comes with scikit-image, which is missing: pip install scikit-image"
        ) from None
    return data.chelsea()[:CROP_PX, 72 : 72 + CROP_PX]


def low_quality(photo: np.ndarray) -> torch.Tensor:
    """The picture made SCALE times smaller with a little blur, noise and JPEG; (1, 3, h, w) float32 in [0, 1]."""
    small = Image.fromarray(photo).resize((CROP_PX // SCALE, CROP_PX // SCALE), Image.Resampling.BILINEAR)
    noise = np.random.default_rng(0).normal(0, 4, (*small.size[::-1], 3))
    noisy = Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    noisy.save(buffer, "JPEG", quality=80)
    pixels = np.asarray(Image.open(buffer), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def labelled_row(panels: list[tuple[str, torch.Tensor]]) -> torch.Tensor:
    """Images (1, 3, H, W) side by side, each under its label; (1, 3, H + LABEL_PX, n W)."""
    row = torch.cat([image for _, image in panels], dim=3)[0]
    height, width = row.shape[1:]
    canvas = Image.new("RGB", (width, height + LABEL_PX), "white")
    canvas.paste(Image.fromarray(to_levels(row).permute(1, 2, 0).numpy()), (0, LABEL_PX))
    draw, step = ImageDraw.Draw(canvas), width // len(panels)
    for index, (label, _) in enumerate(panels):
        draw.text((index * step + 6, 4), label, fill="black", font=ImageFont.load_default(size=14))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None].float() / 255
