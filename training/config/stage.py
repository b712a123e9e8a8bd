"""A stage of pretraining: what it trains on how many rows, and whether that can be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from teasr_core.errors import ConfigError
from teasr_core.sampling.schedule import MAX_STEPS

from ..objective.losses import MAX_OFFSET
from ..objective.time_sampling import check_boundary_time

PARTS = ("transformer", "encoder")
ROLES = ("data", "flow", "cons")
LEAST_TEXTURE_PX = 48  # of a crop: 4 tokens and the one that differences reach into, in whole blocks of 16 px
PERCEPTUAL_CROP_PX = 32  # smallest side LPIPS takes


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
    lattice_weight: float = 0.0  # of `texture.lattice_loss`, likewise: against what LPIPS would bring along
    texture_weight: float = 0.0  # of `texture.texture_loss` on the data rows, times the steps they took but one
    lr_start: float = 5e-4
    lr_end: float = 5e-4


def split_roles(stage: StageConfig) -> tuple[int, int, int]:
    """Rows of (data, flow, cons) in a batch; rounding goes to data."""
    flow = round(stage.batch_size * stage.flow_share)
    cons = round(stage.batch_size * stage.cons_share)
    return stage.batch_size - flow - cons, flow, cons


def check_stage(where: str, stage: StageConfig, has_encoder: bool, has_perceptual: bool) -> None:
    """ConfigError for the first value out of range, or that does not go with the others.

    where: its name in messages. has_encoder, has_perceptual: does the run have a condition encoder, and LPIPS?
    """
    if stage.trains not in PARTS:
        raise ConfigError(f"{where}.trains is '{stage.trains}': expected {' or '.join(PARTS)}")
    if stage.crop_px < 16 or stage.crop_px % 16:
        raise ConfigError(f"{where}.crop_px is {stage.crop_px}: expected a multiple of 16")
    if stage.steps < 1 or stage.batch_size < 1:
        raise ConfigError(f"{where}: steps and batch_size must be at least 1")
    if not stage.data_steps or not all(1 <= steps <= MAX_STEPS for steps in stage.data_steps):
        found = list(stage.data_steps)
        raise ConfigError(f"{where}.data_steps is {found}: expected numbers of steps from 1 to {MAX_STEPS}")
    for name, fits, expected in (
        *((f"{role}_share", 0 <= getattr(stage, f"{role}_share") <= 1, "0 to 1") for role in ROLES),
        *((f"{term}_weight", 0 <= getattr(stage, f"{term}_weight") < math.inf, "at least 0")
          for term in ("perceptual", "lattice", "texture")),
        ("lr_start", 0 < stage.lr_start < math.inf, "more than 0"),
        ("lr_end", 0 <= stage.lr_end < math.inf, "at least 0"),
    ):  # fmt: skip
        if not fits:
            raise ConfigError(f"{where}.{name} is {getattr(stage, name):g}: expected {expected}")
    check_boundary_time(f"{where}.boundary_time", stage.boundary_time)
    _check_rows(where, stage)
    _check_encoder_stage(where, stage, has_encoder)
    _check_crop(where, stage)
    if stage.perceptual_weight > 0 and not has_perceptual:
        raise ConfigError(f"{where}.perceptual_weight is set but loss.perceptual is 'none': set it")


def _check_rows(where: str, stage: StageConfig) -> None:
    """A role has rows where it has a share, and only there."""
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
            "alone: data_share = 1"
        )
    if stage.data_steps != (1,) or stage.texture_weight > 0:
        raise ConfigError(
            f"{where} trains the condition encoder, which takes no steps: leave out data_steps and texture_weight"
        )


def _check_crop(where: str, stage: StageConfig) -> None:
    if stage.texture_weight > 0 and stage.crop_px < LEAST_TEXTURE_PX:
        raise ConfigError(
            f"{where}.texture_weight is set and crop_px is {stage.crop_px}: expected at least "
            f"{LEAST_TEXTURE_PX}, the windows that contrast is taken in"
        )
    least = PERCEPTUAL_CROP_PX + MAX_OFFSET
    if stage.perceptual_weight > 0 and stage.crop_px < least:
        raise ConfigError(
            f"{where}.perceptual_weight is set and crop_px is {stage.crop_px}: LPIPS at random offsets expects at "
            f"least {least}"
        )
