"""`upscale`: one image or a folder, file properties kept (SPEC 12)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from . import geometry
from .alpha import bleed_rgb, resize_alpha
from .cli import DEFAULT_SCALE, check_lora_strength
from .errors import InputError, TeasrError
from .geometry import TargetSize
from .images import Picture, check_output, find_images, load_picture, save_picture
from .restore import RestoreOptions, tile_in_latent
from .schedule import StepPlan, manual_plan
from .standalone import Restorer, load_restorer

# Above this factor the model has seen nothing like it (SPEC 6).
WARN_SCALE = 4.0


def upscale(args: argparse.Namespace) -> int:
    """Check everything that can be checked before the model is loaded, then restore image by image."""
    jobs = plan_jobs(args.input, args.output, args.overwrite)
    check_options(args)
    plan = manual_plan(args.steps)
    restorer = load_restorer(args.dtype, args.lora, check_lora_strength(args.lora_strength), args.allow_other_base)
    tile_in_latent(
        args.tile_px, args.overlap_px, restorer.base.codec.downscale, restorer.base.architecture.block_multiple
    )
    failed = 0
    for source, target in jobs:
        try:
            _upscale_one(restorer, source, target, args, plan)
        except TeasrError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            print(f"error: {source.name}: {error}", file=sys.stderr)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} images were refused (named above): the others are written")
    return 0


def plan_jobs(source: Path, target: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """(input, output) pairs; a folder goes to a folder, each image under its own name."""
    if not source.exists():
        raise InputError(f"{source} does not exist: give an image or a folder of images")
    if source.is_file():
        check_output(target, has_alpha=False, overwrite=overwrite)
        return [(source, target)]
    images = find_images(source)
    if not images:
        raise InputError(f"{source} holds no image: expected PNG, JPEG, WebP, TIFF or BMP files")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, the input is a folder: give a folder as output")
    if target.exists() and target.resolve() == source.resolve():
        raise InputError(f"{target} is the input folder: give another folder, so that no original is replaced")
    jobs = [(path, target / path.name) for path in images]
    target.mkdir(parents=True, exist_ok=True)
    for _, path in jobs:
        check_output(path, has_alpha=False, overwrite=overwrite)
    return jobs


def check_options(args: argparse.Namespace) -> None:
    """Refuse impossible options before any work."""
    modes = [name for name in ("scale", "shortest", "longest", "megapixels") if getattr(args, name) is not None]
    if (args.width is None) != (args.height is None):
        raise InputError("--width and --height belong together: give both, or one of --shortest, --longest")
    if len(modes) + (args.width is not None) > 1:
        raise InputError(f"several sizes asked for ({', '.join(modes)}): give one")
    target_size(args, 100, 100)
    RestoreOptions(TargetSize(1, 1), args.strength, args.color_fix, args.color_strength)


def target_size(args: argparse.Namespace, width: int, height: int) -> TargetSize:
    """The exact output size of an image of width x height under the size options."""
    if args.shortest is not None:
        size = geometry.size_by_shortest(width, height, args.shortest)
    elif args.longest is not None:
        size = geometry.size_by_longest(width, height, args.longest)
    elif args.width is not None:
        size = geometry.size_exact(width, height, args.width, args.height)
    elif args.megapixels is not None:
        size = geometry.size_by_megapixels(width, height, args.megapixels)
    else:
        size = geometry.size_by_factor(width, height, DEFAULT_SCALE if args.scale is None else args.scale)
    return geometry.cap_megapixels(size, args.max_megapixels)


def _upscale_one(
    restorer: Restorer, source: Path, target: Path, args: argparse.Namespace, plan: StepPlan
) -> None:
    picture = load_picture(source)
    check_output(target, has_alpha=picture.alpha is not None, overwrite=args.overwrite)
    height, width = picture.rgb.shape[-2:]
    size = target_size(args, width, height)
    if size.width > WARN_SCALE * width or size.height > WARN_SCALE * height:
        print(f"note: {source.name} is enlarged more than {WARN_SCALE:g} times: expect less detail", file=sys.stderr)
    options = RestoreOptions(size, args.strength, args.color_fix, args.color_strength)
    restored = restore_picture(restorer, picture, options, plan, args.seed, args.tile_px, args.overlap_px)
    save_picture(restored, target, quality=args.quality, overwrite=args.overwrite)
    print(f"{target}: {restorer.report.line()}")


def restore_picture(
    restorer: Restorer,
    picture: Picture,
    options: RestoreOptions,
    plan: StepPlan,
    seed: int,
    tile_px: int = 0,
    overlap_px: int = 0,
) -> Picture:
    """Restore the colours; alpha is resampled on its own, with the colours bled under it first (SPEC 6)."""
    rgb, alpha = picture.rgb, picture.alpha
    if alpha is not None:
        rgb = bleed_rgb(rgb, alpha)
        alpha = resize_alpha(alpha, options.size)
    restored = restorer.restore(rgb, options, plan, seed, tile_px, overlap_px)
    if picture.is_grey:
        restored = _grey(restored)
    return dataclasses.replace(picture, rgb=restored, alpha=alpha)


def _grey(image: torch.Tensor) -> torch.Tensor:
    """A grey file stays grey: BT.601 luma of the three channels, which the model may have tinted."""
    luma = (image * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return luma.clamp(0, 1).expand_as(image)
