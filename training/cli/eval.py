"""`eval`: compare models on photographs, in tables, scores, a plot and picture grids."""

from __future__ import annotations

import argparse
from typing import Any

from teasr_core.cli.options import file_path, integer, number

from ..config.presets import config_file


def add_eval(commands: Any) -> None:
    """Add `eval` to the subparsers `commands`."""
    parser = commands.add_parser("eval", help="tables, plot and picture grids of models on photographs")
    parser.add_argument(
        "photographs", type=file_path, metavar="PHOTOGRAPHS",
        help="folder of the committed list's photographs, or one with test_LR and test_HR, or with LR and HR",
    )  # fmt: skip
    parser.add_argument(
        "output", type=file_path, metavar="OUTPUT", help="folder for what is written; goes on where it was"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--preset", help="light, heavy or light,heavy: degradation of the list's photographs")
    data.add_argument(
        "--lr", type=file_path, metavar="DIR", help="with --hr: low-quality halves, in PHOTOGRAPHS or anywhere"
    )
    data.add_argument("--hr", type=file_path, metavar="DIR", help="with --lr: the originals")
    data.add_argument(
        "--scale", type=number("scale"), help="PHOTOGRAPHS have no originals: enlarge them by this factor"
    )
    data.add_argument("--name", help="the dataset's name in file names; default: the folder's")
    model = parser.add_argument_group("models")
    model.add_argument(
        "--model", action="append", default=[], metavar="NAME=SPEC",
        help="repeatable; SPEC: builtin, builtin-base, a LoRA file, a base file, or BASE+LORA",
    )  # fmt: skip
    model.add_argument(
        "--pictures", action="append", default=[], metavar="NAME=DIR",
        help="repeatable; results made elsewhere: a folder with a picture of the same name and of the result's size "
        "for each of the dataset's",
    )  # fmt: skip
    model.add_argument("--base", type=file_path, help="a base file in place of the shipped one")
    model.add_argument(
        "--ablation", type=config_file, metavar="TOML",
        help="train what is missing of baseline, +DTC and +DTC+TAR, then compare them as in the paper's Table 3",
    )  # fmt: skip
    model.add_argument("--steps", default="1,2,4,8,30")
    model.add_argument("--seed", type=integer("seed"), default=0)
    model.add_argument("--dtype", default="auto")
    model.add_argument("--tile-px", type=integer("tile-px"), default=0)
    model.add_argument("--color-fix", default="off", help="measure the model itself by default")
    metric = parser.add_argument_group("metrics")
    metric.add_argument(
        "--lpips-backbone", type=file_path, help="squeezenet1_1_features.safetensors; absent = no LPIPS"
    )
    metric.add_argument("--niqe-params", type=file_path, help="niqe_pris_params.npz; absent = no NIQE")
    metric.add_argument("--pyiqa", default="all", help="all, none, or a list; only with weights that are on the disk")
    metric.add_argument("--save-pictures", action="store_true", help="keep every result as PNG, not only the grids'")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from .eval_run import evaluate_command

    return evaluate_command(args)
