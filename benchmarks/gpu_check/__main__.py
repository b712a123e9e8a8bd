"""Measure on a GPU what the documents only compute: memory and seconds of the 20B model by plan, and of inference.

    python -m benchmarks.gpu_check [--minutes 8] [--out gpu_check.json]
    python -m benchmarks.gpu_check --device cpu --tiny      # tries the command, where no GPU is at hand

Weights are random, so nothing is downloaded. Each item runs in a process of its own and is saved when it is done; run
the command again to go on where time ran out. At the end it prints Markdown tables, and names what it left out. The
exit code is 1 if an item failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from teasr_core.errors import InputError

from .items import Item, ordered
from .session import Session, command_of
from .table import markdown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all items together, this start included")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the command; needed on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="the results; read again to go on")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="these items alone")
    parser.add_argument("--list", action="store_true", help="name the items and what they cost, and stop")
    args = parser.parse_args()
    started = time.monotonic()
    try:
        return _list() if args.list else _check(args, started)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what is done is in {args.out}, and the same command goes on", file=sys.stderr)
        return 130


def _list() -> int:
    for item in ordered(float("inf"), float("inf")):
        print(f"{item.name:20} {item.setup_seconds + item.compute_seconds:4.0f} s {item.gib:4.0f} GiB  {item.title}")
    return 0


def _check(args: argparse.Namespace, started: float) -> int:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if device == "cpu" and not args.tiny:
        raise InputError(
            "no GPU was found: run it where torch sees one, or give --device cpu --tiny to try the command"
        )
    if not args.minutes > 0:
        raise InputError(f"--minutes is {args.minutes:g}: expected more than 0")
    if not args.out.absolute().parent.is_dir():
        raise InputError(f"--out: there is no folder {args.out.absolute().parent}, make it first")
    only = {name for name in args.only.split(",") if name}
    everything = {item.name for item in ordered(float("inf"), float("inf"))}
    if unknown := only - everything:
        raise InputError(f"--only names {', '.join(sorted(unknown))}: known are {', '.join(sorted(everything))}")
    comfyui = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
    session = Session(args.out, device, args.tiny, started + 60 * args.minutes, Commands(comfyui), _note)
    session.open()
    machine = session.machine
    items = [item for item in ordered(machine["free_gib"], machine["host_gib"]) if not only or item.name in only]
    without = {"comfyui": f"needs a ComfyUI, {comfyui} holds none: set COMFYUI_PATH"}
    if (comfyui / "main.py").is_file():
        without = {}
    left_out = without | session.run([item for item in items if item.name not in without])
    print(markdown(machine, session.items, items, left_out))
    return int(any(session.items.get(item.name, {}).get("state") == "failed" for item in items))


class Commands:
    """`command_of` with this machine's ComfyUI; its Python is COMFYUI_PYTHON, one in the checkout, or this one."""

    def __init__(self, comfyui: Path) -> None:
        inside = [comfyui / venv / "bin" / "python" for venv in ("venv", ".venv")]
        found = next((str(python) for python in inside if python.exists()), sys.executable)
        self.comfyui, self.python = comfyui, os.environ.get("COMFYUI_PYTHON", found)

    def __call__(self, item: Item, device: str, is_tiny: bool) -> list[str]:
        return command_of(item, device, is_tiny, self.comfyui, self.python)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
