"""Options that several commands share: one line for each complaint, the nodes' names and defaults
(docs/decisions.md#names-are-permanent)."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..device import DTYPES, OFFLOADS, STORAGES
from ..image.color_fix import COLOR_FIXES
from .exit_codes import BAD_INPUT
from .terminal import one_line, write_line

DEFAULT_SCALE = 4.0
SEED_LIMIT = 2**64
STEP_MODES = ("manual", "auto")


class OneLineParser(argparse.ArgumentParser):
    """argparse's own complaints in the form of ours: one line, exit code BAD_INPUT."""

    def error(self, message: str) -> NoReturn:
        write_line(f"error: {one_line(message)} (see '{self.prog} --help')", sys.stderr)
        raise SystemExit(BAD_INPUT)


def add_size(parser: argparse.ArgumentParser) -> None:
    size = parser.add_argument_group("size (one of; default --scale 4)")
    size.add_argument("--scale", type=number("scale"), help="factor, 0.25 to 8")
    size.add_argument("--shortest", type=integer("shortest"), metavar="PX", help="shortest edge")
    size.add_argument("--longest", type=integer("longest"), metavar="PX", help="longest edge")
    size.add_argument("--width", type=integer("width"), metavar="PX", help="with --height: exact size")
    size.add_argument("--height", type=integer("height"), metavar="PX", help="with --width: exact size")
    size.add_argument("--megapixels", type=number("megapixels"), metavar="MP")
    size.add_argument("--max-megapixels", type=number("max-megapixels"), default=0.0, metavar="MP", help="cap, 0 = off")


def add_look(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """All of the result's look but the number of steps, which each command asks for in its own way."""
    look = parser.add_argument_group("result")
    look.add_argument("--seed", type=_seed, default=0, help="64-bit; default 0")
    look.add_argument("--strength", type=number("strength"), default=1.0, help="0 = plain resize, 1 = full model")
    look.add_argument("--fidelity", type=number("fidelity"), default=0.0, help="towards 1: less texture, closer to LQ")
    look.add_argument("--color-fix", choices=COLOR_FIXES, default="wavelet")
    look.add_argument("--color-strength", type=number("color-strength"), default=1.0, help="0 to 1")
    look.add_argument("--grain", type=number("grain"), default=0.0, help="0 to 1: give the input's own grain back")
    return look


def add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model (the built-in one unless --model is given)")
    model.add_argument(
        "--model", type=file_path, help="Qwen-Image: diffusers folder or safetensors; or a TEASR base file"
    )
    model.add_argument(
        "--vae", type=file_path, help="Qwen-Image VAE: folder or safetensors; default: the model folder's own"
    )
    model.add_argument("--lora", type=file_path, help="a TEASR LoRA for the model, in place of the shipped one")
    model.add_argument("--lora-strength", type=number("lora-strength"), default=1.0, help="0 to 2")
    model.add_argument("--allow-other-base", action="store_true", help="accept a LoRA trained on another base")
    model.add_argument("--dtype", choices=["auto", *DTYPES, *STORAGES], default="auto", help="fp8, nf4: with --model")
    model.add_argument("--device", default="auto", help="auto, cpu, or torch's name of an accelerator, such as cuda")
    model.add_argument("--offload", choices=OFFLOADS, default="none", help="with --model: weights wait on the CPU")
    model.add_argument("--tile-px", type=integer("tile-px"), default=0, help="0 = automatic")
    model.add_argument("--overlap-px", type=integer("overlap-px"), default=0, help="0 = automatic")


def add_reading(files: argparse._ArgumentGroup) -> None:
    """How the input files are read."""
    files.add_argument(
        "--allow-large-input", action="store_true", help="read images above 178 megapixels too, which need much memory"
    )


def file_path(text: str) -> Path:
    """The path that was given. An empty one is an error: as `Path` it would silently be the current folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"the path is {text!r}, expected a name; was a variable empty?")
    return Path(text)


def number(name: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{name} is '{text}', expected a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{name} is {text}, expected a finite number")
        return value

    return parse


def integer(name: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{name} is '{text}', expected a whole number") from None

    return parse


def whole(name: str, low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{name} is '{text}', expected a whole number from {low} to {high}")
        return value

    return parse


def _seed(text: str) -> int:
    return whole("seed", 0, SEED_LIMIT - 1)(text)
