"""The tables that both trainers' configs have: run, data, loss, and what their optimisers share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from teasr_core.errors import ConfigError

PERCEPTUALS = ("none", "lpips-squeeze", "lpips-alex", "lpips-vgg")


@dataclass(frozen=True)
class RunConfig:
    output_dir: str = "runs/pretrain"
    seed: int = 0
    threads: int = 0  # CPU threads of the training process, 0 = torch's default
    workers: int = 1  # data processes; the training process prepares no data unless this is 0
    autocast: bool = True  # bf16 autocast
    device: str = "auto"  # of distill: auto (an accelerator where there is one) | cpu
    compile: bool = False  # torch.compile of the transformer blocks
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    preview_every: int = 1000
    use_tensorboard: bool = True
    preview_images: tuple[str, ...] = ()  # held-out photographs; empty = no previews


@dataclass(frozen=True)
class DataConfig:
    folders: tuple[str, ...] = ()  # photographs: folders, searched without recursion, or .txt lists of paths
    pairs: tuple[str, ...] = ()  # folders of ready pairs, each with test_HR and test_LR
    weights: tuple[float, ...] = ()  # share of each of folders, then of each of pairs; empty = every image alike
    presets: Mapping[str, float] = field(default_factory=lambda: {"light": 1.0})  # degradation preset -> weight
    scales: Mapping[str, float] = field(default_factory=lambda: {"4": 0.7, "2": 0.2, "1": 0.1})  # factor -> weight
    min_zoom: float = 0.6  # scale jitter: the photograph is shrunk by a factor in [min_zoom, 1] first
    cache_mb: int = 1500  # decoded photographs kept by each data process


@dataclass(frozen=True)
class LossConfig:
    loss_space: str = "pixel"  # pixel | latent; docs/decisions.md#loss-space
    perceptual: str = "none"  # none | lpips-squeeze | lpips-alex | lpips-vgg
    perceptual_backbone: str = ""  # local file with the ImageNet features of that network (lpips_metric.py)


def check_data(data: DataConfig) -> None:
    from ..degradation.degrade import PRESETS

    for preset in data.presets:
        if preset not in PRESETS:
            raise ConfigError(f"data.presets names '{preset}': known presets are {', '.join(PRESETS)}")
    for scale in data.scales:
        if not scale.replace(".", "", 1).isdigit() or float(scale) < 1:
            raise ConfigError(f"data.scales names '{scale}': expected factors of at least 1, such as 4")
    for name, weights in (("presets", data.presets), ("scales", data.scales)):
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ConfigError(f"data.{name} is {dict(weights)}: expected weights of at least 0, not all of them 0")
    count, shares = len(data.folders) + len(data.pairs), data.weights
    if shares and (len(shares) != count or min(shares) < 0 or not 0 < sum(shares) < float("inf")):
        raise ConfigError(
            f"data.weights is {list(shares)}: expected {count} weights of at least 0, one for each of data.folders "
            "and data.pairs, not all of them 0"
        )
    if not 0 < data.min_zoom <= 1:
        raise ConfigError(f"data.min_zoom is {data.min_zoom:g}: expected more than 0 and at most 1")


def check_run(run: RunConfig) -> None:
    if run.device not in ("auto", "cpu"):
        raise ConfigError(f"run.device is '{run.device}': expected auto or cpu")
    lowest = {"seed": 0, "threads": 0, "workers": 0}
    lowest |= dict.fromkeys(("log_every", "checkpoint_every", "keep_checkpoints", "preview_every"), 1)
    for name, least in lowest.items():
        if getattr(run, name) < least:
            raise ConfigError(f"run.{name} is {getattr(run, name)}: expected at least {least}")


def check_loss(loss: LossConfig) -> None:
    if loss.perceptual not in PERCEPTUALS:
        raise ConfigError(f"loss.perceptual is '{loss.perceptual}': expected {', '.join(PERCEPTUALS)}")
    if loss.loss_space not in ("pixel", "latent"):
        raise ConfigError(f"loss.loss_space is '{loss.loss_space}': expected pixel or latent")


def check_optim(optim: OptimConfig | DistillOptimConfig) -> None:
    """What both trainers' optimisers have in common."""
    for name, fits, expected in (
        ("warmup_steps", optim.warmup_steps >= 0, "at least 0"),
        ("betas", all(0 <= beta < 1 for beta in optim.betas), "two values of at least 0 and less than 1"),
        ("eps", 0 < optim.eps < math.inf, "more than 0"),
        ("weight_decay", 0 <= optim.weight_decay < math.inf, "at least 0"),
        ("clip_norm", optim.clip_norm > 0, "more than 0"),
        ("ema_decay", 0 <= optim.ema_decay < 1, "at least 0 and less than 1"),
    ):
        if not fits:
            raise ConfigError(f"optim.{name} is {getattr(optim, name)}: expected {expected}")


@dataclass(frozen=True)
class OptimConfig:
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-12  # squared pixel errors are small; 1e-8 may hold back the high frequencies
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 100
    ema_decay: float = 0.999
    max_bad_steps: int = 10  # steps in a row without a finite gradient before the run gives up


@dataclass(frozen=True)
class DistillOptimConfig:
    kind: str = "adamw"  # adamw | adamw-8bit | adamw-cpu (optimizers.py)
    lr: float = 5e-5
    lr_end: float = 5e-5  # reached linearly at the last step
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999


KINDS = ("adamw", "adamw-8bit", "adamw-cpu")
