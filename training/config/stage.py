"""A stage of pretraining: what it trains, on how many rows of each role, and whether that can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, Strict, field_validator, with_config

from teasr_core.errors import ConfigError
from teasr_core.sampling.schedule import MAX_STEPS

from ..objective.losses import MAX_OFFSET
from ..objective.time_sampling import is_boundary_time
from .fields import TABLE, Count, CropPx, Natural, Positive, Share, Weight, one_of

PARTS = ("transformer", "encoder")
ROLES = ("data", "flow", "cons")
LEAST_TEXTURE_PX = 48  # of a crop: 4 tokens and the one that differences reach into, in whole blocks of 16 px
PERCEPTUAL_CROP_PX = 32  # smallest side LPIPS takes
BORDER_UNIT = 8  # px: what is left of a crop is whole tokens, as `texture.lattice_loss` expects
DATA_LOSSES = (
    "data_weight", "l1_weight", "gradient_weight", "perceptual_weight",
    "target_l1_weight", "target_gradient_weight", "target_perceptual_weight",
)  # fmt: skip


def _check_boundary_time(value: float) -> float:
    if value != 0 and not is_boundary_time(value):
        raise ValueError(f"is {value:g}: expected 0, or a time above 1/{MAX_STEPS} up to 1")
    return value


BoundaryTime = Annotated[float, Strict(), AfterValidator(_check_boundary_time)]  # 0 = none


@with_config(TABLE)
@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run: which share of each batch plays which role, at which size and rate."""

    steps: Count = 1000
    trains: Annotated[str, one_of(PARTS)] = "transformer"  # encoder: the condition encoder alone, no transformer runs
    crop_px: CropPx = 64
    batch_size: Count = 32  # of a micro-step
    accumulation: Count = 1  # micro-steps of one process in a step
    data_share: Share = 1.0  # rows restored and compared with the photograph (Eq. 12)
    data_steps: tuple[Annotated[int, Strict(), Field(ge=1, le=MAX_STEPS)], ...] = (1,)  # each batch takes one of these
    # numbers of steps to restore its data rows
    flow_share: Share = 0.0  # rows at t_tar = t (Eq. 5)
    cons_share: Share = 0.0  # rows compared with their own two half steps (Eq. 1-4)
    boundary_time: BoundaryTime = 0.0  # cons rows from below it to 0 have the flow's target (`with_boundary`)
    perceptual_weight: Weight = 0.0  # of LPIPS on the data rows (Eq. 13), times the number of steps they took
    lattice_weight: Weight = 0.0  # of `texture.lattice_loss`, likewise: against the lattice that LPIPS brings along
    texture_weight: Weight = 0.0  # of `texture.texture_loss` on the data rows, times the steps they took but one
    data_weight: Weight = 1.0  # of the squared error to the photograph (Eq. 12), on the data rows as all that follow
    l1_weight: Weight = 0.0  # of the absolute error to the photograph
    gradient_weight: Weight = 0.0  # of the absolute error of the differences of neighbouring pixels
    sharpness_weight: Weight = 0.0  # of the mean difference of neighbouring pixels, which is subtracted: a reward
    target_l1_weight: Weight = 0.0  # these three: likewise, to the target picture (docs/training/target_pictures.md)
    target_gradient_weight: Weight = 0.0
    target_perceptual_weight: Weight = 0.0  # of LPIPS to the target picture
    border_px: Natural = 0  # left out of these losses on each side, where the network misses what lies outside the crop
    lr_start: Positive = 5e-4
    lr_end: Weight = 5e-4

    @property
    def uses_target(self) -> bool:
        """Whether a loss compares with the target pictures of ready pairs."""
        return max(self.target_l1_weight, self.target_gradient_weight, self.target_perceptual_weight) > 0

    @field_validator("data_steps")
    @classmethod
    def _check_data_steps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError(f"is []: expected numbers of steps from 1 to {MAX_STEPS}")
        return value


def split_roles(stage: StageConfig) -> tuple[int, int, int]:
    """Rows of (data, flow, cons) in a batch; rounding goes to data."""
    flow = round(stage.batch_size * stage.flow_share)
    cons = round(stage.batch_size * stage.cons_share)
    return stage.batch_size - flow - cons, flow, cons


def check_stage(where: str, stage: StageConfig, has_encoder: bool, has_perceptual: bool) -> None:
    """ConfigError where two fields do not go together.

    where: the stage's name in the message. has_encoder, has_perceptual: what the run has beside the transformer.
    """
    _check_rows(where, stage)
    _check_encoder_stage(where, stage, has_encoder)
    _check_crop(where, stage)
    _check_losses(where, stage)
    for name in ("perceptual_weight", "target_perceptual_weight"):
        if getattr(stage, name) > 0 and not has_perceptual:
            raise ConfigError(
                f"{where}.{name} is {getattr(stage, name):g} and loss.perceptual is 'none': set loss.perceptual, or "
                "leave out the weight"
            )


def _check_rows(where: str, stage: StageConfig) -> None:
    """A role must have rows where it has a share, and only there."""
    shares = [stage.data_share, stage.flow_share, stage.cons_share]
    if abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"{where}: data, flow and cons shares add up to {sum(shares):g}, expected 1")
    rows = split_roles(stage)
    for role, share, count in zip(ROLES, shares, rows, strict=True):
        if count < 0 or (count > 0) != (share > 0):
            raise ConfigError(
                f"{where}: {role}_share = {share:g} of a batch of {stage.batch_size} comes to {count} rows, all "
                f"shares to {rows}: choose shares that are whole rows, or another batch_size"
            )


def _check_encoder_stage(where: str, stage: StageConfig, has_encoder: bool) -> None:
    if stage.trains != "encoder":
        return
    if not has_encoder or stage.data_share != 1:
        raise ConfigError(
            f"{where} trains the condition encoder: it needs model.encoder_blocks above 0, and data rows "
            "alone, data_share = 1"
        )
    if stage.data_steps != (1,) or stage.texture_weight > 0:
        raise ConfigError(
            f"{where} trains the condition encoder, which takes no steps: leave out data_steps and texture_weight"
        )


def _check_crop(where: str, stage: StageConfig) -> None:
    side = stage.crop_px - 2 * stage.border_px
    left = f"crop_px is {stage.crop_px}" + (f" with {stage.border_px} px left out a side" if stage.border_px else "")
    if stage.border_px % BORDER_UNIT or side < BORDER_UNIT:
        raise ConfigError(
            f"{where}.border_px is {stage.border_px}: expected a multiple of {BORDER_UNIT} that leaves some of crop_px "
            f"{stage.crop_px}"
        )
    if stage.texture_weight > 0 and side < LEAST_TEXTURE_PX:
        raise ConfigError(
            f"{where}.texture_weight is set and {left}: expected at least {LEAST_TEXTURE_PX}, so that the windows in "
            "which contrast is measured fit"
        )
    least = PERCEPTUAL_CROP_PX + MAX_OFFSET
    for name in ("perceptual_weight", "target_perceptual_weight"):
        if getattr(stage, name) > 0 and side < least:
            raise ConfigError(f"{where}.{name} is set and {left}: LPIPS at random offsets expects at least {least}")


def _check_losses(where: str, stage: StageConfig) -> None:
    if stage.data_share > 0 and max(getattr(stage, name) for name in DATA_LOSSES) == 0:
        raise ConfigError(f"{where} has data rows and no loss for them: set one of {', '.join(DATA_LOSSES)}")
