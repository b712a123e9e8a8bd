"""What a pretraining run is made of, as frozen dataclasses; `config.toml` reads them from TOML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import with_config

from teasr_core.codec.block_dct import DCT_CHANNELS
from teasr_core.errors import ConfigError
from teasr_core.model.architecture import PREDICTIONS, QwenArchitecture

from .fields import TABLE, Count, Natural, Number, Switch, one_of
from .shared import DataConfig, LossConfig, OptimConfig, RunConfig, check_data
from .stage import StageConfig, check_stage
from .toml import from_mapping, read_toml


@with_config(TABLE)
@dataclass(frozen=True)
class ModelConfig:
    num_layers: Count = 6
    num_heads: Count = 8
    head_dim: Count = 32
    rope_axes: tuple[Count, Count, Count] = (4, 14, 14)
    text_width: Count = 64
    prompt_tokens: Count = 4
    prediction: Annotated[str, one_of(PREDICTIONS)] = "lq_residual"
    use_dtc: Switch = True
    local_attention_init: Number = 4.0  # query and key bias of local attention; 0 = none (pretrain/initialise.py)
    gate_init: Number = 1.0  # bias of the residual gates; 0 = adaLN-Zero
    input_gain: Number = 2.0  # of img_in: how much a token starts out as itself beside what attention brings it
    time_scale_init: Number = 0.9  # attention inputs start scaled by 1 - this * t; this and the next two with DTC alone
    noise_gate_init: Number = 8.0  # the first layer's attention gate starts this * t more open
    noise_repel_init: Number = 2.0  # keys start with 1 - this * t of their positional bias
    encoder_kind: Annotated[str, one_of(("residual", "rrdb"))] = "residual"  # teasr_core/codec/condition_encoder/
    encoder_blocks: Natural = 0  # blocks of the condition encoder; 0 = none
    encoder_width: Count = 64  # its features; the growth of an rrdb encoder is half of them
    encoder_start: str = ""  # what the encoder starts from: a base file that has one, "builtin" for the shipped base,
    # or for an rrdb encoder RRDBNet weights (x4, such as RealESRGAN_x4plus.pth)
    start: str = ""  # base file whose transformer, prompt and, where it has one, encoder the run starts from


@with_config(TABLE)
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
    """The config of a pretraining run. It raises ConfigError for an unknown key or a value that cannot be."""
    config = from_mapping(PretrainConfig, read_toml(path, overrides), where="")
    _check(config)
    return config


def _check(config: PretrainConfig) -> None:
    check_data(config.data)
    if config.model.local_attention_init > 0 and min(config.model.rope_axes[1:]) < 4:
        raise ConfigError(
            f"model.rope_axes is {list(config.model.rope_axes)}: local attention needs at least 4 dimensions for rows "
            "and for columns; make heads wider, or set model.local_attention_init = 0"
        )
    for index, stage in enumerate(config.stages):
        check_stage(f"stages[{index}]", stage, config.model.encoder_blocks > 0, config.loss.perceptual != "none")


def encoder_config(config: ModelConfig) -> dict[str, Any] | None:
    """What a base file says of the condition encoder (`ConditionEncoder.config`); None where the model has none."""
    width, blocks = config.encoder_width, config.encoder_blocks
    if not blocks:
        return None
    if config.encoder_kind == "rrdb":
        return {"kind": "rrdb", "blocks": blocks, "width": width, "growth": width // 2}
    return {"width": width, "blocks": blocks}


def architecture_of(config: ModelConfig) -> QwenArchitecture:
    return QwenArchitecture(
        latent_channels=DCT_CHANNELS,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        rope_axes=config.rope_axes,
        text_width=config.text_width,
    )
