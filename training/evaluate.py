"""Evaluation on held-out photographs: fixed pairs, scores per picture, means per half, baselines, one table.

Tune on the first 12 pictures; report the other 12 and all of them apart. Many steps are slow, so more than
`FEW_PICTURES_FROM` steps run on the first 8 only, and every method is also reported on those 8.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from teasr_core.errors import InputError

from .degradation import Degradation, degrade
from .degradation_ops import to_uint8
from .eval_crops import CROP_PX, LIST_PATH, EvalCrop, read_eval_list
from .metrics import flat_gradient, gmsd, mean_gradient, psnr_y, ssim_y
from .niqe import niqe

SCALE = 4
FEW_PICTURES = 8
FEW_PICTURES_FROM = 16
SPLITS = (
    ("first 8", slice(0, FEW_PICTURES)),
    ("first 12", slice(0, 12)),
    ("last 12", slice(12, None)),
    ("all", slice(0, None)),
)
_FLAT_KEYS = ("flat_gradient", "hq_flat_gradient")
_FLAT_FLOOR = 0.25  # 8-bit levels

RestoreFn = Callable[[np.ndarray, int, int], np.ndarray]


@dataclass(frozen=True, eq=False)
class EvalPair:
    """One picture: lr (128, 128, 3) and hq (512, 512, 3), uint8 RGB."""

    name: str
    lr: np.ndarray
    hq: np.ndarray


@dataclass(frozen=True)
class Row:
    """The scores of one method: metric name -> one value per picture, in the order of the pairs."""

    name: str
    scores: dict[str, list[float]]


def load_eval_pairs(
    eval_dir: str | Path, preset: Degradation, seed: int = 0, list_path: str | Path = LIST_PATH
) -> list[EvalPair]:
    """The crops of the committed list with their degraded quarter-size versions, in the list's order.

    The i-th picture is degraded with `numpy.random.default_rng([seed, i])`, so it does not depend on the others.
    Raises InputError for a photograph that is missing or smaller than its crop.
    """
    pairs = []
    for index, crop in enumerate(read_eval_list(list_path)):
        hq = _read_crop(Path(eval_dir), crop)
        rng = np.random.default_rng([seed, index])
        lr = to_uint8(degrade(hq.astype(np.float32) / np.float32(255.0), preset, SCALE, rng))
        pairs.append(EvalPair(Path(crop.file).stem, lr, hq))
    return pairs


def score(
    pairs: Sequence[EvalPair],
    upscaled: Sequence[np.ndarray],
    niqe_params: str | Path | None = None,
    perceptual: torch.nn.Module | None = None,
) -> dict[str, list[float]]:
    """Scores of `upscaled`, (H, W, 3) uint8 of the HQ's size, one per pair; metric name -> one value per picture.

    psnr_y, ssim_y, gmsd, gradient, flat_gradient, hq_flat_gradient; niqe with `niqe_params` (path of the published
    model); lpips_squeeze with `perceptual` (an `LpipsSqueeze`). Raises InputError for another size or count.
    """
    if len(pairs) != len(upscaled):
        raise InputError(f"score: found {len(upscaled)} pictures for {len(pairs)} pairs, expected one each; pass both")
    scores: dict[str, list[float]] = {}
    for pair, picture in zip(pairs, upscaled, strict=True):
        values = {
            "psnr_y": psnr_y(picture, pair.hq),
            "ssim_y": ssim_y(picture, pair.hq),
            "gmsd": gmsd(picture, pair.hq),
            "gradient": mean_gradient(picture),
            "flat_gradient": flat_gradient(picture, pair.hq),
            "hq_flat_gradient": flat_gradient(pair.hq, pair.hq),
        }
        if perceptual is not None:
            values["lpips_squeeze"] = _perceptual_distance(perceptual, picture, pair.hq)
        if niqe_params is not None:
            values["niqe"] = niqe(picture, niqe_params)
        for metric, value in values.items():
            scores.setdefault(metric, []).append(value)
    return scores


def baseline_rows(
    pairs: Sequence[EvalPair], niqe_params: str | Path | None = None, perceptual: torch.nn.Module | None = None
) -> list[Row]:
    """Rows of bicubic and Lanczos (PIL) enlargement, and of the originals themselves."""
    rows = []
    for name, method in (("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)):
        upscaled = [enlarge(pair.lr, pair.hq.shape[1], pair.hq.shape[0], method) for pair in pairs]
        rows.append(Row(name, score(pairs, upscaled, niqe_params, perceptual)))
    rows.append(Row("HQ", score(pairs, [pair.hq for pair in pairs], niqe_params, perceptual)))
    return rows


def enlarge(lr: np.ndarray, width: int, height: int, method: Image.Resampling) -> np.ndarray:
    """PIL resize of (h, w, 3) uint8 to (height, width, 3) uint8."""
    return np.asarray(Image.fromarray(lr).resize((width, height), method))


def evaluate(
    restore_fn: RestoreFn,
    pairs: Sequence[EvalPair],
    steps_list: Sequence[int] = (1, 2, 4, 8, 30),
    niqe_params: str | Path | None = None,
    perceptual: torch.nn.Module | None = None,
    keep: Callable[[int, str, np.ndarray], None] | None = None,
) -> list[Row]:
    """Score `restore_fn(lr, scale, steps)` -> (512, 512, 3) uint8 at each number of steps; one row per number.

    keep: called as keep(steps, name, picture) for each result, to save it or to draw a grid. Errors as `score`.
    """
    rows = []
    for steps in steps_list:
        used = pairs[:FEW_PICTURES] if steps >= FEW_PICTURES_FROM else pairs
        upscaled = [restore_fn(pair.lr, SCALE, steps) for pair in used]
        if keep is not None:
            for pair, picture in zip(used, upscaled, strict=True):
                keep(steps, pair.name, picture)
        name = f"{steps} step{'s' if steps > 1 else ''}"
        rows.append(Row(name, score(used, upscaled, niqe_params, perceptual)))
    return rows


def split_means(rows: Sequence[Row], metric: str) -> dict[str, dict[str, float]]:
    """Means of one metric: split name -> row name -> mean. A row is left out of a split that it does not cover.

    The metric "flat_ratio" is the geometric mean of flat_gradient over hq_flat_gradient: a plain mean would be decided
    by the few pictures that have no flat part. Both are at least `_FLAT_FLOOR`, under which 8-bit rounding decides.
    """
    total = max(len(row.scores["psnr_y"]) for row in rows)
    means: dict[str, dict[str, float]] = {}
    for split, part in SPLITS:
        wanted = range(total)[part]
        for row in rows:
            if metric == "flat_ratio":
                flat, original = (np.maximum(row.scores[key], _FLAT_FLOOR) for key in _FLAT_KEYS)
                values = np.log(flat / original)
            else:
                values = np.array(row.scores.get(metric, []))
            if len(wanted) and len(values) > wanted[-1]:
                mean = float(np.mean(values[part]))
                means.setdefault(split, {})[row.name] = float(np.exp(mean)) if metric == "flat_ratio" else mean
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


def _perceptual_distance(perceptual: torch.nn.Module, a: np.ndarray, b: np.ndarray) -> float:
    device = next(perceptual.parameters()).device
    with torch.no_grad():
        return float(perceptual(_to_batch(a, device), _to_batch(b, device)))


def _to_batch(picture: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(picture, device=device, dtype=torch.float32)  # (H, W, 3)
    return tensor.permute(2, 0, 1)[None] / 127.5 - 1.0  # (1, 3, H, W)


def _read_crop(eval_dir: Path, crop: EvalCrop) -> np.ndarray:
    path = eval_dir / crop.file
    if not path.is_file():
        raise InputError(f"evaluation: found no photograph at {path}, expected those of the list; give their folder")
    with Image.open(path) as image:
        hq = np.asarray(image.convert("RGB"))[crop.y : crop.y + CROP_PX, crop.x : crop.x + CROP_PX]
    if hq.shape[:2] != (CROP_PX, CROP_PX):
        raise InputError(
            f"evaluation: {path} leaves {hq.shape[1]}x{hq.shape[0]} pixels at ({crop.x}, {crop.y}), expected "
            f"{CROP_PX} a side; use the photographs the list was made from"
        )
    return hq
