"""A tiny evaluation: pictures of 48 px, pairs on disk, and a method that counts what it is asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from teasr_core.image.target_size import TargetSize
from training.evaluation.datasets import LIST, EvalDataset, EvalPicture
from training.evaluation.metrics.registry import Metrics, own_metrics
from training.evaluation.models import EvalSettings
from training.evaluation.result_store import ResultStore
from training.evaluation.run import Evaluation, Method, baseline_methods, enlarge
from training.evaluation.scores import ScoreFile


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 with soft structure and a little grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3), dtype=np.uint8))
    grain = rng.integers(-4, 5, (height, width, 3))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def shrunk(hq: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(hq).resize((width, height), Image.Resampling.BOX))


def dataset(count: int = 2, layout: str = LIST, side: int = 96, name: str = "tiny") -> EvalDataset:
    """Pictures in memory, x4."""
    pictures = []
    for index in range(count):
        hq = smooth(side, side, index)
        lr = shrunk(hq, side // 4, side // 4)
        pictures.append(
            EvalPicture(f"p{index}", TargetSize(side, side), Fraction(4), f"id{index}", lambda lr=lr, hq=hq: (lr, hq))
        )
    return EvalDataset(name, layout, tuple(pictures))


def write_pairs(
    folder: Path, count: int = 2, lr_name: str = "test_LR", hr_name: str = "test_HR", side: int = 96
) -> Path:
    """`count` pairs x4 on disk, named 0.png and so on."""
    for name in (lr_name, hr_name):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        hq = smooth(side, side, index)
        Image.fromarray(hq).save(folder / hr_name / f"{index}.png")
        Image.fromarray(shrunk(hq, side // 4, side // 4)).save(folder / lr_name / f"{index}.png")
    return folder


class Counter:
    """A real method: bicubic enlargement, a little lighter with each step. It remembers its calls, and may stop."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[int] = []
        self.loads = 0
        self.stop_after = stop_after

    def load(self) -> Counter:
        self.loads += 1
        return self

    def __call__(self, lr: np.ndarray, size: TargetSize, steps: int) -> np.ndarray:
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(steps)
        return np.minimum(enlarge(lr, size, Image.Resampling.BICUBIC), 250) + np.uint8(min(steps, 5))

    def method(self, name: str = "ours", model_id: str = "a", **settings: object) -> Method:
        return Method(name, model_id, EvalSettings(**settings), self.load)


def evaluation(
    folder: Path,
    *methods: Method,
    datasets: tuple[EvalDataset, ...] | None = None,
    steps: tuple[int, ...] = (1, 2),
    metrics: Metrics | None = None,
    **options: object,
) -> Evaluation:
    """An evaluation in `folder`, with the baselines. The scores are read anew, as by another process."""
    return Evaluation(
        datasets=(dataset(),) if datasets is None else datasets,
        methods=(*baseline_methods(), *methods),
        steps=steps,
        metrics=metrics or own_metrics(),
        scores=ScoreFile(folder / "scores.csv"),
        pictures=ResultStore(folder / "pictures"),
        **{"kept_pictures": 1} | options,
    )
