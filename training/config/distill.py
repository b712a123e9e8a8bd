"""What a distillation run is made of, as frozen dataclasses; `config.toml` reads them from TOML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict, field_validator, with_config

from teasr_core.errors import ConfigError
from teasr_core.model.branch_lora import BLOCK_TARGETS, READABLE_TARGETS

from ..memory.config import MemoryConfig
from ..objective.losses import MAX_OFFSET, MAX_RECTIFICATION
from ..objective.objective import LAYOUTS
from .fields import TABLE, Count, CropPx, Positive, Switch, Weight, one_of
from .shared import (
    BUILTIN,
    LOSS_SPACES,
    PERCEPTUALS,
    DataConfig,
    DistillOptimConfig,
    RunConfig,
    check_data,
    check_optim,
)
from .stage import PERCEPTUAL_CROP_PX, BoundaryTime
from .toml import from_mapping, read_toml

INITS = ("kaiming", "gaussian", "orthogonal")
DTYPES = ("fp32", "bf16")  # of the adapter, and beside "auto" of the base


@with_config(TABLE)
@dataclass(frozen=True)
class BaseConfig:
    """The frozen model. Qwen-Image also needs `vae` and `prompt`; a TEASR base carries both."""

    path: str = BUILTIN  # "builtin", a TEASR base file, or Qwen-Image: a diffusers folder or a single file
    vae: str = ""  # Qwen-Image: its VAE, a diffusers folder or a single file
    prompt: str = ""  # Qwen-Image: the file that `cache-prompt` wrote; a LoRA in `adapter.start` brings its own
    dtype: Annotated[str, one_of(("auto", *DTYPES))] = "auto"  # what the frozen weights are read as;
    # auto: bf16 for Qwen-Image, fp32 for a TEASR base


@with_config(TABLE)
@dataclass(frozen=True)
class AdapterConfig:
    trainable: Annotated[str, one_of(("lora", "all"))] = "lora"  # all: every weight of a small base, no adapter
    start: str = ""  # TEASR LoRA file to go on from, or "builtin" for the shipped one; empty = a new adapter
    allow_other_base: Switch = False  # the start may have been trained on another base, such as one before a fine-tune
    rank: Count = 32
    alpha: Positive = 32.0
    targets: tuple[str, ...] = BLOCK_TARGETS
    init: Annotated[str, one_of(INITS)] = "kaiming"  # as in peft: B starts as zero; orthogonal: only B A does
    dtype: Annotated[str, one_of(DTYPES)] = "fp32"  # on the device; bf16 needs optim.kind = "adamw-cpu"

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [target for target in targets if target not in READABLE_TARGETS]
        if unknown or not targets:
            raise ValueError(f"names {unknown}: expected some of {', '.join(READABLE_TARGETS)}")
        return targets


@with_config(TABLE)
@dataclass(frozen=True)
class AblationConfig:
    """The paper's Table 3. `dtc` must say what the base was trained with (docs/decisions.md#ablation-bases)."""

    dtc: Switch = True  # False: one fused time for both branches
    tar: Switch = True  # False: w(s) = 1


@with_config(TABLE)
@dataclass(frozen=True)
class DistillLossConfig:
    loss_space: Annotated[str, one_of(LOSS_SPACES)] = "latent"  # docs/decisions.md#loss-space
    perceptual: Annotated[str, one_of(PERCEPTUALS)] = "none"
    perceptual_backbone: str = ""  # local file with the ImageNet features of that network (objective/lpips.py)
    perceptual_windows: Switch = False  # LPIPS at random offsets: no lattice along the tokens
    data: Weight = 1.0
    lpips: Weight = 1.0
    lattice: Weight = 0.0  # against what repeats from token to token (`texture.lattice_loss`)
    flow: Weight = 1.0
    cons: Weight = 1.0
    boundary_time: BoundaryTime = 0.0  # cons steps from below it to 0 have flow's target (`losses.with_boundary`)
    adv: Weight = 1.0
    rectify: Weight = 0.25
    w_max: Annotated[float, Strict(), Field(ge=0)] = MAX_RECTIFICATION  # cap of w(s); inf = the paper's


@with_config(TABLE)
@dataclass(frozen=True)
class TrainConfig:
    steps: Count = 1000
    crop_px: CropPx = 512  # Qwen-Image takes multiples of 32
    batch_size: Count = 1  # of a micro-step
    accumulation: Count = 1  # micro-steps of one process in a step
    layout: Annotated[str, one_of(LAYOUTS)] = "sequential"  # objective/objective.py
    max_bad_steps: Count = 10  # steps in a row without a finite gradient before the run gives up


@with_config(TABLE)
@dataclass(frozen=True)
class DistillConfig:
    run: RunConfig = field(default_factory=RunConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: DistillLossConfig = field(default_factory=DistillLossConfig)
    optim: DistillOptimConfig = field(default_factory=DistillOptimConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)


def load_distill_config(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """The config of a distillation run. It raises ConfigError for an unknown key or a value that cannot be."""
    config = from_mapping(DistillConfig, read_toml(path, overrides), where="")
    check_distill(config)
    return config


def check_distill(config: DistillConfig) -> None:
    """ConfigError where two fields do not go together."""
    config.memory.check()
    check_data(config.data)
    check_optim(config.optim)
    adapter, loss = config.adapter, config.loss
    if adapter.start and adapter.trainable == "all":
        raise ConfigError(
            f"adapter.start is '{adapter.start}' and adapter.trainable is \"all\": a LoRA is continued as a LoRA, set "
            'adapter.trainable to "lora" or leave adapter.start empty'
        )
    if adapter.dtype == "bf16" and config.optim.kind != "adamw-cpu":
        raise ConfigError(
            f"adapter.dtype is 'bf16' and optim.kind is '{config.optim.kind}': small updates would be rounded away, "
            "set optim.kind to adamw-cpu, which keeps the adapter in float32 on the CPU, or adapter.dtype to fp32"
        )
    if adapter.init == "orthogonal" and adapter.rank % 2:
        raise ConfigError(f"adapter.init is 'orthogonal' and adapter.rank is {adapter.rank}: expected an even rank")
    if loss.perceptual == "none":
        return
    if not loss.perceptual_backbone:
        raise ConfigError(
            f"loss.perceptual is '{loss.perceptual}' and loss.perceptual_backbone is empty: "
            "name the local file of its ImageNet features (docs/training/start.md says where to get it)"
        )
    least = PERCEPTUAL_CROP_PX + (MAX_OFFSET if loss.perceptual_windows else 0)
    if config.train.crop_px < least:
        raise ConfigError(
            f"train.crop_px is {config.train.crop_px}: loss.perceptual '{loss.perceptual}' expects at least {least}"
        )
