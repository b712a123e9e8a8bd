"""`degrade`: make LR/HR pairs of photographs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from teasr_core.cli.options import file_path, integer
from teasr_core.cli.terminal import write_line


def add_degrade(commands: Any) -> None:
    """Add `degrade` to the subparsers `commands`."""
    parser = commands.add_parser("degrade", help="make LR/HR pairs of photographs: OUT/test_HR, OUT/test_LR")
    parser.add_argument("input", type=file_path, metavar="IN", help="a folder of photographs, or one")
    parser.add_argument("output", type=file_path, metavar="OUT", help="a folder")
    parser.add_argument("--preset", choices=["light", "heavy"], default="light")
    parser.add_argument("--seed", type=integer("seed"), default=0, help="the i-th file by name has its own: (seed, i)")
    parser.add_argument("--scale", type=integer("scale"), default=4, help="how many times smaller LR is; default 4")
    parser.add_argument(
        "--crop-px", type=integer("crop-px"), metavar="PX", help="HR = the middle PX x PX; default: the whole picture"
    )
    parser.add_argument(
        "--list", type=file_path, metavar="TSV", help="crops of a list, such as training/data/eval_list.tsv"
    )
    parser.add_argument("--workers", type=integer("workers"), default=1, help="threads; the pairs do not depend on it")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.set_defaults(run=_degrade)


def _degrade(args: argparse.Namespace) -> int:
    from ..data.make_pairs import PairOptions, make_pairs
    from ..data.photographs import left_out_lines

    options = PairOptions(args.preset, args.seed, args.scale, args.crop_px, args.workers, args.overwrite)
    report = make_pairs(args.input, args.output, options, args.list, show_progress=True)
    for name, reason in report.skipped:
        write_line(f"skipped {name}: {reason}", sys.stderr)
    for line in [] if args.list else left_out_lines(str(args.input)):
        write_line(f"note: {line}", sys.stderr)
    note = f"; skipped {len(report.skipped)} (named above)" if report.skipped else ""
    write_line(f"wrote {len(report.names)} pairs into {args.output} (test_HR, test_LR){note}")
    return 0
