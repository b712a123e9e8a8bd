"""metrics_vs_steps.png: a panel for each metric, a line for each model, a dashed line for each method without steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..metrics.columns import NEITHER, Column
from ..run import BASELINES, HQ
from .report import shown_columns
from .results import DatasetResult, Results

PANELS_ACROSS = 4
PANEL_INCHES = (3.2, 2.4)


def save_plot(results: Results, path: Path) -> None:
    """Draw a block of panels for each dataset, over the pictures that every row covers, so that rows compare."""
    import matplotlib.figure  # an optional package; pyplot would choose a window system

    blocks = [(result, shown_columns(result.groups[-1])) for result in results.datasets]
    heights = [math.ceil(len(columns) / PANELS_ACROSS) for _, columns in blocks]
    size = (PANEL_INCHES[0] * PANELS_ACROSS, PANEL_INCHES[1] * sum(heights) + 0.6 * len(blocks))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
    for (result, columns), part, height in zip(blocks, parts, heights, strict=True):
        part.suptitle(f"{result.name}, {result.scale}, {result.groups[-1].pictures} pictures")
        panels = part.subplots(height, PANELS_ACROSS, squeeze=False).flatten()
        for panel, which in zip(panels, columns, strict=False):
            _draw_panel(panel, result, which)
        for panel in panels[len(columns) :]:
            panel.axis("off")
        lines = {
            label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        part.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, format="png", dpi=110)


def curves(result: DatasetResult, which: Column) -> dict[str, tuple[list[int], list[float]]]:
    """Model -> (steps in rising order, their means). Values that are missing or infinite are left out."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted((row for row in result.groups[-1].rows if row.steps), key=lambda row: row.steps):
        value = row.means.get(which.key)
        if value is not None and math.isfinite(value):
            steps, values = lines.setdefault(row.model, ([], []))
            steps.append(row.steps)
            values.append(value)
    return lines


def baselines(result: DatasetResult, which: Column) -> dict[str, float]:
    """The means of the rows without steps. Those of the originals only where they are not perfect by definition."""
    found = {}
    for row in result.groups[-1].rows:
        value = row.means.get(which.key)
        is_trivial = row.model == HQ and which.needs_hq and which.better != NEITHER
        if not row.steps and value is not None and not is_trivial:
            found[row.model] = value
    return found


def _draw_panel(panel: Any, result: DatasetResult, which: Column) -> None:
    ticks = set()
    for model, (steps, values) in curves(result, which).items():
        panel.plot(steps, values, marker="o", markersize=3.5, label=model)
        ticks.update(steps)
    lines = baselines(result, which)
    colors = {name: f"C{9 - index}" for index, name in enumerate(name for name in lines if name not in BASELINES)}
    colors |= dict(zip(BASELINES, ("0.45", "0.65", "black"), strict=True))
    for name, value in lines.items():
        panel.axhline(value, linestyle="--", linewidth=1, color=colors[name], label=name)
    panel.set_title(which.heading, fontsize=9)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted(ticks), [str(step) for step in sorted(ticks)])
    panel.minorticks_off()
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.25)
