"""The tables that both trainers' configs have: run, data, loss, and what their optimisers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, Strict, field_validator, with_config

from teasr_core.errors import ConfigError

from ..degradation.presets import PRESETS
from .fields import TABLE, Count, Decay, Natural, Number, Positive, Switch, Texts, Weight, one_of

BUILTIN = "builtin"  # the shipped file, where a setting names one
PERCEPTUALS = ("none", "lpips-squeeze", "lpips-alex", "lpips-vgg")
LOSS_SPACES = ("pixel", "latent")
OPTIMISER_KINDS = ("adamw", "adamw-8bit", "adamw-cpu", "prodigy", "adafactor")
SCHEDULES = ("linear", "cosine")
TRACKERS = ("tensorboard", "wandb", "trackio")
MIN_PRODIGY_LR = 0.1


@with_config(TABLE)
@dataclass(frozen=True)
class RunConfig:
    output_dir: str = "runs/pretrain"
    seed: Natural = 0
    threads: Natural = 0  # CPU threads of the training process, 0 = torch's default
    workers: Natural = 1  # data processes; the training process prepares no data unless this is 0
    autocast: Switch = True  # bf16 autocast
    device: Annotated[str, one_of(("auto", "cpu"))] = "auto"  # auto: an accelerator where there is one
    compile: Switch = False  # torch.compile of the transformer blocks
    log_every: Count = 50
    checkpoint_every: Count = 500
    keep_checkpoints: Count = 2
    preview_every: Count = 1000
    trackers: tuple[Annotated[str, one_of(TRACKERS)], ...] = ("tensorboard",)  # beside log.jsonl (run/trackers.py)
    use_tensorboard: Switch = True  # false takes tensorboard out of trackers
    project: str = "teasr"  # the name under which wandb and trackio keep the run
    preview_images: Texts = ()  # held-out photographs; empty = no previews


@with_config(TABLE)
@dataclass(frozen=True)
class DataConfig:
    folders: Texts = ()  # photographs: folders, searched without recursion, or .txt lists of paths
    pairs: Texts = ()  # folders of ready pairs, each with test_HR and test_LR
    pair_scales: Mapping[str, Number] = field(default_factory=dict)  # factor -> weight: HR is shrunk for factors below
    # the pair's own; empty = its own alone
    weights: tuple[Weight, ...] = ()  # share of each of folders, then of each of pairs; empty = every image alike
    presets: Mapping[str, Number] = field(default_factory=lambda: {"light": 1.0})  # degradation preset -> weight
    scales: Mapping[str, Number] = field(default_factory=lambda: {"4": 0.7, "2": 0.2, "1": 0.1})  # factor -> weight
    min_zoom: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.6  # photographs are shrunk by up to this
    cache_mb: Annotated[int, Strict()] = 1500  # decoded photographs kept by each data process

    @field_validator("presets", "scales")
    @classmethod
    def _check_weights(cls, weights: Mapping[str, float]) -> Mapping[str, float]:
        if not weights or not min(weights.values()) >= 0 or not sum(weights.values()) > 0:
            raise ValueError(f"is {dict(weights)}: expected weights of at least 0, not all of them 0")
        return weights

    @field_validator("presets")
    @classmethod
    def _check_presets(cls, presets: Mapping[str, float]) -> Mapping[str, float]:
        for preset in presets:
            if preset not in PRESETS:
                raise ValueError(f"names '{preset}': known presets are {', '.join(PRESETS)}")
        return presets

    @field_validator("pair_scales")
    @classmethod
    def _check_pair_scales(cls, scales: Mapping[str, float]) -> Mapping[str, float]:
        if any(not scale.isdigit() or int(scale) < 1 for scale in scales):
            raise ValueError(f"names {', '.join(scales)}: expected whole factors, such as 4, 2 and 1")
        if scales and not (min(scales.values()) >= 0 and sum(scales.values()) > 0):
            raise ValueError(f"is {dict(scales)}: expected weights of at least 0, not all of them 0")
        return scales

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: Mapping[str, float]) -> Mapping[str, float]:
        for scale in scales:
            if not scale.replace(".", "", 1).isdigit() or float(scale) < 1:
                raise ValueError(f"names '{scale}': expected factors of at least 1, such as 4")
        return scales


@with_config(TABLE)
@dataclass(frozen=True)
class LossConfig:
    loss_space: Annotated[str, one_of(LOSS_SPACES)] = "pixel"  # docs/decisions.md#loss-space
    perceptual: Annotated[str, one_of(PERCEPTUALS)] = "none"
    perceptual_backbone: str = ""  # local file with the ImageNet features of that network (objective/lpips.py)


@with_config(TABLE)
@dataclass(frozen=True)
class OptimConfig:
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    eps: Positive = 1e-12  # squared pixel errors are small; 1e-8 may hold back the high frequencies
    weight_decay: Weight = 0.0
    clip_norm: Annotated[float, Strict(), Field(gt=0)] = 1.0  # inf = no clipping
    schedule: Annotated[str, one_of(SCHEDULES)] = "linear"  # from lr_start to lr_end of each stage
    warmup_steps: Natural = 100
    ema_decay: Decay = 0.999
    max_bad_steps: Count = 10  # steps in a row without a finite gradient before the run gives up

    @property
    def kind(self) -> str:
        """Pretraining has no choice of optimisers."""
        return "adamw"


@with_config(TABLE)
@dataclass(frozen=True)
class DistillOptimConfig:
    kind: Annotated[str, one_of(OPTIMISER_KINDS)] = "adamw"  # run/optimizers.py
    lr: Positive = 5e-5
    lr_end: Weight = 5e-5  # reached at the last step
    schedule: Annotated[str, one_of(SCHEDULES)] = "linear"  # from lr to lr_end
    warmup_steps: Natural = 0
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    eps: Positive = 1e-8
    weight_decay: Weight = 0.0
    clip_norm: Annotated[float, Strict(), Field(gt=0)] = 1.0  # inf = no clipping
    ema_decay: Decay = 0.999


def check_data(data: DataConfig) -> None:
    """ConfigError where the weights are not those of the sources."""
    count, weights = len(data.folders) + len(data.pairs), data.weights
    if weights and (len(weights) != count or sum(weights) == 0):
        raise ConfigError(
            f"data.weights is {list(weights)}: expected {count} weights of at least 0, one for each of data.folders "
            "and data.pairs, not all of them 0"
        )


def check_optim(optim: DistillOptimConfig) -> None:
    """ConfigError where the learning rate is not one of the optimiser's."""
    if optim.kind == "prodigy" and optim.lr < MIN_PRODIGY_LR:
        raise ConfigError(
            f"optim.kind is 'prodigy' and optim.lr is {optim.lr:g}: Prodigy finds the rate itself and multiplies it by "
            f"optim.lr, expected at least {MIN_PRODIGY_LR:g}; set optim.lr to 1 and optim.lr_end to 1 or 0"
        )
