"""A tiny pretraining run: model, stage and photographs small enough for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.config.pretrain import ModelConfig, PretrainConfig, StageConfig
from training.config.shared import DataConfig, OptimConfig, RunConfig
from training.config.toml import from_mapping
from training.pretrain import model as pretrain_model
from training.pretrain.trainer import Pretrainer

MODEL = ModelConfig(2, 2, 32, (8, 12, 12), text_width=16, prompt_tokens=2, local_attention_init=4.0)
ALL_ROLES = StageConfig(
    steps=6, crop_px=32, batch_size=4, data_share=0.5, flow_share=0.25, cons_share=0.25, lr_start=2e-3, lr_end=1e-3
)


def model_toml(layers: int) -> str:
    """The table [model] of MODEL, with that many layers, as a TOML file writes it."""
    return (
        f"[model]\nnum_layers = {layers}\nnum_heads = 2\nhead_dim = 32\nrope_axes = [8, 12, 12]\ntext_width = 16\n"
        "prompt_tokens = 2\n"
    )


def write_photos(folder: Path, count: int = 2) -> Path:
    """Soft random colours, large enough for the trainer's crops."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        coarse = np.random.default_rng(index).integers(0, 256, (16, 18, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((130, 110), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def config(
    photos: Path, output_dir: Path, stages: tuple[StageConfig, ...] = (ALL_ROLES,), **run: object
) -> PretrainConfig:
    options = {"threads": 1, "workers": 0, "autocast": False, "checkpoint_every": 100, "log_every": 100} | run
    return PretrainConfig(
        RunConfig(output_dir=str(output_dir), **options),
        DataConfig((str(photos),), presets={"light": 0.7, "heavy": 0.3}, cache_mb=20),
        MODEL,
        OptimConfig(warmup_steps=4),
        stages=stages,
    )


def train(values: Mapping[str, Any]) -> None:
    """The whole run of a config `to_mapping(config)`, in a forked process."""
    pretrain_model.STATISTICS_CROPS = 8  # as in the fixture `config`
    Pretrainer(from_mapping(PretrainConfig, values, where="")).train()
