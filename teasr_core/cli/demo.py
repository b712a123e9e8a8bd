"""`demo`: the main job on a picture that comes with a library, as one image: LQ | 1 | 4 | 8 steps."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..image.labelled_sheet import Cell, comparison_grid
from ..image.resize import resize
from ..image.target_size import TargetSize
from ..picture_files.picture import Picture
from ..picture_files.write import check_output, save_picture
from ..restore import RestoreOptions, RestoreRequest
from ..restorer import load_restorer
from ..sampling.schedule import manual_plan, steps_text
from .terminal import write_line

STEPS = (1, 4, 8)
CROP_PX, SCALE = 288, 4  # of the original, and how much smaller the low-quality input is


def demo(output: Path, dtype: str, overwrite: bool) -> int:
    check_output(output, has_alpha=False, overwrite=overwrite)
    lq = low_quality(sample_photograph())  # (1, 3, 72, 72)
    restorer = load_restorer(dtype)
    size = TargetSize(CROP_PX, CROP_PX)
    panels = [Cell(resize(lq, size), "LQ (Lanczos)")]
    for steps in STEPS:
        image, report = restorer.restore(lq, RestoreRequest(RestoreOptions(size), manual_plan(steps)))
        panels.append(Cell(image, steps_text(steps)))
        write_line(report.line())
    save_picture(Picture(comparison_grid([panels], gap_px=0)), output, overwrite=overwrite)
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
