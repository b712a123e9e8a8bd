"""What a pretraining run is made of, as frozen dataclasses; `toml_config` reads them from TOML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from teasr_core.errors import ConfigError
from teasr_core.model.architecture import PREDICTIONS

from .stage import StageConfig, check_stage
from .toml import from_mapping, read_toml

if TYPE_CHECKING:
    pass


from teasr_core.codec.dct import DCT_CHANNELS
from teasr_core.model.architecture import QwenArchitecture

from .shared import DataConfig, LossConfig, OptimConfig, RunConfig, check_data, check_loss, check_optim, check_run


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
    local_attention_init: float = (
        4.0  # query and key bias of local attention; 0 = none (training/pretrain/initialise.py)
    )
    gate_init: float = 1.0  # bias of the residual gates; 0 = adaLN-Zero
    input_gain: float = 2.0  # of img_in: how much a token starts out as itself beside what attention brings it
    time_scale_init: float = 0.9  # attention inputs start scaled by 1 - this * t; this and the next two with DTC alone
    noise_gate_init: float = 8.0  # the first layer's attention gate starts this * t more open
    noise_repel_init: float = 2.0  # keys start with 1 - this * t of their positional bias
    encoder_blocks: int = 0  # residual blocks of the condition encoder; 0 = none
    encoder_width: int = 64
    start: str = ""  # base file whose transformer, prompt and, where it has one, encoder the run starts from


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
    check_optim(config.optim)
    if config.optim.max_bad_steps < 1:
        raise ConfigError(f"optim.max_bad_steps is {config.optim.max_bad_steps}: expected at least 1")
    for name in ("num_layers", "num_heads", "head_dim", "text_width", "prompt_tokens", "rope_axes"):
        found = getattr(config.model, name)
        if min(found if isinstance(found, tuple) else (found,)) < 1:
            raise ConfigError(f"model.{name} is {found}: expected at least 1")
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
        check_stage(f"stages[{index}]", stage, config.model.encoder_blocks > 0, config.loss.perceptual != "none")


def architecture_of(config: ModelConfig) -> QwenArchitecture:
    return QwenArchitecture(
        latent_channels=DCT_CHANNELS,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        rope_axes=config.rope_axes,
        text_width=config.text_width,
    )
