"""Previews while training: LQ | 1 | 2 | 4 | 8 steps | HQ on fixed held-out photographs, as one JPEG and in figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from teasr_core.codec.protocol import Codec
from teasr_core.errors import InputError
from teasr_core.image.labelled_sheet import Cell, draw_sheet
from teasr_core.image.levels import to_levels
from teasr_core.image.luma import psnr_y
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.picture_files.read import read_rgb
from teasr_core.sampling.sampler import initial_noise, sample
from teasr_core.sampling.schedule import linear_taus, steps_text

from ..degradation.degrade import LIGHT, degrade
from ..objective.losses import Perceptual
from .log import Means

CROP_PX, SCALE, STEPS = 128, 4, (1, 2, 4, 8)
ZOOM = 2  # each pixel is shown as a square of this side
MAX_PSNR = 100.0  # of equal pictures, because JSON has no infinity
LABELS = ("LQ", *(steps_text(n) for n in STEPS), "HQ")


def check_preview_images(photographs: Sequence[str]) -> None:
    """InputError for the first of `run.preview_images` that no preview can be made of."""
    for name in photographs:
        try:
            height, width = read_rgb(Path(name)).shape[:2]
        except InputError as error:
            cause = f"it cannot be read ({error})" if Path(name).exists() else "there is no such file"
            raise InputError(f"run.preview_images names '{name}': {cause}, expected a photograph") from None
        if min(width, height) < CROP_PX:
            raise InputError(
                f"run.preview_images names '{name}': it has {width}x{height} px, expected at least {CROP_PX} px a side"
            )


def write_preview(
    path: Path,
    velocity: QwenVelocity,
    codec: Codec,
    photographs: Sequence[Path],
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
    perceptual: Perceptual | None = None,
) -> dict[str, float]:
    """Draw one row for each photograph: its central 128x128 px at x4, light degradation with a fixed seed.

    Returns `held_out/psnr_y_N` in dB and, with `perceptual`, `held_out/lpips_N` for each number of steps N: means over
    the photographs, measured on 8-bit pixels as `eval` does.

    forward_context: entered around the sampling alone, e.g. autocast, whose bf16 is too coarse for the codec.
    perceptual: on the velocity's device.
    """
    figures = Means()
    device = velocity.prompt_embeds.device
    rows: list[list[Cell]] = []
    for index, photograph in enumerate(photographs):
        hq = _centre(read_rgb(photograph))  # (128, 128, 3)
        lq = degrade(hq, LIGHT, SCALE, np.random.default_rng([0, index]))
        image = resize(_tensor(lq), TargetSize(CROP_PX, CROP_PX))  # (1, 3, 128, 128)
        z_lq = codec.encode_lq(image.to(device))  # (1, C, h, w)
        noise = initial_noise(0, *z_lq.shape[1:]).to(device)
        with torch.no_grad(), forward_context():
            latents = [sample(velocity, noise, z_lq, linear_taus(n)) for n in STEPS]
        results = [codec.decode(z.float()).detach().cpu() for z in latents]
        labels = LABELS if not rows else [""] * len(LABELS)
        for n, result in zip(STEPS, results, strict=True):
            figures.add({f"held_out/{name}_{n}": value for name, value in _figures(result, hq, perceptual, device)})
        pictures = [image, *results, _tensor(hq)]
        rows.append([Cell(_enlarged(picture), label) for picture, label in zip(pictures, labels, strict=True)])
    draw_sheet(rows).save(path, quality=92)
    return figures.values()


def _figures(
    result: torch.Tensor, hq: np.ndarray, perceptual: Perceptual | None, device: torch.device
) -> Iterator[tuple[str, float]]:
    """result: (1, 3, 128, 128) on the CPU. hq: (128, 128, 3), both in [0, 1]."""
    levels = [to_levels(picture) for picture in (result, _tensor(hq))]  # (1, 3, 128, 128)
    pixels = [picture[0].permute(1, 2, 0).numpy() for picture in levels]
    yield "psnr_y", min(psnr_y(pixels[0], pixels[1]), MAX_PSNR)
    if perceptual is not None:
        a, b = (picture.to(device).float() / 127.5 - 1 for picture in levels)
        with torch.no_grad():
            yield "lpips", float(perceptual(a, b))


def _centre(photo: np.ndarray) -> np.ndarray:
    """photo: (H, W, 3) uint8. Returns (128, 128, 3) float32 in [0, 1]."""
    y, x = ((side - CROP_PX) // 2 for side in photo.shape[:2])
    return photo[y : y + CROP_PX, x : x + CROP_PX].astype(np.float32) / 255


def _enlarged(image: torch.Tensor) -> torch.Tensor:
    return image.repeat_interleave(ZOOM, dim=2).repeat_interleave(ZOOM, dim=3)


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
