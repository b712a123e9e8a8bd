"""`eval`: the built-in model against bicubic and Lanczos on held-out photographs, as a table and a picture grid."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from teasr_core import builtin
from teasr_core.errors import InputError
from teasr_core.geometry import TargetSize
from teasr_core.precision import choose_dtype
from teasr_core.restore import RestoreOptions
from teasr_core.schedule import check_steps, manual_plan
from teasr_core.standalone import Restorer, load_restorer

from .degradation import PRESETS
from .evaluate import baseline_rows, evaluate, load_eval_pairs, markdown_table
from .picture_grid import save_grid

GRID_PICTURES = 6
GRID_CROP = slice(128, 384)


def evaluate_builtin(args: argparse.Namespace) -> int:
    """Write `table_<preset>.md` and `grid_<preset>.jpg` into args.output and print the table."""
    steps_list = _steps_list(args.steps)
    perceptual = None
    if args.lpips_backbone is not None:
        from .lpips_metric import LpipsSqueeze

        perceptual = LpipsSqueeze(args.lpips_backbone)
    pairs = load_eval_pairs(args.photographs, PRESETS[args.preset], args.seed)
    restorer = _restorer(args)
    kept: dict[tuple[str, int], np.ndarray] = {}

    def restore_picture(lr: np.ndarray, scale: int, steps: int) -> np.ndarray:
        image = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
        size = TargetSize(lr.shape[1] * scale, lr.shape[0] * scale)
        options = RestoreOptions(size, color_fix=args.color_fix)
        restored = restorer.restore(image, options, manual_plan(steps), args.seed, tile_px=args.tile_px)
        return (restored[0] * 255).round().byte().permute(1, 2, 0).numpy()

    rows = baseline_rows(pairs, args.niqe_params, perceptual)
    rows += evaluate(
        restore_picture, pairs, steps_list, args.niqe_params, perceptual,
        keep=lambda steps, name, picture: kept.__setitem__((name, steps), picture),
    )  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    table = markdown_table(rows)
    (args.output / f"table_{args.preset}.md").write_text(table, encoding="utf-8")
    shown = [pair for pair in pairs if all((pair.name, n) in kept for n in steps_list)][:GRID_PICTURES]
    grid = [
        [np.kron(p.lr[32:96, 32:96], np.ones((4, 4, 1), np.uint8))]
        + [kept[p.name, n][GRID_CROP, GRID_CROP] for n in steps_list]
        + [p.hq[GRID_CROP, GRID_CROP]]
        for p in shown
    ]
    labels = ["LQ", *(f"{n} step{'s' if n > 1 else ''}" for n in steps_list), "HQ"]
    save_grid(grid, labels, args.output / f"grid_{args.preset}.jpg")
    print(table)
    return 0


def _restorer(args: argparse.Namespace) -> Restorer:
    if args.base is None:
        return load_restorer(args.dtype)
    base = builtin.read_base(Path(args.base))
    dtype = choose_dtype(args.dtype, torch.device("cpu"))
    return Restorer(base, builtin.build_velocity(base, dtype=dtype), dtype)


def _steps_list(text: str) -> list[int]:
    try:
        return [check_steps(int(part)) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--steps is '{text}': expected whole numbers with commas, such as 1,2,4,8") from None
