"""Picture grids of an evaluation: LQ | folders of pictures | the numbers of steps | HQ, one file for each model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from teasr_core.sampling.schedule import steps_text

from ..datasets import EvalDataset, EvalPicture
from ..run import Evaluation, Method, enlarge, result_key
from .picture_grid import save_grid

GRID_PICTURES = 6
GRID_CROP_PX = 256


def save_grids(evaluation: Evaluation, dataset: EvalDataset, folder: Path) -> list[Path]:
    """`grid_<dataset>.jpg`, or `grid_<dataset>_<model>.jpg` for several models. Without originals Lanczos is shown.

    Each row is the middle `GRID_CROP_PX` of a picture's result.
    """
    models = [method for method in evaluation.methods if not method.is_baseline]
    folders = [method.name for method in evaluation.methods if method.files is not None]
    shown = dataset.pictures_at(max(evaluation.steps))[:GRID_PICTURES]
    paths = []
    for method in models:
        rows = [_grid_row(evaluation, dataset, method, picture) for picture in shown]
        labels = ["LQ", *folders, *map(steps_text, evaluation.steps)]
        labels = [*labels, "HQ"] if dataset.has_hq else [labels[0], "Lanczos", *labels[1:]]
        suffix = f"_{method.name}" if len(models) > 1 else ""
        paths.append(folder / f"grid_{dataset.name}{suffix}.jpg")
        save_grid(rows, labels, paths[-1], cell_px=GRID_CROP_PX)
    return paths


def _grid_row(evaluation: Evaluation, dataset: EvalDataset, method: Method, picture: EvalPicture) -> list[np.ndarray]:
    lr, hq = picture.read()
    folders = [other for other in evaluation.methods if other.files is not None]
    keys = [result_key(dataset, folder, 0, picture) for folder in folders]
    keys += [result_key(dataset, method, steps, picture) for steps in evaluation.steps]
    results = [evaluation.pictures.read(key) for key in keys]
    if hq is None:
        results = [enlarge(lr, picture.size, Image.Resampling.LANCZOS), *results]
    else:
        results.append(hq)
    window = [_middle(side, float(picture.scale)) for side in lr.shape[:2]]
    small = lr[tuple(slice(start, stop) for start, stop in window)]
    return [small, *(_crop(result, window, float(picture.scale)) for result in results)]


def _middle(side_px: int, scale: float) -> tuple[int, int]:
    """Start and stop, in LQ pixels, of the middle of a side that becomes GRID_CROP_PX."""
    length = min(side_px, max(1, round(GRID_CROP_PX / scale)))
    start = (side_px - length) // 2
    return start, start + length


def _crop(result: np.ndarray, window: list[tuple[int, int]], scale: float) -> np.ndarray:
    return result[tuple(slice(round(start * scale), round(stop * scale)) for start, stop in window)]
