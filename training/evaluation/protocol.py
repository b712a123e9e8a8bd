"""The fixed protocol on held-out photographs: the pairs, the means of each half, the table of the splits.

See docs/decisions.md#evaluation-protocol.

Tune on the first 12 pictures; report the other 12 and all of them apart. Many steps are slow, so more than
`FEW_PICTURES_FROM` steps run on the first 8 only, and every method is also reported on those 8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEW_PICTURES = 8
FEW_PICTURES_FROM = 16
SPLITS = (
    ("first 8", slice(0, FEW_PICTURES)),
    ("first 12", slice(0, 12)),
    ("last 12", slice(12, None)),
    ("all", slice(0, None)),
)
FLAT_RATIO = "flat_ratio"
_FLAT_KEYS = ("flat_gradient", "hq_flat_gradient")
_FLAT_FLOOR = 0.25  # 8-bit levels


@dataclass(frozen=True)
class Row:
    """The scores of one method: metric name -> one value per picture, in the order of the pairs."""

    name: str
    scores: dict[str, list[float]]


def mean_score(scores: Mapping[str, Sequence[float]], metric: str, part: slice = slice(None)) -> float:
    """Mean of one metric over a part of the pictures.

    The metric "flat_ratio" is the geometric mean of flat_gradient over hq_flat_gradient: a plain mean would be decided
    by the few pictures that have no flat part. Both are at least `_FLAT_FLOOR`, under which 8-bit rounding decides.
    """
    if metric != FLAT_RATIO:
        return float(np.mean(np.array(scores[metric])[part]))
    flat, original = (np.maximum(scores[key], _FLAT_FLOOR) for key in _FLAT_KEYS)
    return float(np.exp(np.mean(np.log(flat / original)[part])))


def split_means(rows: Sequence[Row], metric: str) -> dict[str, dict[str, float]]:
    """Means of one metric: split name -> row name -> mean. A row is left out of a split that it does not cover."""
    total = max(len(row.scores["psnr_y"]) for row in rows)
    needed = _FLAT_KEYS if metric == FLAT_RATIO else (metric,)
    means: dict[str, dict[str, float]] = {}
    for split, part in SPLITS:
        wanted = range(total)[part]
        for row in rows:
            count = min(len(row.scores.get(key, [])) for key in needed)
            if len(wanted) and count > wanted[-1]:
                means.setdefault(split, {})[row.name] = mean_score(row.scores, metric, part)
    return means


def markdown_table(rows: Sequence[Row]) -> str:
    """All means as a Markdown table; "flat" is the gradient on the originals' flattest tenth, "flat / HQ" its ratio."""
    columns = (
        ("PSNR-Y", "psnr_y", ".2f"), ("SSIM-Y", "ssim_y", ".4f"), ("LPIPS-squeeze", "lpips_squeeze", ".4f"),
        ("GMSD", "gmsd", ".4f"), ("NIQE", "niqe", ".2f"), ("gradient", "gradient", ".2f"),
        ("flat", "flat_gradient", ".2f"), ("flat / HQ", "flat_ratio", ".2f"),
    )  # fmt: skip
    means = {metric: split_means(rows, metric) for _, metric, _ in columns}
    lines = ["| pictures | method | " + " | ".join(title for title, _, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for split, names in means["psnr_y"].items():
        for name in names:
            cells = []
            for _, metric, digits in columns:
                value = means[metric].get(split, {}).get(name)
                cells.append("-" if value is None else format(value, digits))
            lines.append(f"| {split} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
