"""Command line: `python -m teasr_core upscale | compare | info | demo`. Names and defaults are the nodes'.

Exit code 0; 2 for bad input, with one line on stderr; 3 where some images of several failed, each named; 130 after an
interruption; 1 for a bug of ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..device import DTYPES
from ..errors import TeasrError
from ..sampling.auto_steps import DEFAULT_TOLERANCE
from ..sampling.schedule import MAX_STEPS, MIN_STEPS
from .exit_codes import BAD_INPUT, INTERRUPTED
from .options import (
    STEP_MODES,
    OneLineParser,
    add_look,
    add_model,
    add_reading,
    add_size,
    file_path,
    number,
    one_line,
    whole,
)
from .terminal import lasting_streams, stop_signals, write_line

__all__ = ["OneLineParser", "build_parser", "main", "one_line"]


def main(argv: Sequence[str] | None = None) -> int:
    with lasting_streams():
        args = build_parser().parse_args(argv)
        try:
            with stop_signals():
                return args.run(args)
        except TeasrError as error:
            write_line(f"error: {one_line(error)}", sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            write_line("interrupted: nothing half-written was left behind", sys.stderr)
            return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m teasr_core", description="Any-step restoration of photographs.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    _add_upscale(commands.add_parser("upscale", help="restore and enlarge an image or a folder of images"))
    _add_compare(commands.add_parser("compare", help="one labelled picture of several step counts"))
    info = commands.add_parser("info", help="say what a TEASR weight file is")
    info.add_argument("file", type=file_path)
    info.set_defaults(run=_info)
    demo = commands.add_parser("demo", help="restore a picture that comes with scikit-image: LQ | 1 | 4 | 8 steps")
    demo.add_argument("-o", "--output", type=file_path, default=Path("demo.png"))
    demo.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    demo.add_argument("--overwrite", action="store_true", help="replace an existing output")
    demo.set_defaults(run=_demo)
    return parser


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=file_path, help="an image, or a folder of images")
    parser.add_argument("-o", "--output", type=file_path, required=True, help="an image, or a folder for a folder")
    add_size(parser)
    steps = whole("steps", MIN_STEPS, MAX_STEPS)
    look = add_look(parser)
    look.add_argument("--steps", type=steps, default=1, help=f"{MIN_STEPS} to {MAX_STEPS}; default 1")
    look.add_argument(
        "--step-mode", choices=STEP_MODES, default="manual", help="auto: as many steps as each image needs"
    )
    look.add_argument(
        "--tolerance",
        type=number("tolerance"),
        default=DEFAULT_TOLERANCE,
        help=f"of auto: smaller takes more steps; default {DEFAULT_TOLERANCE:g}",
    )
    look.add_argument("--region", type=file_path, metavar="FILE", help="a mask: only its white part is restored")
    add_model(parser)
    files = parser.add_argument_group("files")
    add_reading(files)
    files.add_argument("--recursive", action="store_true", help="subfolders too, kept in the output folder")
    files.add_argument("--resume", action="store_true", help="pass over images whose output exists already")
    files.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    files.add_argument("--quality", type=whole("quality", 1, 100), default=95, help="of JPEG and WebP; default 95")
    told = parser.add_argument_group("what is told")
    told.add_argument("--json", metavar="FILE", help="a report of every image; - = on stdout")
    told.add_argument("--quiet", action="store_true", help="errors only")
    parser.set_defaults(run=_upscale)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=file_path, nargs="+", help="images and folders of images: one row for each image")
    parser.add_argument("-o", "--output", type=file_path, required=True, help="the grid: PNG, JPEG, WebP or TIFF")
    add_size(parser)
    look = add_look(parser)
    look.add_argument("--steps", default="1,2,4,8", help="step counts with commas; default 1,2,4,8")
    look.add_argument("--crop", metavar="X,Y,SIZE", help="show this square of each result, in its pixels")
    look.add_argument("--columns", type=whole("columns", 1, 99), help="go on in a new row after so many pictures")
    add_model(parser)
    files = parser.add_argument_group("files")
    add_reading(files)
    files.add_argument("--images", type=file_path, metavar="DIR", help="save every whole result there too")
    files.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    files.add_argument("--quality", type=whole("quality", 1, 100), default=95, help="of JPEG and WebP; default 95")
    files.add_argument("--quiet", action="store_true", help="errors only")
    parser.set_defaults(run=_compare)


def _upscale(args: argparse.Namespace) -> int:
    from .upscale import upscale  # torch and diffusers are slow to import: --help should not wait

    return upscale(args)


def _compare(args: argparse.Namespace) -> int:
    from .compare import compare

    return compare(args)


def _info(args: argparse.Namespace) -> int:
    from .info import info

    return info(args.file)


def _demo(args: argparse.Namespace) -> int:
    from .demo import demo

    return demo(args.output, args.dtype, args.overwrite)
