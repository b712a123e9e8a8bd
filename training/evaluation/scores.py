"""scores.csv: one line for each picture and metric, written during the evaluation, so that a killed one can go on.

A score is used again only where all that decides its value is the same: the model's files, the number of steps, seed,
dtype, tile, colour fix, the pixels of the pair, and what the metric was computed with.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from teasr_core.errors import InputError

HEADER = (
    "dataset", "model", "steps", "picture", "metric", "value", "note",
    "model_id", "seed", "dtype", "tile_px", "color_fix", "picture_id", "metric_id",
)  # fmt: skip


@dataclass(frozen=True)
class ResultKey:
    """All that decides the pixels of one result. Baselines have 0 steps; picture "" stands for the whole dataset."""

    dataset: str
    model: str
    steps: int
    picture: str
    model_id: str
    seed: int
    dtype: str
    tile_px: int
    color_fix: str
    picture_id: str


@dataclass(frozen=True)
class Score:
    """The value of one metric for one result; None where the metric has no value, and then `note` says why."""

    result: ResultKey
    metric: str
    metric_id: str
    value: float | None
    note: str = ""


class ScoreFile:
    """The scores so far. Lines are added whole and reach the disk before the next picture is begun.

    Raises InputError for a file of another layout. A last line that is incomplete is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[ResultKey, str, str], Score] = {}
        if path.is_file():
            self._drop_cut_line()
            self._read()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, result: ResultKey, metric: str, metric_id: str) -> Score | None:
        return self._known.get((result, metric, metric_id))

    def add(self, scores: Sequence[Score]) -> None:
        """Append the scores to the file in one write, and remember them."""
        is_new = not self.path.is_file() or self.path.stat().st_size == 0
        rows = [HEADER] if is_new else []
        text = _to_csv([*rows, *(_to_row(score) for score in scores)])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        for score in scores:
            self._remember(score)

    def _remember(self, score: Score) -> None:
        self._known[score.result, score.metric, score.metric_id] = score

    def _drop_cut_line(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)

    def _read(self) -> None:
        with self.path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            found = next(rows, None)
            if found is not None and tuple(found) != HEADER:
                raise InputError(
                    f"{self.path} has the columns {found[:6]}..., expected {list(HEADER[:6])}...: "
                    "it was written by something else, choose another output folder"
                )
            for number, row in enumerate(rows, start=2):
                try:
                    self._remember(_from_row(row))
                except ValueError:
                    raise InputError(
                        f"{self.path}: line {number} is {row}, expected {len(HEADER)} columns as in the header; "
                        "delete the line, its score is computed again"
                    ) from None


def _to_row(score: Score) -> list[object]:
    values = dict(zip((field.name for field in fields(ResultKey)), astuple(score.result), strict=True))
    values |= {"metric": score.metric, "metric_id": score.metric_id, "note": " ".join(score.note.split())}
    values["value"] = "" if score.value is None else repr(score.value)  # repr: reads back as the same bits
    return [values[name] for name in HEADER]


def _from_row(row: Sequence[str]) -> Score:
    (
        dataset, model, steps, picture, metric, value, note,
        model_id, seed, dtype, tile_px, color_fix, picture_id, metric_id,
    ) = row  # fmt: skip
    key = ResultKey(
        dataset, model, int(steps), picture, model_id, int(seed), dtype, int(tile_px), color_fix, picture_id
    )
    return Score(key, metric, metric_id, float(value) if value else None, note)


def _to_csv(rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
