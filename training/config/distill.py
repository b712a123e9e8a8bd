"""What a distillation run is made of, as frozen dataclasses; `toml_config` reads them from TOML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from teasr_core.errors import ConfigError
from teasr_core.model.branch_lora import BLOCK_TARGETS

from ..memory.config import MemoryConfig
from ..objective.losses import MAX_OFFSET, MAX_RECTIFICATION
from ..objective.objective import LAYOUTS
from ..objective.time_sampling import check_boundary_time
from .shared import KINDS, PERCEPTUALS, DataConfig, DistillOptimConfig, RunConfig, check_data, check_optim, check_run
from .stage import PERCEPTUAL_CROP_PX
from .toml import from_mapping, read_toml

BUILTIN = "builtin"
INITS = ("kaiming", "gaussian", "orthogonal")
DTYPES = ("fp32", "bf16")  # of the adapter, and with "auto" of the base


@dataclass(frozen=True)
class BaseConfig:
    """The frozen model. Qwen-Image also needs `vae` and `prompt`; a TEASR base carries both."""

    path: str = BUILTIN  # "builtin", a TEASR base file, or Qwen-Image: a diffusers folder or a single file
    vae: str = ""  # Qwen-Image: its VAE, a diffusers folder or a single file
    prompt: str = ""  # Qwen-Image: file of `cache-prompt`
    dtype: str = "auto"  # what frozen weights are read as: fp32 | bf16; auto: Qwen-Image bf16, a TEASR base fp32


@dataclass(frozen=True)
class AdapterConfig:
    trainable: str = "lora"  # lora | all (every weight of a small base, and no adapter)
    rank: int = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = BLOCK_TARGETS
    init: str = "kaiming"  # by peft: kaiming | gaussian (of A, B is zero) | orthogonal (A and B, B A is zero)
    dtype: str = "fp32"  # on the device: fp32 | bf16 (with optim.kind = "adamw-cpu", which keeps float32 beside it)


@dataclass(frozen=True)
class AblationConfig:
    """The paper's Table 3. `dtc` must say what the base was trained with (docs/decisions.md#ablation-bases)."""

    dtc: bool = True  # False: one fused time for both branches
    tar: bool = True  # False: w(s) = 1


@dataclass(frozen=True)
class DistillLossConfig:
    loss_space: str = "latent"  # pixel | latent; docs/decisions.md#loss-space
    perceptual: str = "none"  # none | lpips-alex | lpips-vgg | lpips-squeeze
    perceptual_backbone: str = ""  # local file with the ImageNet features of that network (lpips_metric.py)
    perceptual_windows: bool = False  # LPIPS at random offsets: no lattice along the tokens (losses.perceptual_window)
    data: float = 1.0
    lpips: float = 1.0
    lattice: float = 0.0  # against what repeats from token to token (texture.lattice_loss)
    flow: float = 1.0
    cons: float = 1.0
    boundary_time: float = 0.0  # cons steps from below it to 0 have flow's target (losses.with_boundary); 0 = none
    adv: float = 1.0
    rectify: float = 0.25
    w_max: float = MAX_RECTIFICATION  # cap of w(s); inf = the paper's


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    crop_px: int = 512
    batch_size: int = 1  # of a micro-step
    accumulation: int = 1  # micro-steps of one process in a step
    layout: str = "sequential"  # sequential | rotate | batched (objective.py)
    max_bad_steps: int = 10  # steps in a row without a finite gradient before the run gives up


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
    """The config of a distillation run, checked. Raises ConfigError as `config.load_config`."""
    config = from_mapping(DistillConfig, read_toml(path, overrides), where="")
    check_distill(config)
    return config


def check_distill(config: DistillConfig) -> None:
    """ConfigError for the first value out of range: what was found, what was expected."""
    check_run(config.run)
    check_data(config.data)
    config.memory.check()
    for name, value, known in (
        ("base.dtype", config.base.dtype, ("auto", *DTYPES)),
        ("adapter.dtype", config.adapter.dtype, DTYPES),
        ("adapter.trainable", config.adapter.trainable, ("lora", "all")),
        ("adapter.init", config.adapter.init, INITS),
        ("optim.kind", config.optim.kind, KINDS),
        ("loss.perceptual", config.loss.perceptual, PERCEPTUALS),
        ("loss.loss_space", config.loss.loss_space, ("pixel", "latent")),
        ("train.layout", config.train.layout, LAYOUTS),
    ):
        if value not in known:
            raise ConfigError(f"{name} is '{value}': expected {', '.join(known)}")
    unknown = [target for target in config.adapter.targets if target not in BLOCK_TARGETS]
    if unknown or not config.adapter.targets:
        raise ConfigError(f"adapter.targets names {unknown}: expected some of {', '.join(BLOCK_TARGETS)}")
    for name, value in (
        ("adapter.rank", config.adapter.rank),
        ("train.steps", config.train.steps),
        ("train.batch_size", config.train.batch_size),
        ("train.accumulation", config.train.accumulation),
        ("train.max_bad_steps", config.train.max_bad_steps),
    ):
        if value < 1:
            raise ConfigError(f"{name} is {value}: expected at least 1")
    if config.adapter.dtype == "bf16" and config.optim.kind != "adamw-cpu":
        raise ConfigError(
            f"adapter.dtype is 'bf16' and optim.kind is '{config.optim.kind}': small updates would be rounded away, "
            "set optim.kind to adamw-cpu, which keeps the adapter in float32 on the CPU, or adapter.dtype to fp32"
        )
    if config.adapter.init == "orthogonal" and config.adapter.rank % 2:
        raise ConfigError(f"adapter.init is 'orthogonal' and adapter.rank is {config.adapter.rank}: expected it even")
    if config.adapter.alpha <= 0:
        raise ConfigError(f"adapter.alpha is {config.adapter.alpha:g}: expected more than 0")
    if config.train.crop_px < 16 or config.train.crop_px % 16:
        raise ConfigError(f"train.crop_px is {config.train.crop_px}: expected a multiple of 16 (Qwen-Image: of 32)")
    for name in ("data", "lpips", "lattice", "flow", "cons", "adv", "rectify", "w_max"):
        if not getattr(config.loss, name) >= 0:
            raise ConfigError(f"loss.{name} is {getattr(config.loss, name):g}: expected at least 0")
    check_boundary_time("loss.boundary_time", config.loss.boundary_time)
    if config.loss.perceptual != "none" and not config.loss.perceptual_backbone:
        raise ConfigError(
            f"loss.perceptual is '{config.loss.perceptual}' and loss.perceptual_backbone is empty: "
            "name the local file of its ImageNet features (docs/training/start.md says where to get it)"
        )
    least = PERCEPTUAL_CROP_PX + (MAX_OFFSET if config.loss.perceptual_windows else 0)
    if config.loss.perceptual != "none" and config.train.crop_px < least:
        raise ConfigError(
            f"train.crop_px is {config.train.crop_px}: loss.perceptual '{config.loss.perceptual}' expects at least "
            f"{least}"
        )
    if not 0 < config.optim.lr < math.inf:
        raise ConfigError(f"optim.lr is {config.optim.lr}: expected more than 0")
    if not 0 <= config.optim.lr_end < math.inf:
        raise ConfigError(f"optim.lr_end is {config.optim.lr_end}: expected at least 0")
    check_optim(config.optim)
