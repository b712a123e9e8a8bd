"""Command line: `python -m teasr_core upscale | info | demo` (SPEC 12). Names and defaults are the nodes'.

Exit code 0; 2 for bad input, with one line on stderr; 1 for a bug of ours.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .color import COLOR_FIXES
from .errors import InputError, TeasrError
from .precision import DTYPES, OFFLOADS, STORAGES
from .schedule import MAX_STEPS, MIN_STEPS

DEFAULT_SCALE = 4.0
SEED_LIMIT = 2**64


class OneLineParser(argparse.ArgumentParser):
    """argparse's own complaints in the form of ours: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {one_line(message)} (see '{self.prog} --help')", file=sys.stderr)
        raise SystemExit(2)


def one_line(error: object) -> str:
    """A file name may hold a line break; what stands on the terminal must not."""
    return " ".join(str(error).splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except TeasrError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m teasr_core", description="Any-step restoration of photographs.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    _add_upscale(commands.add_parser("upscale", help="restore and enlarge an image or a folder of images"))
    info = commands.add_parser("info", help="say what a TEASR weight file is")
    info.add_argument("file", type=Path)
    info.set_defaults(run=_info)
    demo = commands.add_parser("demo", help="restore a picture that comes with scikit-image: LQ | 1 | 4 | 8 steps")
    demo.add_argument("-o", "--output", type=Path, default=Path("demo.png"))
    demo.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    demo.set_defaults(run=_demo)
    return parser


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="an image, or a folder of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="an image, or a folder for a folder")
    size = parser.add_argument_group("size (one of; default --scale 4)")
    size.add_argument("--scale", type=_number("scale"), help="factor, 0.25 to 8")
    size.add_argument("--shortest", type=int, metavar="PX", help="shortest edge")
    size.add_argument("--longest", type=int, metavar="PX", help="longest edge")
    size.add_argument("--width", type=int, metavar="PX", help="with --height: exact size")
    size.add_argument("--height", type=int, metavar="PX", help="with --width: exact size")
    size.add_argument("--megapixels", type=_number("megapixels"), metavar="MP")
    size.add_argument(
        "--max-megapixels", type=_number("max-megapixels"), default=0.0, metavar="MP", help="cap, 0 = off"
    )
    look = parser.add_argument_group("result")
    look.add_argument("--steps", type=_steps, default=1, help=f"{MIN_STEPS} to {MAX_STEPS}; default 1")
    look.add_argument("--seed", type=_seed, default=0, help="64-bit; default 0")
    look.add_argument("--strength", type=_number("strength"), default=1.0, help="0 = plain resize, 1 = full model")
    look.add_argument("--color-fix", choices=COLOR_FIXES, default="wavelet")
    look.add_argument("--color-strength", type=_number("color-strength"), default=1.0, help="0 to 1")
    model = parser.add_argument_group("model (the built-in one unless --model is given)")
    model.add_argument("--model", type=Path, help="Qwen-Image: diffusers folder or safetensors; or a TEASR base file")
    model.add_argument(
        "--vae", type=Path, help="Qwen-Image VAE: folder or safetensors; default: the model folder's own"
    )
    model.add_argument("--lora", type=Path, help="a TEASR LoRA for the model, in place of the shipped one")
    model.add_argument("--lora-strength", type=_number("lora-strength"), default=1.0, help="0 to 2")
    model.add_argument("--allow-other-base", action="store_true", help="accept a LoRA trained on another base")
    model.add_argument("--dtype", choices=["auto", *DTYPES, *STORAGES], default="auto", help="fp8, nf4: with --model")
    model.add_argument("--device", default="auto", help="auto, cpu, or torch's name of an accelerator, such as cuda")
    model.add_argument("--offload", choices=OFFLOADS, default="none", help="with --model: weights wait on the CPU")
    model.add_argument("--tile-px", type=int, default=0, help="0 = automatic")
    model.add_argument("--overlap-px", type=int, default=0, help="0 = automatic")
    files = parser.add_argument_group("files")
    files.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    files.add_argument("--quality", type=_quality, default=95, help="of JPEG and WebP, 1 to 100; default 95")
    parser.set_defaults(run=_upscale)


def _upscale(args: argparse.Namespace) -> int:
    from .cli_upscale import upscale  # torch and diffusers are slow to import: --help should not wait

    return upscale(args)


def _info(args: argparse.Namespace) -> int:
    from .cli_info import info

    return info(args.file)


def _demo(args: argparse.Namespace) -> int:
    from .cli_demo import demo

    return demo(args.output, args.dtype)


def _number(name: str):
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{name} is '{text}', expected a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{name} is {text}, expected a finite number")
        return value

    return parse


def _whole(text: str, name: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{name} is '{text}', expected a whole number from {low} to {high}")
    return value


def _steps(text: str) -> int:
    return _whole(text, "steps", MIN_STEPS, MAX_STEPS)


def _quality(text: str) -> int:
    return _whole(text, "quality", 1, 100)


def _seed(text: str) -> int:
    return _whole(text, "seed", 0, SEED_LIMIT - 1)


def check_lora_strength(value: float) -> float:
    if not 0 <= value <= 2:
        raise InputError(f"lora strength is {value:g}: expected a number from 0 to 2")
    return value
