"""Previews while training: LQ | 1 | 4 | 8 steps | HQ on fixed held-out photographs, as one JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from teasr_core.codec import DctCodec
from teasr_core.geometry import TargetSize, resize
from teasr_core.sampler import initial_noise, sample
from teasr_core.schedule import linear_taus

from .degradation import LIGHT, degrade
from .pretrain_model import PretrainModel

CROP_PX, SCALE, STEPS = 128, 4, (1, 4, 8)


def write_preview(path: Path, model: PretrainModel, codec: DctCodec, photographs: Sequence[Path]) -> None:
    """One row a photograph: the central 128x128 px at x4, light degradation with a fixed seed."""
    rows = []
    for index, photograph in enumerate(photographs):
        hq = _centre(Image.open(photograph).convert("RGB"))  # (128, 128, 3)
        lq = degrade(hq, LIGHT, SCALE, np.random.default_rng([0, index]))
        image = resize(_tensor(lq), TargetSize(CROP_PX, CROP_PX))  # (1, 3, 128, 128)
        z_lq = codec.encode(image)  # (1, C, 32, 32)
        noise = initial_noise(0, *z_lq.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            latents = [sample(model.velocity(), noise, z_lq, linear_taus(n)) for n in STEPS]
        results = [codec.decode(z) for z in latents]  # outside autocast, whose bf16 is coarser than 8 bits
        rows.append(torch.cat([image, *results, _tensor(hq)], dim=3))
    grid = torch.cat(rows, dim=2)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(grid).resize((grid.shape[1] * 2, grid.shape[0] * 2), Image.Resampling.NEAREST).save(
        path, quality=92
    )


def _centre(photo: Image.Image) -> np.ndarray:
    x, y = (photo.width - CROP_PX) // 2, (photo.height - CROP_PX) // 2
    return np.asarray(photo.crop((x, y, x + CROP_PX, y + CROP_PX)), dtype=np.float32) / 255


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
