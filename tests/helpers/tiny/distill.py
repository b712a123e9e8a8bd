"""A tiny distillation run on disk: checkpoints as `training distill` writes them, with a random adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helpers.tiny import model as tiny
from teasr_core.model.branch_lora import BLOCK_TARGETS
from teasr_core.weight_files.lora_file import fingerprint
from training.run.checkpoint import save_checkpoint

ALPHA = 2  # beside tiny.RANK = 4: a forgotten alpha/rank would double the adapter
SCALE = ALPHA / tiny.RANK
CONFIG: dict[str, Any] = {
    "run": {"output_dir": "/home/somebody/runs/distill", "seed": 0},
    "data": {"folders": ["C:\\photographs\\LSDIR", "lists/train.txt"]},
    "adapter": {"rank": tiny.RANK, "alpha": ALPHA, "trainable": "lora"},
}


def raw_lora() -> dict[str, torch.Tensor]:
    """A and B as they are trained: float32, alpha/rank not folded in."""
    return tiny.lora_weights(seed=20)


def ema_lora() -> dict[str, torch.Tensor]:
    return tiny.lora_weights(seed=21)


def folded(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter that a LoRA file must hold, float32."""
    return {key: value * SCALE if ".lora_B." in key else value for key, value in weights.items()}


def checkpoint_tensors() -> dict[str, torch.Tensor]:
    tensors = {"prompt_embeds": tiny.prompt_embeds(seed=22)}
    for key, value in raw_lora().items():
        tensors[f"lora.{key}"] = value
        tensors[f"optimizer.{key}.exp_avg"] = torch.zeros_like(value)
    return tensors | {f"ema.{key}": value for key, value in ema_lora().items()}


def state(**lora: Any) -> dict[str, Any]:
    """The JSON state; `lora` replaces fields of its `lora` part."""
    about = {
        "prediction": "lq_residual",
        "rank": tiny.RANK,
        "alpha": ALPHA,
        "targets": list(BLOCK_TARGETS),
        "base": tiny.BASE_ID,
        "base_fingerprint": fingerprint(tiny.base_weights()),
    }
    return {"config": CONFIG, "samples": 40, "seconds": 7200.0, "lora": about | lora}


def write_run(folder: Path, step: int = 5, tensors: Mapping[str, torch.Tensor] | None = None, **lora: Any) -> Path:
    """A run's folder with one more checkpoint; returns the folder."""
    save_checkpoint(folder, step, checkpoint_tensors() if tensors is None else tensors, state(**lora), keep=2)
    return folder
