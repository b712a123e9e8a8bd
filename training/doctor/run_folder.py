"""Findings about the folder of a run: whether it can be written, and whether the trainer can resume a run in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from teasr_core.errors import TeasrError
from teasr_core.whole_file import nearest_existing

from .finding import MISSING, NOTE, OK, Finding
from .machine import disk_finding

_NEW_FOLDER = "give the run a new run.output_dir"


def output_findings(folder: Path, config: Any, is_distill: bool) -> Iterator[Finding]:
    """Examine whether the folder can be written and has room, and whether it holds an older run to resume."""
    nearest, fix = nearest_existing(folder), "set run.output_dir to another folder"
    if not nearest.is_dir():
        yield Finding(MISSING, "output_dir", f"{nearest} is a file", fix)
        return
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        yield Finding(MISSING, "output_dir", f"{folder}: {nearest} cannot be written ({error.strerror})", fix)
        return
    yield Finding(OK, "output_dir", f"{folder} can be written")
    yield disk_finding(folder)
    yield from _previous_run(folder, config, is_distill)


def _previous_run(folder: Path, config: Any, is_distill: bool) -> Iterator[Finding]:
    try:
        from ..run.checkpoint import list_checkpoints, read_state
    except ImportError:
        return  # named among the packages
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return
    newest = checkpoints[-1]
    try:
        state = read_state(newest)
        step, saved = state["step"], state["config"]
    except (TeasrError, KeyError, ValueError) as error:
        fix = "delete it to resume from an older one"
        yield Finding(MISSING, "previous run", f"{newest} cannot be read ({type(error).__name__})", fix)
        return
    if is_distill == ("stages" in saved):
        found = "pretrain" if is_distill else "distill"
        yield Finding(MISSING, "previous run", f"{folder} holds a run of {found}, step {step}", _NEW_FOLDER)
        return
    text = f"{newest.name} is there: the command goes on from step {step}"
    try:
        processes = _check(state, config, is_distill)
    except ImportError:
        processes = 1  # named among the packages
    except TeasrError as error:
        yield Finding(MISSING, "previous run", f"step {step} of another run: {error}", _NEW_FOLDER)
        return
    yield Finding(NOTE, "previous run", text if processes == 1 else f"{text}, with {processes} processes")


def _check(state: dict[str, Any], config: Any, is_distill: bool) -> int:
    """The number of processes to resume with. Raises the errors of the trainers."""
    if not is_distill:
        from ..config.toml import to_mapping
        from ..pretrain.resume import check_resumable

        processes = state.get("processes", 1)
        check_resumable(state["config"], to_mapping(config), state["step"], (processes, processes))
        return processes
    from ..distill.resume import check_config

    accumulation = config.train.accumulation  # times the processes it is what the checkpoint has
    processes, rest = divmod(state["micro_steps"], accumulation)
    processes = 1 if rest else processes
    check_config(state, config, accumulation * processes)
    return processes
