"""The evaluation itself: datasets x methods x steps, one picture at a time.

Each score is on the disk before the next picture is begun, and what scores.csv holds already is not computed again:
an evaluation that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from teasr_core.cli.progress import progress_bar
from teasr_core.errors import InputError
from teasr_core.image.target_size import TargetSize
from teasr_core.picture_files.read import read_rgb

from .datasets import EvalDataset, EvalPicture
from .metrics.registry import Metric, Metrics
from .models import EvalModel, EvalSettings, RestoreFn
from .picture_folders import PictureFolder
from .result_store import ResultStore
from .scores import ResultKey, Score, ScoreFile

HQ = "HQ"
ENLARGEMENTS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
BASELINES = (*ENLARGEMENTS, HQ)
_NO_SETTINGS = EvalSettings(dtype="", color_fix="")  # of what no model makes


@dataclass(frozen=True, eq=False)
class Method:
    """What makes results: a model, or a baseline, which has no steps. load() is called once, when it is needed.

    files: the results themselves by picture_id, where they were made elsewhere; such a method is a baseline.
    """

    name: str
    model_id: str
    settings: EvalSettings
    load: Callable[[], RestoreFn]
    is_baseline: bool = False
    files: Mapping[str, Path] | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """One result to make or to score."""

    key: ResultKey
    method: Method
    picture: EvalPicture
    metrics: tuple[Metric, ...]
    is_kept: bool

    @property
    def work(self) -> float:
        """Roughly proportional to the time: pixels, once for each step and once for the metrics."""
        return self.picture.size.width * self.picture.size.height * (self.key.steps + 1.0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Methods, datasets and metrics, and where results go. kept_pictures: how many of a dataset to keep, for grids."""

    datasets: tuple[EvalDataset, ...]
    methods: tuple[Method, ...]
    steps: tuple[int, ...]
    metrics: Metrics
    scores: ScoreFile
    pictures: ResultStore
    kept_pictures: int = 6
    use_all_pictures: bool = False

    def keeps_all(self, dataset: EvalDataset) -> bool:
        return self.use_all_pictures or (dataset.has_hq and bool(self.metrics.sets))


def model_method(model: EvalModel, settings: EvalSettings) -> Method:
    return Method(model.name, model.model_id, settings, lambda: model.load(settings))


def folder_method(folder: PictureFolder) -> Method:
    return Method(folder.name, folder.model_id, _NO_SETTINGS, _no_restore, is_baseline=True, files=folder.files)


def baseline_methods() -> list[Method]:
    """Bicubic and Lanczos enlargement by Pillow, and the originals where a dataset has them."""
    methods = [
        Method(name, f"pil-{name}", _NO_SETTINGS, lambda name=name: _enlargement(name), is_baseline=True)
        for name in ENLARGEMENTS
    ]
    return [*methods, Method(HQ, "original", _NO_SETTINGS, _no_restore, is_baseline=True)]


def enlarge(lr: np.ndarray, size: TargetSize, resampling: Image.Resampling) -> np.ndarray:
    """Resize (h, w, 3) uint8 to (H, W, 3) uint8 by Pillow."""
    return np.array(Image.fromarray(lr).resize((size.width, size.height), resampling))


def rows_of(evaluation: Evaluation, dataset: EvalDataset) -> list[tuple[Method, int]]:
    """The rows (method, steps) in the order of the tables."""
    baselines = [method for method in evaluation.methods if method.is_baseline]
    rows = [(method, 0) for method in baselines if method.name != HQ or dataset.has_hq]
    return rows + [(method, n) for method in evaluation.methods if not method.is_baseline for n in evaluation.steps]


def result_key(dataset: EvalDataset, method: Method, steps: int, picture: EvalPicture) -> ResultKey:
    made = method.settings
    return ResultKey(
        dataset.name, method.name, steps, picture.name, method.model_id,
        made.seed, made.dtype, made.tile_px, made.color_fix, picture.picture_id,
    )  # fmt: skip


def set_key(keys: Sequence[ResultKey]) -> ResultKey:
    """The key of a metric of the whole set of these results."""
    digest = hashlib.sha256("".join(key.picture_id for key in keys).encode()).hexdigest()[:16]
    return replace(keys[0], picture="", picture_id=digest)


def all_jobs(evaluation: Evaluation) -> list[Job]:
    """Every result, sorted by model, so that only one model is in memory at a time."""
    jobs = []
    for method in evaluation.methods:
        for dataset in evaluation.datasets:
            metrics = evaluation.metrics.of(dataset.has_hq)
            for steps in (n for row, n in rows_of(evaluation, dataset) if row is method):
                for index, picture in enumerate(dataset.pictures_at(steps)):
                    is_kept = evaluation.keeps_all(dataset) or index < evaluation.kept_pictures
                    key = result_key(dataset, method, steps, picture)
                    jobs.append(Job(key, method, picture, metrics, is_kept))
    return jobs


def run_evaluation(evaluation: Evaluation, show_progress: bool = True) -> int:
    """Compute what is missing. Returns how many pictures had to be made.

    Raises the errors of the methods. A metric without a value for a picture is recorded with the reason.
    """
    todo = [job for job in all_jobs(evaluation) if _is_missing(job, evaluation)]
    made = 0
    loaded: tuple[Method | None, RestoreFn] = (None, _no_restore())
    with progress_bar(sum(job.work for job in todo), show_progress and bool(todo)) as bar:
        for job in todo:
            if loaded[0] is not job.method and not evaluation.pictures.has(job.key):
                loaded = (job.method, job.method.load())
            made += _do(job, evaluation, loaded[1])
            steps = f", {job.key.steps} steps" if job.key.steps else ""
            bar.set_description_str(f"{job.key.dataset}, {job.key.model}{steps}, {job.key.picture}", refresh=False)
            bar.update(job.work)
    _score_sets(evaluation)
    return made


def _is_missing(job: Job, evaluation: Evaluation) -> bool:
    if job.is_kept and not evaluation.pictures.has(job.key):
        return True
    return bool(_missing_metrics(job.key, job.metrics, evaluation.scores))


def _missing_metrics(key: ResultKey, metrics: Iterable[Metric], scores: ScoreFile) -> list[Metric]:
    return [metric for metric in metrics if scores.get(key, metric.key, metric.metric_id) is None]


def _do(job: Job, evaluation: Evaluation, restore: RestoreFn) -> int:
    lr, hq = job.picture.read()
    is_made = not evaluation.pictures.has(job.key)
    if not is_made:
        result = evaluation.pictures.read(job.key)
    elif job.method.files is not None:
        result = read_rgb(job.method.files[job.picture.picture_id])
    elif job.method.name == HQ and job.method.is_baseline:
        assert hq is not None  # rows_of
        result = hq
    else:
        result = restore(lr, job.picture.size, job.key.steps)
    if is_made and job.is_kept:
        evaluation.pictures.write(job.key, result)
    missing = _missing_metrics(job.key, job.metrics, evaluation.scores)
    if missing:
        evaluation.scores.add([_measure(job.key, metric, result, hq) for metric in missing])
    return int(is_made)


def _measure(key: ResultKey, metric: Metric, result: np.ndarray, hq: np.ndarray | None) -> Score:
    try:
        return Score(key, metric.key, metric.metric_id, metric.measure(result, hq))
    except InputError as error:
        return Score(key, metric.key, metric.metric_id, None, str(error))


def _score_sets(evaluation: Evaluation) -> None:
    """Compute the metrics of whole sets, for the rows that cover their dataset."""
    hq = next(method for method in baseline_methods() if method.name == HQ)
    for dataset in (one for one in evaluation.datasets if one.has_hq):
        originals = [result_key(dataset, hq, 0, picture) for picture in dataset.pictures]
        for method, steps in rows_of(evaluation, dataset):
            keys = [result_key(dataset, method, steps, picture) for picture in dataset.pictures_at(steps)]
            for metric in evaluation.metrics.sets:
                key = set_key(keys)
                is_known = evaluation.scores.get(key, metric.key, metric.metric_id) is not None
                if is_known or len(keys) < len(originals):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    results, references = Path(folder, "results"), Path(folder, "originals")
                    evaluation.pictures.collect(keys, results)
                    evaluation.pictures.collect(originals, references)
                    try:
                        score = Score(key, metric.key, metric.metric_id, metric.measure(results, references))
                    except InputError as error:
                        score = Score(key, metric.key, metric.metric_id, None, str(error))
                evaluation.scores.add([score])


def _enlargement(name: str) -> RestoreFn:
    return lambda lr, size, steps: enlarge(lr, size, ENLARGEMENTS[name])


def _no_restore() -> RestoreFn:
    def restore(lr: np.ndarray, size: TargetSize, steps: int) -> np.ndarray:
        raise AssertionError("the originals and the results on the disk need no model")

    return restore
