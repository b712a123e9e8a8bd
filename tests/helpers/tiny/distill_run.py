"""A tiny distillation: the tiny base, a rank-4 adapter, crops of 32 px. And what forked processes do with one."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helpers.tiny import model as tiny
from training.cli.commands import main
from training.config.distill import DistillConfig
from training.config.toml import from_mapping, to_mapping
from training.distill.trainer import Distiller
from training.run.checkpoint import list_checkpoints, load_checkpoint

Checkpoint = tuple[dict[str, torch.Tensor], dict[str, Any]]

STEPS = 6
DEFAULTS: dict[str, dict[str, Any]] = {
    "run": {"threads": 1, "workers": 0, "autocast": False, "device": "cpu", "use_tensorboard": False, "log_every": 100,
            "checkpoint_every": 100},
    "adapter": {"rank": tiny.RANK, "alpha": tiny.RANK / 2},
    "data": {"presets": {"light": 0.7, "heavy": 0.3}, "cache_mb": 20},
    "train": {"steps": STEPS, "crop_px": 32},
    "loss": {"loss_space": "pixel"},
    "optim": {"lr": 1e-2, "lr_end": 1e-3, "warmup_steps": 2, "eps": 1e-12},
}  # fmt: skip


def config(photos: Path, base: Path, output_dir: Path, /, **sections: Mapping[str, Any]) -> DistillConfig:
    """A tiny run; `sections` replace fields of the defaults."""
    places = {"run": {"output_dir": str(output_dir)}, "base": {"path": str(base)}, "data": {"folders": [str(photos)]}}
    names = DEFAULTS.keys() | places.keys() | sections.keys()
    return _config({n: {**DEFAULTS.get(n, {}), **places.get(n, {}), **sections.get(n, {})} for n in names})


def changed(config: DistillConfig, **sections: Mapping[str, Any]) -> DistillConfig:
    """The config with other values in some fields."""
    tables = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **tables)


def write_toml(path: Path, config: DistillConfig) -> Path:
    """A file for the command line. (JSON's scalars and lists are TOML's.)"""
    lines = []
    for section, fields in to_mapping(config).items():
        lines.append(f"[{section}]")
        for key, value in fields.items():
            inline = isinstance(value, dict)
            pairs = ", ".join(f"{json.dumps(k)} = {v}" for k, v in value.items()) if inline else ""
            lines.append(f"{key} = {{ {pairs} }}" if inline else f"{key} = {json.dumps(value)}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def newest(config: DistillConfig, step: int | None = None) -> Checkpoint:
    """(tensors, state without clock and bookkeeping) of a run's newest checkpoint."""
    tensors, state = load_checkpoint(list_checkpoints(Path(config.run.output_dir))[-1])
    assert step is None or state["step"] == step
    del state["seconds"], state["config"]["run"]
    return tensors, state


def assert_equal(found: Checkpoint, wanted: Checkpoint) -> None:
    """Bit for bit: every tensor, and the rest of the state."""
    assert found[1] == wanted[1]
    assert found[0].keys() == wanted[0].keys()
    assert [key for key, value in wanted[0].items() if not _same_bits(found[0][key], value)] == []


def log_lines(config: DistillConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.run.output_dir) / "log.jsonl").read_text().splitlines()]


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _config(values: Mapping[str, Any]) -> DistillConfig:
    return from_mapping(DistillConfig, values, where="")


# In forked processes; `values` is `to_mapping(config)`


def train(values: Mapping[str, Any]) -> None:
    """The whole run, from its newest checkpoint on."""
    Distiller(_config(values)).train()


def train_until_killed_in_a_save(values: Mapping[str, Any], moment: str, save: int) -> None:
    """Train, and die of SIGKILL within the `save`-th checkpoint (from 1).

    moment: "half" of the file is written, or it is whole and about to be "flushed" or "renamed", or it has its name and
    an older one is about to be "deleted".
    """
    from teasr_core.weight_files import safetensors_writer

    saves = 0
    save_file, fsync, replace, unlink = safetensors_writer.save_file, os.fsync, os.replace, Path.unlink

    def die_at(name: str) -> None:
        if moment == name and saves == save:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_save(tensors: Any, path: Path, **options: Any) -> None:
        nonlocal saves
        saves += 1
        save_file(tensors, path, **options)
        if moment == "half" and saves == save:
            os.truncate(path, path.stat().st_size // 2)
        die_at("half")

    def watched_fsync(file: int) -> None:
        die_at("flushed")
        fsync(file)

    def watched_replace(source: Path, target: Path) -> None:
        die_at("renamed")
        replace(source, target)

    def watched_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("step_"):
            die_at("deleted")
        unlink(path, missing_ok)

    safetensors_writer.save_file, os.fsync, os.replace = watched_save, watched_fsync, watched_replace
    Path.unlink = watched_unlink  # type: ignore[method-assign]
    train(values)


def command_with_small_files(toml: str, limit: int) -> int:
    """`distill` where no file may grow beyond `limit` bytes, as on a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a failing write, as on a full disk
    return main(["distill", toml])
