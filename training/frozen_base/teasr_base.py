"""A TEASR base file as the frozen base of a distillation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from teasr_core.weight_files import base_file
from teasr_core.weight_files.base_file import BaseFile
from teasr_core.weight_files.lora_file import fingerprint

from ..config.distill import DistillConfig
from ..memory.apply import prepare
from .settings import FLOAT32_BUDGET, TrainingBase, base_dtype, check_dtc, memory_plan


def _teasr_base(
    file: BaseFile, config: DistillConfig, device: torch.device, note: Callable[[str], None],
    prompt: torch.Tensor | None = None,
) -> TrainingBase:  # fmt: skip
    check_dtc(file, config)
    prompt = file.prompt_embeds if prompt is None else prompt  # (T, text_width)
    found = memory_plan(config, file.architecture, prompt.shape[0])
    dtype = base_dtype(config, "fp32")
    if config.adapter.trainable == "lora":  # the budget is that of a LoRA's training
        note(found.format_table())
        if dtype == torch.float32:
            note(FLOAT32_BUDGET)
    velocity = base_file.build_velocity(file, dtype=dtype)
    velocity.prompt_embeds = prompt.to(device)
    return TrainingBase(
        velocity=velocity,
        codec=file.codec,
        memory=prepare(velocity.transformer, found, device),
        architecture=file.architecture,
        base_id=file.path.stem.removesuffix("_base"),
        base_fingerprint=fingerprint(file.tensors),
        file=file,
    )
