"""The frozen model a distillation starts from, held as the memory plan says, with its codec and its identity.

Two kinds: a TEASR base file, which carries codec and prompt embedding, and a Qwen-Image on disk, whose VAE and cached
prompt are files of their own (`qwen_base.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from teasr_core.codec.protocol import Codec
from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.weight_files import builtin_file as builtin
from teasr_core.weight_files.builtin_file import BuiltinFile
from teasr_core.weight_files.file_kind import Kind, detect
from teasr_core.weight_files.lora_file import fingerprint

from ..config.distill import BUILTIN, DistillConfig
from ..memory.apply import PreparedMemory, prepare
from ..memory.planner import MemoryPlan, plan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FLOAT32_BUDGET = "the budget reckons with bf16, these weights are float32"


@dataclass(frozen=True)
class TrainingBase:
    """On the device. `velocity` has no adapter yet; its weights are frozen. `file` is there for a TEASR base alone."""

    velocity: QwenVelocity
    codec: Codec
    memory: PreparedMemory
    architecture: QwenArchitecture
    base_id: str
    base_fingerprint: str
    file: BuiltinFile | None = None


def load_training_base(config: DistillConfig, device: torch.device, note: Callable[[str], None]) -> TrainingBase:
    """The base that the config names; `note` is told the memory plan before any weight is read.

    Raises ModelFileError for a damaged file or one of another kind, InputError when no plan fits the card,
    ConfigError for a setting that does not go with the base.
    """
    if config.base.path == BUILTIN:
        return _teasr_base(builtin.shipped_base(), config, device, note)
    path = Path(config.base.path)
    if detect(path, "transformer").kind == Kind.QWEN_TRANSFORMER:
        from .qwen_base import load_qwen_base

        return load_qwen_base(path, config, device, note)
    return _teasr_base(builtin.read_base(path), config, device, note)


def memory_plan(config: DistillConfig, architecture: QwenArchitecture, prompt_tokens: int) -> MemoryPlan:
    """The plan of `[memory]` for this base. InputError when nothing fits; ConfigError for what cannot go together."""
    found = plan(
        architecture, config.train.crop_px, config.adapter.rank, config.train.batch_size, config.memory.budget_gb,
        config.train.layout, optimiser_name(config), config.loss.perceptual, config.memory, prompt_tokens,
        config.run.autocast,
    )  # fmt: skip
    held_back = [group.replace("_", " ") for group, one in found.groups.items() if not one.is_plain]
    if held_back and config.adapter.trainable == "all":
        raise ConfigError(
            f'adapter.trainable is "all" and the memory plan holds {", ".join(held_back)} quantised or off the device: '
            "weights that are trained must stay as they are, raise memory.vram_gb or train a lora"
        )
    if held_back and config.run.compile:
        raise ConfigError(
            f"run.compile is true and the memory plan holds {', '.join(held_back)} quantised or off the device: "
            "compiled blocks would not see the weights change, set run.compile to false"
        )
    return found


def optimiser_name(config: DistillConfig) -> str:
    """The planner's name (`costs.OPTIMISERS`) of the config's optimiser and adapter dtype."""
    return config.optim.kind + (" bf16" if config.adapter.dtype == "bf16" else "")


def base_dtype(config: DistillConfig, automatic: str) -> torch.dtype:
    """What the frozen weights are read as. ConfigError where nothing would bring them and the adapter together."""
    name = automatic if config.base.dtype == "auto" else config.base.dtype
    if name != config.adapter.dtype and config.adapter.trainable == "lora" and not config.run.autocast:
        raise ConfigError(
            f"the base is {name}, the adapter {config.adapter.dtype} and run.autocast is false: set run.autocast to "
            "true, or base.dtype and adapter.dtype to the same"
        )
    return DTYPES[name]


def check_dtc(file: BuiltinFile, config: DistillConfig) -> None:
    """ConfigError where `ablation.dtc` is not what the base was trained with."""
    if file.use_dtc != config.ablation.dtc:
        raise ConfigError(
            f"ablation.dtc is {config.ablation.dtc}, '{file.path.name}' was trained with {file.use_dtc}: "
            "give each arm its own base (docs/training.md)"
        )


def _teasr_base(
    file: BuiltinFile, config: DistillConfig, device: torch.device, note: Callable[[str], None]
) -> TrainingBase:
    check_dtc(file, config)
    found = memory_plan(config, file.architecture, file.prompt_embeds.shape[0])
    dtype = base_dtype(config, "fp32")
    if config.adapter.trainable == "lora":  # the budget is that of a LoRA's training
        note(found.format_table())
        if dtype == torch.float32:
            note(FLOAT32_BUDGET)
    velocity = builtin.build_velocity(file, dtype=dtype)
    velocity.prompt_embeds = velocity.prompt_embeds.to(device)
    return TrainingBase(
        velocity=velocity,
        codec=file.codec,
        memory=prepare(velocity.transformer, found, device),
        architecture=file.architecture,
        base_id=file.path.stem.removesuffix("_base"),
        base_fingerprint=fingerprint(file.tensors),
        file=file,
    )
