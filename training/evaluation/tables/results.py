"""results.json: the means of an evaluation and all that is needed to draw its tables and its plot again."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from teasr_core.errors import InputError
from teasr_core.sampling.schedule import steps_text
from teasr_core.whole_file import write_whole

from ..datasets import LIST, EvalDataset, Skipped
from ..metrics.columns import COLUMNS, column
from ..metrics.registry import Absent
from ..protocol import FLAT_RATIO, Row, mean_score
from ..run import Evaluation, Method, result_key, rows_of, set_key

FORMAT = 1
PACKAGES = ("teasr", "torch", "numpy", "pillow", "opencv-python-headless", "scipy", "diffusers", "lpips", "pyiqa")


@dataclass(frozen=True)
class ResultRow:
    """The means of one method at one number of steps (0: a baseline). A metric without a value is not in `means`."""

    model: str
    steps: int
    means: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Rows that can be compared because they cover the same first `pictures` pictures."""

    pictures: int
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True)
class DatasetResult:
    """groups: all pictures with the rows that cover them and, where a row covers fewer, the fewer with all rows."""

    name: str
    layout: str
    scale: str
    pictures: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    absent: tuple[Absent, ...]
    groups: tuple[Group, ...]

    def means(self, model: str) -> dict[int, Mapping[str, float]]:
        """Steps -> metric -> mean, over the pictures that every number of steps covers."""
        return {row.steps: row.means for row in self.groups[-1].rows if row.model == model}


@dataclass(frozen=True)
class Results:
    """An evaluation. `models` and `made_with` inform the reader: files with their hashes, settings, versions."""

    datasets: tuple[DatasetResult, ...]
    models: tuple[Mapping[str, Any], ...] = ()
    made_with: Mapping[str, Any] | None = None

    def dataset(self, name: str) -> DatasetResult:
        """The dataset of this name. Raises InputError where there is none."""
        for one in self.datasets:
            if one.name == name:
                return one
        raise InputError(f"results: found no dataset '{name}', expected one of {[one.name for one in self.datasets]}")


def collect(evaluation: Evaluation, dataset: EvalDataset) -> DatasetResult:
    """Compute the means of the scores of this evaluation."""
    rows = rows_of(evaluation, dataset)
    counts = {len(dataset.pictures_at(steps)) for _, steps in rows}
    absent = list(evaluation.metrics.absent_from(dataset.has_hq))
    groups = []
    for count in sorted(counts, reverse=True):
        if count not in (max(counts), min(counts)):
            continue
        covering = [(method, steps) for method, steps in rows if len(dataset.pictures_at(steps)) >= count]
        found = []
        for method, steps in covering:
            means = _means(evaluation, dataset, method, steps, count, absent)
            found.append(ResultRow(method.name, steps, means))
        groups.append(Group(count, tuple(found)))
    return DatasetResult(
        dataset.name, dataset.layout, dataset.scale_text(), tuple(picture.name for picture in dataset.pictures),
        dataset.skipped, tuple(dict.fromkeys(absent)), tuple(groups),
    )  # fmt: skip


def split_rows(evaluation: Evaluation, dataset: EvalDataset) -> list[Row]:
    """The rows of the fixed protocol's table of splits; empty for a dataset without originals."""
    if not dataset.has_hq or dataset.layout != LIST:
        return []
    names = {method.name for method in evaluation.methods if not method.is_baseline}
    rows = []
    for method, steps in rows_of(evaluation, dataset):
        label = steps_text(steps) if steps else method.name
        if steps and len(names) > 1:
            label = f"{method.name}, {label}"
        rows.append(Row(label, _scores(evaluation, dataset, method, steps, len(dataset.pictures), [])))
    return rows


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that decide the values."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_results(results: Results, path: Path) -> None:
    """Write results.json. Infinity (the PSNR of equal pictures) is the text "inf", which JSON has no number for."""
    content = {"format": FORMAT, "columns": [asdict(one) for one in COLUMNS], **asdict(results)}
    write_whole((json.dumps(_to_json(content), indent=1, allow_nan=False) + "\n").encode(), path)


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote. Raises InputError for a file that is missing or of another kind."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        datasets = tuple(_dataset_from_json(one) for one in content["datasets"])
        return Results(datasets, tuple(content["models"]), content["made_with"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no results.json of this version ({type(error).__name__}: {error}): run `eval` again"
        ) from None


def _means(
    evaluation: Evaluation, dataset: EvalDataset, method: Method, steps: int, count: int, absent: list[Absent]
) -> dict[str, float]:
    scores = _scores(evaluation, dataset, method, steps, count, absent)
    means = {key: mean_score(scores, key) for key in scores}
    if {"flat_gradient", "hq_flat_gradient"} <= scores.keys():
        means[FLAT_RATIO] = mean_score(scores, FLAT_RATIO)
    keys = [result_key(dataset, method, steps, picture) for picture in dataset.pictures[:count]]
    for metric in evaluation.metrics.sets if dataset.has_hq and count == len(dataset.pictures) else ():
        score = evaluation.scores.get(set_key(keys), metric.key, metric.metric_id)
        if score is not None and score.value is not None:
            means[metric.key] = score.value
        elif score is not None:
            absent.append(Absent(metric.key, f"no value for {_row_text(method, steps)}: {score.note}"))
    return means


def _scores(
    evaluation: Evaluation, dataset: EvalDataset, method: Method, steps: int, count: int, absent: list[Absent]
) -> dict[str, list[float]]:
    """Metric -> one value for each picture. A metric that lacks any is left out, and the reason goes to `absent`."""
    pictures = dataset.pictures_at(steps)[:count]
    found: dict[str, list[float]] = {}
    for metric in evaluation.metrics.of(dataset.has_hq):
        scores = [
            evaluation.scores.get(result_key(dataset, method, steps, picture), metric.key, metric.metric_id)
            for picture in pictures
        ]
        values = [score.value for score in scores if score is not None and score.value is not None]
        if len(values) == len(pictures):
            found[metric.key] = values
            continue
        first = next(score for score in scores if score is None or score.value is None)
        where = f"{_row_text(method, steps)}, {len(pictures) - len(values)} of {len(pictures)} pictures"
        note = f"{first.result.picture}: {first.note}" if first is not None else "not computed yet"
        absent.append(Absent(metric.key, f"no value for {where}, first {note}"))
    return found


def _row_text(method: Method, steps: int) -> str:
    return f"{method.name} at {steps_text(steps)}" if steps else method.name


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _to_json(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_json(one) for one in value]
    return value


def _dataset_from_json(content: Mapping[str, Any]) -> DatasetResult:
    groups = []
    for group in content["groups"]:
        rows = [
            ResultRow(row["model"], row["steps"], {key: float(value) for key, value in row["means"].items()})
            for row in group["rows"]
        ]
        groups.append(Group(group["pictures"], tuple(rows)))
    for absent in content["absent"]:
        column(absent["metric"])
    return DatasetResult(
        content["name"], content["layout"], content["scale"], tuple(content["pictures"]),
        tuple(Skipped(**one) for one in content["skipped"]),
        tuple(Absent(**one) for one in content["absent"]), tuple(groups),
    )  # fmt: skip
