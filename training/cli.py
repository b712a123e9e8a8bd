"""Command line: `python -m training pretrain | export | eval` (SPEC 12). `distill` takes its place beside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from teasr_core.cli import OneLineParser, one_line
from teasr_core.errors import TeasrError


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except TeasrError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m training", description="Train and measure TEASR models.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)

    pretrain = commands.add_parser("pretrain", help="train a small base from scratch; resumes from run.output_dir")
    pretrain.add_argument("config", type=Path)
    pretrain.add_argument("overrides", nargs="*", metavar="section.key=value")
    pretrain.set_defaults(run=_pretrain)

    export = commands.add_parser("export", help="write a run's weights as a base file")
    export.add_argument("run_dir", type=Path)
    export.add_argument("output", type=Path)
    export.add_argument("--weights", choices=["ema", "raw"], default="ema", help="averaged, or the last step's")
    export.set_defaults(run=_export)

    evaluate = commands.add_parser("eval", help="table and picture grid on held-out photographs (SPEC 13)")
    evaluate.add_argument("photographs", type=Path, help="folder of eval_dev")
    evaluate.add_argument("output", type=Path, help="folder for table.md and grid.jpg")
    evaluate.add_argument("--preset", choices=["light", "heavy"], default="light")
    evaluate.add_argument("--steps", default="1,2,4,8,30")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--dtype", default="auto")
    evaluate.add_argument("--tile-px", type=int, default=0)
    evaluate.add_argument("--base", type=Path, help="a base file in place of the shipped one")
    evaluate.add_argument("--color-fix", default="off", help="measure the model itself by default")
    evaluate.add_argument("--lpips-backbone", type=Path, help="squeezenet1_1_features.safetensors; absent = no LPIPS")
    evaluate.add_argument("--niqe-params", type=Path, help="niqe_pris_params.npz; absent = no NIQE")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _pretrain(args: argparse.Namespace) -> int:
    from .config import load_config
    from .pretrain import Pretrainer

    trainer = Pretrainer(load_config(args.config, args.overrides))
    trainer.train()
    return 0


def _export(args: argparse.Namespace) -> int:
    from .export import export_base

    summary = export_base(args.run_dir, args.output, args.weights)
    print(f"wrote {args.output}: {summary['steps']} steps, {summary['hours']} h")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .eval_builtin import evaluate_builtin

    return evaluate_builtin(args)
