"""Image in, restored image out: the one path of the command line, the tests and TEASRUpscale.

resize to the exact target -> pad -> encode -> sample -> decode -> crop -> colour fix -> strength
(docs/decisions.md#size-and-padding, docs/decisions.md#strength-and-colour).
What encodes, samples and decodes is handed in, so that ComfyUI can give its own VAE and sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from .codec.protocol import Codec
from .errors import InputError, OutputError
from .image.color_fix import COLOR_FIXES, apply_strength, fix_color
from .image.grain import add_grain, grain_source
from .image.region import Region, blend, decode_in_box
from .image.resize import check_image, crop_to, pad_to_multiple, resize
from .image.target_size import TargetSize, mean_scale
from .model.recipe import Recipe
from .model.velocity import Velocity
from .report import PhaseTimer, Report, SamplingRecord
from .sampling.auto_steps import AutoSteps
from .sampling.sampler import StepCallback, check_fidelity, initial_noise, noised, sample, scaled_noise
from .sampling.schedule import StepPlan, starting_at
from .sampling.smaller_pieces import SteppingDown
from .sampling.tiled_velocity import TiledVelocity, towards
from .tiling import TileCallback, plan_tiles

# A result that varies less than this is one flat colour but for the codec's rounding.
FLAT_SPREAD = 1e-6


class LatentSampler(Protocol):
    def __call__(
        self, z_lq: torch.Tensor, z_start: torch.Tensor | None = None, /
    ) -> tuple[torch.Tensor, SamplingRecord]:
        """From one image's conditioning latent (1, C, h, w) to the clean latent of this shape and how it was sampled.

        z_start: the latent that sampling starts from, where the codec gives one (`Codec.encode_start`).
        """
        ...


@dataclass(frozen=True)
class RestoreOptions:
    """What the user chose; the defaults are the nodes'. grain_seed: that of the grain alone."""

    size: TargetSize
    strength: float = 1.0
    color_fix: str = "wavelet"
    color_strength: float = 1.0
    fidelity: float = 0.0
    grain: float = 0.0
    grain_seed: int = 0

    def __post_init__(self) -> None:
        if self.color_fix not in COLOR_FIXES:
            raise InputError(f"color_fix is '{self.color_fix}': expected one of {', '.join(COLOR_FIXES)}")
        check_fidelity(self.fidelity)
        for name in ("strength", "color_strength", "grain"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise InputError(f"{name} is {value}: expected a number from 0 to 1")


@dataclass(frozen=True)
class RestoreRequest:
    """All that decides the pixels of a restoration, but for the model.

    plan: the times of the steps, or `AutoSteps`, which chooses them for each image from the noise and the tiles that it
    is then sampled with. tile_px, overlap_px: 0 is automatic. region: what is restored, at the size of the result; None
    is the whole picture.
    """

    options: RestoreOptions
    plan: StepPlan | AutoSteps
    seed: int = 0
    tile_px: int = 0
    overlap_px: int = 0
    region: Region | None = None


@dataclass(frozen=True)
class Callbacks:
    """What is called while an image is sampled: after each step, after each tile, and with its times before them."""

    on_step: StepCallback | None = None
    on_tile: TileCallback | None = None
    on_plan: Callable[[StepPlan], None] | None = None


class Restored(NamedTuple):
    """A restored image (B, 3, H', W') in [0, 1], and how the restoration went."""

    image: torch.Tensor
    report: Report


def conditioning_image(image: torch.Tensor, size: TargetSize, multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(resized, padded): the image (B, 3, H, W) at the exact target size, and padded to `multiple` for the encoder."""
    resized = resize(image, size)  # (B, 3, H', W')
    return resized, pad_to_multiple(resized, multiple)[0]


def postprocess(
    decoded: torch.Tensor,
    resized: torch.Tensor,
    options: RestoreOptions,
    region: Region | None = None,
    source: torch.Tensor | None = None,
) -> torch.Tensor:
    """Crop the decoded image to `resized`, clamp it to [0, 1], fix its colour, add grain, apply strength. (B, 3, H, W)

    source: the input before it was resized, in which the grain is measured; without it, `resized`.
    region: only this part of the decoded image is looked at and replaces that of `resized`, image by image; adain and
    lab then match the rectangle around it.
    The result is float32 on the device of `resized`, wherever the codec ran. OutputError for what `check_result`
    refuses.
    """
    if region is None:
        return finish(cropped_to_unit(decoded, resized), resized, options, grain_source(source, resized))
    sources = grain_source(source, resized).expand(len(decoded), -1, -1, -1)
    images = zip(decoded.split(1), resized.split(1), sources.split(1), strict=True)
    return torch.cat([_in_region(*image, options, region.of_image(k)) for k, image in enumerate(images)])


def _in_region(
    decoded: torch.Tensor, resized: torch.Tensor, source: torch.Tensor, options: RestoreOptions, region: Region
) -> torch.Tensor:
    if region.is_empty:
        return resized.clone()
    box = (..., *region.box())
    part, reference = crop_to(decoded, options.size)[box], resized[box].contiguous()
    return blend(resized, finish(cropped_to_unit(part, reference), reference, options, source), region)


def cropped_to_unit(decoded: torch.Tensor, resized: torch.Tensor) -> torch.Tensor:
    """The decoded image (B, 3, H, W), checked, cropped to the size of `resized` and clamped to [0, 1]."""
    height, width = resized.shape[-2:]
    cropped = crop_to(decoded.to(resized), TargetSize(width, height))
    check_result(cropped, resized)
    return cropped.clamp(0, 1)


def finish(
    restored: torch.Tensor, resized: torch.Tensor, options: RestoreOptions, source: torch.Tensor
) -> torch.Tensor:
    """The colour fix, the grain of `source` and the strength blend of a restored image (B, 3, H, W) in [0, 1]."""
    fixed = fix_color(restored, resized, options.color_fix, options.color_strength)
    grained = add_grain(fixed, resized, source, options.grain, options.grain_seed)
    return apply_strength(resized, grained, options.strength)


def check_result(restored: torch.Tensor, resized: torch.Tensor) -> None:
    """OutputError for NaN or infinity, or a constant result (B, 3, H, W) of an image that is not constant (R3)."""
    least, largest = restored.aminmax()  # both are NaN where any value is
    if not (math.isfinite(least) and math.isfinite(largest)):
        raise OutputError(
            "the restored image holds NaN or infinity: expected numbers; usual causes are fp16, sage attention or a "
            "broken quantised base, so use bf16 or fp32, or another attention"
        )
    for k in range(len(restored)):
        if _spread(restored[k]) < FLAT_SPREAD and _spread(resized[k]) > 1e-3:
            raise OutputError(
                f"image {k} came out as one flat colour: expected a picture; usual causes are fp16, sage attention "
                "or a LoRA for another base, so use bf16 or fp32 and check the LoRA"
            )


def _spread(image: torch.Tensor) -> float:
    """Largest standard deviation over the pixels of one channel; a flat red (3, H, W) has 0."""
    return float(image.flatten(1).std(dim=1, correction=0).max())


def restore(
    image: torch.Tensor,
    codec: Codec,
    sampler: LatentSampler,
    options: RestoreOptions,
    multiple: int,
    region: Region | None = None,
) -> Restored:
    """Restore (B, 3, H, W) in [0, 1] to (B, 3, H', W') of options.size, float32 in [0, 1].

    Images are taken one at a time: image k of a batch is the same as that image alone, and memory does not grow. The
    report tells how the last one was sampled, and the seconds of all.
    `multiple` is the padding in pixels: 16 for the built-in model, 32 for Qwen-Image. strength 0 runs no model, nor
    does an empty region; outside a region the result is the resized image to the bit.
    Raises InputError for another kind of tensor, OutputError for a result that must not be shown.
    """
    check_image(image, "image", channels=3)
    timer, record = PhaseTimer(), SamplingRecord()
    results = []
    for k in range(len(image)):
        one = image[k : k + 1]
        if options.strength == 0 or (region is not None and region.is_empty):
            results.append(resize(one, options.size))
            continue
        # `picture` is reused so that only one full-size tensor is alive at a time while sampling. For the same reason
        # the resized image is computed again at the end: that is cheaper than keeping it.
        with timer.phase("encode"):
            picture = conditioning_image(one, options.size, multiple)[1]
            start = codec.encode_start(picture)
            picture = codec.encode_lq(picture, mean_scale(one.shape[3], one.shape[2], options.size))
        with timer.phase("sample"):
            picture, record = sampler(picture) if start is None else sampler(picture, start)
            del start
        with timer.phase("decode"):
            whole = region is None
            picture = codec.decode(picture) if whole else decode_in_box(codec.decode, picture, region, codec.downscale)
            resized = resize(one, options.size)
            if whole:
                picture = cropped_to_unit(picture, resized)
                results.append(finish(picture, resized, options, grain_source(one, resized)))
            else:
                results.append(postprocess(picture, resized, options, region, one))
        del picture, resized
    restored = torch.cat(results) if len(results) > 1 else results[0]
    return Restored(restored, Report(**vars(record), size=options.size, seconds=timer.seconds))


def latent_sampler(
    velocity: Velocity,
    request: RestoreRequest,
    patch_multiple: int,
    tile: int,
    overlap: int,
    callbacks: Callbacks | None = None,
    downscale: int = 1,
    recipe: Recipe | None = None,
) -> LatentSampler:
    """The standalone `LatentSampler`: Algorithm 1 on a velocity, in tiles of `tile` latent pixels where it is larger.

    patch_multiple: `QwenArchitecture.block_multiple`. downscale: pixels of the result in a latent pixel. Tiles that
    lie wholly outside request.region are not computed. Every image gets the one noise field of the seed
    (docs/decisions.md#one-noise-field). A tile that does not fit into memory is computed in smaller pieces, and so are
    all tiles after it. A `recipe` decides where sampling starts, how tiles blend and what fidelity does; the times of
    `request.plan` are squeezed to its start time.
    """
    callbacks, plan, recipe = callbacks or Callbacks(), request.plan, recipe or Recipe()
    fitting = SteppingDown(velocity, patch_multiple)
    fidelity = request.options.fidelity

    def sample_latent(
        z_lq: torch.Tensor, z_start: torch.Tensor | None = None, /
    ) -> tuple[torch.Tensor, SamplingRecord]:
        _, channels, height, width = z_lq.shape
        tiles = plan_tiles(height, width, tile, overlap, patch_multiple, recipe.border(tile, overlap))

        def noise() -> torch.Tensor:
            return initial_noise(request.seed, channels, height, width).to(z_lq)

        wanted = None if request.region is None else request.region.in_latent(height, width, downscale)
        computed = len(tiles.corners(wanted))
        # Outside the region the picture stays what it was, without the noise that fidelity may mix into z_lq below.
        cut = TiledVelocity(fitting, tiles, callbacks.on_tile, wanted, elsewhere=towards(z_lq))
        tiled = cut if tiles.count > 1 else fitting

        def start(less_noise: float = 0.0) -> torch.Tensor:
            """What sampling starts from, (1, C, h, w) at the recipe's start time."""
            field = scaled_noise(noise(), less_noise)
            return field if z_start is None else noised(z_start.to(z_lq), field, recipe.start_time)

        if recipe.fidelity_times:
            z_lq = noised(z_lq, noise(), recipe.lq_time(fidelity))
        if isinstance(plan, AutoSteps):
            chosen = plan.choose(tiled, start(), z_lq, wanted, recipe.start_time)
        else:
            chosen = replace(plan, taus=starting_at(plan.taus, recipe.start_time))
        reason = chosen.reason if isinstance(plan, AutoSteps) else ""
        if callbacks.on_plan is not None:
            callbacks.on_plan(chosen)
        z_0 = sample(tiled, start(0.0 if recipe.fidelity_times else fidelity), z_lq, chosen.taus, callbacks.on_step)
        return z_0, SamplingRecord(computed, steps=chosen.steps, reason=reason, largest_piece=fitting.largest)

    return sample_latent
