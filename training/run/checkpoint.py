"""Checkpoints: one safetensors file each, written whole or not at all.

All randomness of a run derives from (seed, step), so tensors and the step number are the entire state; there is no
pickle. A file is written under a temporary name, flushed to disk and renamed, so a name that matches is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from teasr_core.errors import InputError, ModelFileError
from teasr_core.weight_files.file_kind import CHECKPOINT_KEY
from teasr_core.weight_files.safetensors_writer import write_atomically
from teasr_core.whole_file import cause_of

STATE_KEY = CHECKPOINT_KEY  # metadata: the run's state as JSON
# What a tensor's key begins with says what it is.
LORA_PREFIX = "lora."  # a trained adapter
MODEL_PREFIX = "model."  # the trained weights of a whole model
EMA_PREFIX = "ema."  # the average of either
OPTIMIZER_PREFIX = "optimizer."  # its state: optimizer.{key}.{parameter}
PROMPT_NAME = "prompt_embeds"  # a frozen prompt embedding, or as a parameter's name a trained one
FROZEN_PREFIX = "frozen."  # tensors of the exported file that are not trained
_NAME = re.compile(r"step_(\d{8})\.safetensors")


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `step_XXXXXXXX.safetensors` with JSON `state`, then delete all but the newest `keep`.

    InputError when it cannot be written, as on a full disk; the checkpoints before it stay as they are.
    """
    path = folder / f"step_{step:08d}.safetensors"
    for leftover in folder.glob(".step_*.tmp"):  # of a run that was killed while it wrote
        leftover.unlink(missing_ok=True)
    try:
        write_atomically(path, tensors, {STATE_KEY: json.dumps({"step": step, **state})})
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be written ({cause_of(error)}): checkpoints before it are whole, make room and run the "
            "command again to resume"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by rising step; temporary files never match."""
    return sorted(p for p in folder.glob("step_*.safetensors") if _NAME.fullmatch(p.name))


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run's folder; a file stands for itself. InputError when there is none."""
    if run.is_file():
        return run
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise InputError(f"{run} holds no checkpoint: give the run.output_dir of a training run, or one checkpoint")
    return checkpoints[-1]


def read_state(path: Path) -> dict[str, Any]:
    """The state alone; the tensors stay on disk. Errors as `load_checkpoint`."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    return _state(path, metadata)


def read_tensor(path: Path, key: str) -> torch.Tensor | None:
    """One tensor, on the CPU; None where the checkpoint holds none of that name. Errors as `load_checkpoint`."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key) if key in file.keys() else None  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, state). ModelFileError when the file is damaged or not a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    return tensors, _state(path, metadata)


def _unreadable(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{path} cannot be read as a checkpoint ({error}): delete it to resume from an older one")


def _state(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if STATE_KEY not in metadata:
        raise ModelFileError(
            f"{path} is no training checkpoint: expected one of those that `pretrain` or `distill` saves"
        )
    return json.loads(metadata[STATE_KEY])
