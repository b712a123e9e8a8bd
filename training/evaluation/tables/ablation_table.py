"""The paper's Table 3: what DTC and TAR each add, at one step and at several, with the patch grid's peak.

Pure: result sets in, Markdown out. Each arm trains a base of its own with its own `dtc`
(docs/decisions.md#ablation-bases).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from teasr_core.errors import InputError
from teasr_core.sampling.schedule import steps_text

from ..metrics.columns import Column, best_values, column
from .results import Results

# The paper prints PSNR, LPIPS, MUSIQ and NIQE; what stands in for them where they are absent comes beside them.
METRICS = ("psnr_y", "lpips", "lpips_squeeze", "gmsd", "musiq", "niqe", "niqe_pyiqa", "grid_peak")
GRID_LIMIT = 1.2  # R18: against a codec round trip alone


@dataclass(frozen=True)
class ArmMeans:
    """One row of the table. means: steps -> metric -> mean; a metric without a value is not in it."""

    name: str
    means: Mapping[int, Mapping[str, float]]


def arm_means(name: str, results: Results, dataset: str, model: str) -> ArmMeans:
    """The means of one arm, over the pictures that every number of steps covers.

    Raises InputError for a dataset or a model that is not in the results.
    """
    means = results.dataset(dataset).means(model)
    if not means or 0 in means:
        raise InputError(f"ablation: found no model '{model}' in the results on '{dataset}'; give a --model's name")
    return ArmMeans(name, means)


def ablation_table(
    arms: Sequence[ArmMeans],
    steps: Sequence[int] = (1, 8),
    metrics: Sequence[str] = METRICS,
    codec_grid_peak: float | None = None,
) -> str:
    """Markdown in the form of Table 3: a row for each arm, the columns of one step, then those of several.

    The best of a column is bold. A metric that no arm has is named below as absent; one that an arm lacks is "-".
    codec_grid_peak: `grid_peak` of a codec round trip alone, for the limit of R18.
    Raises InputError for fewer than two arms, arms of one name, and steps that an arm was not measured at.
    """
    _check(arms, steps)
    shown = [column(key) for key in metrics if any(key in arm.means[n] for arm in arms for n in steps)]
    heads, columns = [], []
    for n in steps:
        for which in shown:
            heads.append(f"{steps_text(n)}: {which.heading}")
            columns.append(_cells(which, [arm.means[n].get(which.key) for arm in arms]))
    lines = [["arm", *heads], ["---"] * (1 + len(heads))]
    lines += [[arm.name, *(cells[index] for cells in columns)] for index, arm in enumerate(arms)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    notes = []
    absent = [column(key).title for key in metrics if column(key) not in shown]
    if absent:
        notes.append(f"- absent: {', '.join(absent)}")
    if codec_grid_peak is not None:
        limit = GRID_LIMIT * codec_grid_peak
        notes.append(f"- grid peak of a codec round trip alone: {codec_grid_peak:.2f}; R18 allows up to {limit:.2f}")
    return text + ("\n" + "\n".join(notes) + "\n" if notes else "")


def _cells(which: Column, values: list[float | None]) -> list[str]:
    best = best_values(values, which)
    return [f"**{which.text(value)}**" if bold else which.text(value) for value, bold in zip(values, best, strict=True)]


def _check(arms: Sequence[ArmMeans], steps: Sequence[int]) -> None:
    names = [arm.name for arm in arms]
    if len(arms) < 2 or len(set(names)) < len(names):
        raise InputError(f"ablation: found the arms {names}, expected at least two of different names")
    if not steps:
        raise InputError("ablation: found no number of steps, expected at least one, such as 1 and 8")
    for arm in arms:
        missing = [n for n in steps if n not in arm.means]
        if missing:
            raise InputError(
                f"ablation: arm '{arm.name}' was not measured at {missing} steps, only at {sorted(arm.means)}; "
                "evaluate it at them, or leave them out"
            )
