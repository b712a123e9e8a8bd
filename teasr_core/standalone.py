"""The built-in model outside ComfyUI, ready to restore: what the command line loads once and uses for every image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import builtin
from .lora_file import check_base, read_lora
from .precision import choose_dtype, dtype_name
from .qwen import QwenVelocity
from .report import Report
from .restore import RestoreOptions, latent_sampler, restore, tile_in_latent
from .sampler import StepCallback
from .schedule import StepPlan
from .tiling import TileCallback


@dataclass
class Restorer:
    """A loaded base with its adapter. `restore` is deterministic: same image, options, plan and seed, same pixels."""

    base: builtin.BuiltinFile
    velocity: QwenVelocity
    dtype: torch.dtype
    report: Report = field(default_factory=Report)

    @property
    def pixel_multiple(self) -> int:
        return self.base.architecture.block_multiple * self.base.codec.downscale

    def restore(
        self,
        image: torch.Tensor,
        options: RestoreOptions,
        plan: StepPlan,
        seed: int = 0,
        tile_px: int = 0,
        overlap_px: int = 0,
        on_step: StepCallback | None = None,
        on_tile: TileCallback | None = None,
    ) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H', W') of options.size; `self.report` tells how it went."""
        self.report = Report(steps=plan.steps, dtype=dtype_name(self.dtype))
        patch_multiple = self.base.architecture.block_multiple
        tile, overlap = tile_in_latent(tile_px, overlap_px, self.base.codec.downscale, patch_multiple)
        sampler = latent_sampler(
            self.velocity, plan.taus, seed, patch_multiple, tile, overlap, self.report, on_step, on_tile
        )
        return restore(image, self.base.codec, sampler, options, self.pixel_multiple, self.report)


def load_restorer(
    dtype: str = "auto", lora_path: Path | None = None, lora_strength: float = 1.0, allow_other_base: bool = False
) -> Restorer:
    """The built-in model with the shipped adapter, or with the one at `lora_path` in its place."""
    base = builtin.shipped_base()
    if lora_path is None:
        lora = builtin.shipped_lora(base)
    else:
        lora = read_lora(lora_path)
        check_base(lora, base.architecture, base.prediction, base.tensors, allow_other_base)
    chosen = choose_dtype(dtype, torch.device("cpu"))
    return Restorer(base, builtin.build_velocity(base, lora, lora_strength, chosen), chosen)
