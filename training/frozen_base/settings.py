"""The frozen model a distillation starts from, held as the memory plan says, with its codec and its identity.

Two kinds: a TEASR base file, which carries codec and prompt embedding, and a Qwen-Image on disk, whose VAE and cached
prompt are files of their own (`qwen_base.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from teasr_core.codec.protocol import Codec
from teasr_core.device import DTYPES
from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.weight_files.base_file import BaseFile

from ..config.distill import DistillConfig
from ..memory.apply import PreparedMemory
from ..memory.costs import FileWeights, Problem
from ..memory.planner import MemoryPlan, plan

FLOAT32_BUDGET = "the budget reckons with bf16, these weights are float32"


@dataclass(frozen=True)
class TrainingBase:
    """On the device. `velocity` has no adapter yet; its weights are frozen. `file` is there for a TEASR base alone.

    storage: how a Qwen-Image's file keeps its weights, where the plan keeps some of them so; else empty.
    """

    velocity: QwenVelocity
    codec: Codec
    memory: PreparedMemory
    architecture: QwenArchitecture
    base_id: str
    base_fingerprint: str
    file: BaseFile | None = None
    storage: str = ""


def memory_plan(
    config: DistillConfig, architecture: QwenArchitecture, prompt_tokens: int, file: FileWeights | None = None
) -> MemoryPlan:
    """The plan of `[memory]` for this base; `file` tells what its packed weights take.

    Raises InputError when nothing fits, ConfigError for a contradiction.
    """
    problem = replace(memory_problem(config, architecture, prompt_tokens), file=file)
    found = plan(problem, config.memory.budget_gb, optimiser_name(config), config.memory)
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


def memory_problem(config: DistillConfig, architecture: QwenArchitecture, prompt_tokens: int) -> Problem:
    """What a step of this config trains, in the terms of the planner."""
    train = config.train
    return Problem(
        architecture, train.crop_px, config.adapter.rank, train.batch_size, train.layout, config.loss.perceptual,
        prompt_tokens, config.run.autocast,
    )  # fmt: skip


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


def check_dtc(file: BaseFile, config: DistillConfig) -> None:
    """ConfigError where `ablation.dtc` is not what the base was trained with."""
    if file.use_dtc != config.ablation.dtc:
        raise ConfigError(
            f"ablation.dtc is {config.ablation.dtc}, '{file.path.name}' was trained with {file.use_dtc}: "
            "give each arm its own base (docs/training/start.md)"
        )
