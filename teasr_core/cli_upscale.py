"""`upscale`: one image or a folder, file properties kept (SPEC 12)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from . import geometry
from .alpha import bleed_rgb, resize_alpha
from .checkpoint_kind import Kind, detect
from .cli import DEFAULT_SCALE, check_lora_strength
from .device import choose_device
from .errors import InputError, TeasrError
from .geometry import TargetSize
from .images import WRITABLE_EXTENSIONS, Picture, check_output, find_images, load_picture, save_picture
from .precision import STORAGES
from .restore import RestoreOptions
from .schedule import StepPlan, manual_plan
from .standalone import CPU, Restorer, load_qwen_restorer, load_restorer, qwen_tile

# Above this factor the model has seen nothing like it (SPEC 6).
WARN_SCALE = 4.0


def upscale(args: argparse.Namespace) -> int:
    """Check everything that can be checked before the model is loaded, then restore image by image."""
    check_options(args)
    jobs = plan_jobs(args.input, args.output, args.overwrite)
    plan = manual_plan(args.steps)
    restorer: Restorer | None = None
    refused: list[Path] = []

    def refuse(source: Path, error: TeasrError) -> None:
        """A bad image does not stop the others; alone it is the command's own error."""
        if len(jobs) == 1:
            raise error
        refused.append(source)
        print(f"error: {source.name}: {error}", file=sys.stderr)

    has_warned = False
    for source, target in jobs:
        try:
            picture, options = prepare(source, target, args)
        except TeasrError as error:
            refuse(source, error)
            continue
        restorer = restorer or _load(args)
        if not has_warned and _is_large(picture, options.size):
            print(
                f"note: {source.name} is enlarged more than {WARN_SCALE:g} times: expect less detail", file=sys.stderr
            )
            has_warned = True
        try:
            restored = restore_picture(restorer, picture, options, plan, args.seed, args.tile_px, args.overlap_px)
            if args.input.is_dir():
                _make_folder(target.parent)
            save_picture(restored, target, quality=args.quality, overwrite=args.overwrite)
        except TeasrError as error:
            refuse(source, error)
            continue
        print(f"{target}: {restorer.report.line()}")
    if refused:
        raise InputError(f"{len(refused)} of {len(jobs)} images were refused (named above): the others are written")
    return 0


def plan_jobs(source: Path, target: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """(input, output) pairs; a folder goes to a folder, each image under its own name. Nothing is written.

    What cannot be written in its own format (.bmp) becomes a .png.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist: give an image or a folder of images")
    if source.is_file():
        check_output(target, has_alpha=False, overwrite=overwrite)
        return [(source, target)]
    images = find_images(source)
    if not images:
        raise InputError(f"{source} holds no image: expected PNG, JPEG, WebP, TIFF or BMP files")
    existing = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file, the input is a folder: give a folder as output")
    if target.resolve() == source.resolve():
        raise InputError(f"{target} is the input folder: give another folder, so that no original is replaced")
    jobs: dict[Path, Path] = {}
    for path in images:
        output = target / (path.name if path.suffix.lower() in WRITABLE_EXTENSIONS else f"{path.stem}.png")
        if output in jobs:
            raise InputError(f"{jobs[output].name} and {path.name} would both become {output.name}: rename one")
        if target.is_dir():
            check_output(output, has_alpha=False, overwrite=overwrite)
        jobs[output] = path
    return [(path, output) for output, path in jobs.items()]


def check_options(args: argparse.Namespace) -> None:
    """Refuse impossible options before any work."""
    modes = [
        name for name in ("scale", "shortest", "longest", "width", "megapixels") if getattr(args, name) is not None
    ]
    if (args.width is None) != (args.height is None):
        raise InputError("--width and --height belong together: give both, or one of --shortest, --longest")
    if len(modes) > 1:
        raise InputError(f"several sizes asked for (--{', --'.join(modes)}): give one")
    if args.scale is not None:
        geometry.size_by_factor(1, 1, args.scale)
    geometry.cap_megapixels(TargetSize(1, 1), args.max_megapixels)
    RestoreOptions(TargetSize(1, 1), args.strength, args.color_fix, args.color_strength)
    check_lora_strength(args.lora_strength)
    choose_device(args.device)
    if args.model is not None and not _is_teasr_base(args.model):
        if args.lora is None:
            raise InputError("--model needs --lora: it is a TEASR LoRA that makes a restorer of it, give the model's")
        return
    qwen_only = {"--vae": args.vae is not None, "--offload": args.offload != "none", "--dtype": args.dtype in STORAGES}
    for name in (name for name, is_given in qwen_only.items() if is_given):
        raise InputError(f"{name} is for a Qwen-Image --model: leave it out, TEASR's own models need none of it")


def _is_teasr_base(path: Path) -> bool:
    return detect(path).kind is Kind.TEASR_BASE


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


def prepare(source: Path, target: Path, args: argparse.Namespace) -> tuple[Picture, RestoreOptions]:
    """The picture and what to make of it. InputError when it cannot be read, enlarged so, or saved at `target`."""
    picture = load_picture(source)
    height, width = picture.rgb.shape[-2:]
    size = target_size(args, width, height)
    if target.parent.is_dir():  # a folder of results that does not exist yet is made with the first of them
        check_output(target, picture.alpha is not None, args.overwrite, (size.width, size.height))
    return picture, RestoreOptions(size, args.strength, args.color_fix, args.color_strength)


def _load(args: argparse.Namespace) -> Restorer:
    """The model asked for. TEASR's own stay on the CPU unless a device is named: the same bytes on every machine."""
    device = choose_device(args.device)
    if args.model is not None and not _is_teasr_base(args.model):
        qwen_tile(args.tile_px, args.overlap_px)  # before the long load
        files = (args.model, args.lora, args.vae)
        return load_qwen_restorer(*files, args.dtype, device, args.offload, args.lora_strength, args.allow_other_base)
    device = CPU if args.device == "auto" else device
    restorer = load_restorer(args.dtype, args.lora, args.lora_strength, args.allow_other_base, device, args.model)
    restorer.tile(args.tile_px, args.overlap_px)
    return restorer


def _is_large(picture: Picture, size: TargetSize) -> bool:
    height, width = picture.rgb.shape[-2:]
    return size.width > WARN_SCALE * width or size.height > WARN_SCALE * height


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): give a folder that can be written") from None


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
