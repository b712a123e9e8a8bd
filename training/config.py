"""What a pretraining run is made of, as frozen dataclasses; `toml_config` reads them from TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from teasr_core.architecture import PREDICTIONS
from teasr_core.errors import ConfigError
from teasr_core.schedule import MAX_STEPS

from .time_sampling import check_boundary_time
from .toml_config import from_mapping, read_toml

PARTS = ("transformer", "encoder")
PERCEPTUALS = ("none", "lpips-squeeze", "lpips-alex", "lpips-vgg")
LEAST_TEXTURE_PX = 48  # of a crop: 4 tokens and the one that differences reach into, in whole blocks of 16 px


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
class ModelConfig:
    num_layers: int = 6
    num_heads: int = 8
    head_dim: int = 32
    rope_axes: tuple[int, int, int] = (4, 14, 14)
    text_width: int = 64
    prompt_tokens: int = 4
    prediction: str = "lq_residual"
    use_dtc: bool = True
    local_attention_init: float = 4.0  # query and key bias of local attention; 0 = none (training/initialise.py)
    gate_init: float = 1.0  # bias of the residual gates; 0 = adaLN-Zero
    input_gain: float = 2.0  # of img_in: how much a token starts out as itself beside what attention brings it
    time_scale_init: float = 0.9  # attention inputs start scaled by 1 - this * t; this and the next two with DTC alone
    noise_gate_init: float = 8.0  # the first layer's attention gate starts this * t more open
    noise_repel_init: float = 2.0  # keys start with 1 - this * t of their positional bias
    encoder_blocks: int = 0  # residual blocks of the condition encoder; 0 = none
    encoder_width: int = 64
    start: str = ""  # base file whose transformer, prompt and, where it has one, encoder the run starts from


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
class LossConfig:
    loss_space: str = "pixel"  # pixel | latent (SPEC 9)
    perceptual: str = "none"  # none | lpips-squeeze | lpips-alex | lpips-vgg
    perceptual_backbone: str = ""  # local file with the ImageNet features of that network (lpips_metric.py)


@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run: which share of each batch plays which role, at which size and rate."""

    steps: int = 1000
    trains: str = "transformer"  # transformer (the condition encoder is frozen) | encoder (alone: no transformer runs)
    crop_px: int = 64
    batch_size: int = 32
    data_share: float = 1.0  # rows restored and compared with the photograph (Eq. 12)
    data_steps: tuple[int, ...] = (1,)  # in how many steps those are restored, one of these each batch
    flow_share: float = 0.0  # rows at t_tar = t (Eq. 5)
    cons_share: float = 0.0  # rows compared with their own two half steps (Eq. 1-4)
    boundary_time: float = 0.0  # cons rows from below it to 0 have the flow's target (`losses.with_boundary`); 0 = none
    perceptual_weight: float = 0.0  # of LPIPS on the data rows (Eq. 13), times the number of steps they took
    lattice_weight: float = 0.0  # of `losses.lattice_loss`, likewise: against what LPIPS would bring along
    texture_weight: float = 0.0  # of `losses.texture_loss` on the data rows, times the steps they took but one
    lr_start: float = 5e-4
    lr_end: float = 5e-4


@dataclass(frozen=True)
class PretrainConfig:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, StageConfig, int]:
        """(index, stage, steps done within it) for a 0-based global step."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, stage, step
            step -= stage.steps
        raise ConfigError(f"step {step} lies beyond the last stage: nothing is left to train")


def load_config(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The config of a pretraining run (`toml_config.read_toml`), checked.

    Raises ConfigError for an unknown key, a value of the wrong type or out of range.
    """
    config = from_mapping(PretrainConfig, read_toml(path, overrides), where="")
    _check(config)
    return config


def _check(config: PretrainConfig) -> None:
    check_data(config.data)
    check_run(config.run)
    check_loss(config.loss)
    if config.model.prediction not in PREDICTIONS:
        raise ConfigError(f"model.prediction is '{config.model.prediction}': expected {' or '.join(PREDICTIONS)}")
    if config.model.encoder_blocks < 0 or config.model.encoder_width < 1:
        raise ConfigError("model.encoder_blocks must be at least 0 and model.encoder_width at least 1")
    if config.model.local_attention_init > 0 and min(config.model.rope_axes[1:]) < 4:
        raise ConfigError(
            f"model.rope_axes is {list(config.model.rope_axes)}: local attention needs at least 4 dimensions for rows "
            "and for columns; make heads wider, or set model.local_attention_init = 0"
        )
    for index, stage in enumerate(config.stages):
        shares = stage.data_share + stage.flow_share + stage.cons_share
        if abs(shares - 1) > 1e-6:
            raise ConfigError(f"stages[{index}]: data, flow and cons shares add up to {shares:g}, expected 1")
        if stage.trains not in PARTS:
            raise ConfigError(f"stages[{index}].trains is '{stage.trains}': expected {' or '.join(PARTS)}")
        if stage.trains == "encoder" and (config.model.encoder_blocks < 1 or stage.data_share != 1):
            raise ConfigError(
                f"stages[{index}] trains the condition encoder: it needs model.encoder_blocks above 0, and data rows "
                "alone: data_share = 1"
            )
        if stage.trains == "encoder" and (stage.data_steps != (1,) or stage.texture_weight > 0):
            raise ConfigError(
                f"stages[{index}] trains the condition encoder, which takes no steps: leave out data_steps and "
                "texture_weight"
            )
        if stage.crop_px < 16 or stage.crop_px % 16:
            raise ConfigError(f"stages[{index}].crop_px is {stage.crop_px}: expected a multiple of 16")
        if stage.steps < 1 or stage.batch_size < 1:
            raise ConfigError(f"stages[{index}]: steps and batch_size must be at least 1")
        if not stage.data_steps or not all(1 <= steps <= MAX_STEPS for steps in stage.data_steps):
            found = list(stage.data_steps)
            raise ConfigError(f"stages[{index}].data_steps is {found}: expected numbers of steps from 1 to {MAX_STEPS}")
        check_boundary_time(f"stages[{index}].boundary_time", stage.boundary_time)
        if stage.texture_weight > 0 and stage.crop_px < LEAST_TEXTURE_PX:
            raise ConfigError(
                f"stages[{index}].texture_weight is set and crop_px is {stage.crop_px}: expected at least "
                f"{LEAST_TEXTURE_PX}, the windows that contrast is taken in"
            )
        if stage.perceptual_weight > 0 and config.loss.perceptual == "none":
            raise ConfigError(f"stages[{index}].perceptual_weight is set but loss.perceptual is 'none': set it")


def check_data(data: DataConfig) -> None:
    from .degradation import PRESETS

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
