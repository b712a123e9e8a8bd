"""A command in a process whose standard streams fail: what a fork of `helpers.forks` does."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

WAYS = ("reader gone", "stdout full", "stderr full", "stderr closed", "all closed")
TERMINALS = ("hang-up", "hang-up ignored")


def run(program: str, arguments: Sequence[str], way: str, told: str, assets: str, terminal: str = "") -> int:
    """The exit code of `python -m program arguments`, its flushes at the end included.

    way: one of WAYS or TERMINALS; anything else fails nowhere. told: a file for what the streams that work are told,
    and for a traceback. assets: a folder with a tiny model in place of the built-in one. terminal: the file of the
    pseudo-terminal for TERMINALS, which becomes the one that controls the process.
    """
    _use_tiny_model(Path(assets))
    _redirect(way, told, terminal)
    sys.stdin, sys.stdout, sys.stderr = (_stream(number) for number in range(3))
    try:
        code = importlib.import_module(f"{program}.cli.commands").main(list(arguments)) or 0
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        with open(told, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            code = 120  # as Python itself says it
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the helper, which flushes it)
    return code


def _use_tiny_model(assets: Path) -> None:
    """And small pictures, where a command has its own."""
    from teasr_core.cli import demo
    from teasr_core.weight_files import base_file
    from training.pretrain import model

    base_file.ASSETS = assets
    demo.CROP_PX = 96
    model.STATISTICS_CROPS = 8


def _redirect(way: str, told: str, terminal: str) -> None:
    """The file descriptors 0, 1 and 2."""
    if way in TERMINALS:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if way == "hang-up" else signal.SIG_IGN)
        os.setsid()
        descriptor = os.open(terminal, os.O_RDWR)  # the first one of a new session is the one that controls it
        files = dict.fromkeys(range(3), descriptor)
    else:
        log = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        files = {1: log, 2: log}
        if way == "reader gone":
            reader, files[1] = os.pipe()
            os.close(reader)
        elif way in ("stdout full", "stderr full"):
            files[1 if way == "stdout full" else 2] = os.open("/dev/full", os.O_WRONLY)
    for number, descriptor in files.items():
        os.dup2(descriptor, number)
    for descriptor in set(files.values()):
        os.close(descriptor)
    for number in {"stderr closed": (2,), "all closed": (0, 1, 2)}.get(way, ()):
        os.close(number)


def _stream(number: int) -> TextIO | None:
    """A standard stream as Python makes it when it starts."""
    try:
        os.fstat(number)
    except OSError:
        return None
    return open(number, "w" if number else "r", buffering=1 if number == 2 or os.isatty(number) else -1, closefd=False)
