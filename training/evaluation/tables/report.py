"""Tables of an evaluation in Markdown, in the form of the paper's Tables 1 and 2: a row for each model and steps."""

from __future__ import annotations

from collections.abc import Sequence

from ..metrics.columns import COLUMNS, HIDDEN, Column, best_values, column
from ..protocol import Row, markdown_table
from ..run import HQ
from .results import DatasetResult, Group

NOTES = {
    "fid": "over few pictures FID is biased upwards; compare it only between rows of one table",
    "lpips_squeeze": "does not compare with LPIPS on AlexNet",
    "flat_ratio": "gradient on the originals' flattest tenth against their own: far above 1 is left-over noise",
    "grid_peak": "strongest spectral line of an 8 px lattice against the frequencies around it; 1 is none",
}


def dataset_report(result: DatasetResult, splits: Sequence[Row] = ()) -> str:
    """The text of `table_<dataset>.md`: a table for each group of rows, the absent metrics, the protocol's splits."""
    parts = [f"# {result.name}: {len(result.pictures)} pictures, {result.scale}\n"]
    for group in result.groups:
        if len(result.groups) > 1:
            which = "all" if group.pictures == len(result.pictures) else "the first"
            parts.append(f"## On {which} {group.pictures} pictures\n")
        parts.append(paper_table(group))
    parts.append(_footer(result))
    if splits:
        parts.append("## Splits\n")
        parts.append(markdown_table(splits))
    return "\n".join(part for part in parts if part)


def paper_table(group: Group) -> str:
    """One row for each model and number of steps, baselines first; arrows show what is better, bold shows the best.

    The originals never count as the best. A metric that no row has gets no column; one that a row lacks is "-".
    """
    columns = shown_columns(group)
    rows = [["model", "steps", *(one.heading for one in columns)], ["---"] * (2 + len(columns))]
    cells = [cells_of(one, [row.means.get(one.key) for row in group.rows], group) for one in columns]
    for index, row in enumerate(group.rows):
        rows.append([row.model, str(row.steps) if row.steps else "-", *(texts[index] for texts in cells)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def shown_columns(group: Group) -> list[Column]:
    """The columns that any row has a value for, left to right."""
    found = {key for row in group.rows for key in row.means}
    return [one for one in COLUMNS if one.key in found and one.key not in HIDDEN]


def cells_of(which: Column, values: list[float | None], group: Group) -> list[str]:
    """The texts of one column, the best in bold."""
    candidates = [None if row.model == HQ else value for row, value in zip(group.rows, values, strict=True)]
    best = best_values(candidates, which)
    return [f"**{which.text(value)}**" if bold else which.text(value) for value, bold in zip(values, best, strict=True)]


def _footer(result: DatasetResult) -> str:
    shown = {one.key for group in result.groups for one in shown_columns(group)}
    lines = [f"- {column(key).title}: {note}." for key, note in NOTES.items() if key in shown]
    by_reason: dict[str, list[str]] = {}
    for one in result.absent:
        by_reason.setdefault(one.reason, []).append(column(one.metric).title)
    lines += [f"- absent: {', '.join(titles)} ({reason})" for reason, titles in by_reason.items()]
    if result.skipped:
        names = "; ".join(f"{one.name} ({one.reason})" for one in result.skipped)
        lines.append(f"- {len(result.skipped)} files skipped: {names}")
    return "\n".join(lines) + "\n" if lines else ""
