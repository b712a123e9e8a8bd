"""What the shared options ask for: checked before any work, the size of an image, its restoration, the model."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from ..device import STORAGES, choose_device
from ..errors import InputError
from ..image import target_size as sizes
from ..image.alpha import bleed_rgb, resize_alpha
from ..image.region import Region
from ..image.target_size import TRAINED_SCALE, SizeRequest, TargetSize, exceeds_training
from ..memory import refuse_out_of_memory
from ..picture_files.picture import Picture
from ..picture_files.read import load_picture, read_size
from ..report import Report
from ..restore import Callbacks, RestoreOptions, RestoreRequest
from ..restorer import CPU, Restorer, load_qwen_restorer, load_restorer, qwen_tile
from ..sampling.auto_steps import AutoSteps
from ..sampling.schedule import MIN_STEPS, StepPlan, manual_plan
from ..weight_files.file_kind import Kind, detect
from .options import DEFAULT_SCALE
from .progress import Progress


def check_options(args: argparse.Namespace) -> None:
    """Refuse impossible options before any work."""
    modes = [
        name for name in ("scale", "shortest", "longest", "width", "megapixels") if getattr(args, name) is not None
    ]
    if (args.width is None) != (args.height is None):
        raise InputError("--width and --height belong together: give both, or one of --shortest, --longest")
    if len(modes) > 1:
        raise InputError(f"several sizes asked for (--{', --'.join(modes)}): give one")
    _check_numbers(args)
    restore_options(args, TargetSize(1, 1))
    if not 0 <= args.lora_strength <= 2:
        raise InputError(f"lora strength is {args.lora_strength:g}: expected a number from 0 to 2")
    choose_device(args.device)
    if args.model is not None and not _is_teasr_base(args.model):
        if args.lora is None:
            raise InputError("--model needs --lora: it is a TEASR LoRA that makes a restorer of it, give the model's")
        return
    qwen_only = {"--vae": args.vae is not None, "--offload": args.offload != "none", "--dtype": args.dtype in STORAGES}
    for name in (name for name, is_given in qwen_only.items() if is_given):
        raise InputError(f"{name} is for a Qwen-Image --model: leave it out, TEASR's own models need none of it")


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse sizes that suit no image at all; whether they suit one is known with its own size (`target_size`)."""
    if args.scale is not None:
        sizes.size_by_factor(1, 1, args.scale)
    for name in ("shortest", "longest", "width", "height"):
        if getattr(args, name) is not None:
            sizes.check_side(getattr(args, name), f"--{name}")
    if args.megapixels is not None:
        sizes.check_megapixels(args.megapixels)
    sizes.cap_megapixels(TargetSize(1, 1), args.max_megapixels)


def _is_teasr_base(path: Path) -> bool:
    return detect(path).kind is Kind.TEASR_BASE


def size_request(args: argparse.Namespace) -> SizeRequest:
    """The size that the options ask for; without any of them, the default factor."""
    if args.width is not None:
        return SizeRequest("exact", (args.width, args.height), args.max_megapixels)
    numbers = {mode: getattr(args, mode) for mode in ("shortest", "longest", "megapixels")}
    mode = next((mode for mode, number in numbers.items() if number is not None), None)
    if mode is not None:
        return SizeRequest(mode, (numbers[mode],), args.max_megapixels)
    return SizeRequest("factor", (DEFAULT_SCALE if args.scale is None else args.scale,), args.max_megapixels)


def target_size(args: argparse.Namespace, width: int, height: int) -> TargetSize:
    """The exact output size of an image of width x height under the size options."""
    return size_request(args).target(width, height)


def expected_size(path: Path, args: argparse.Namespace) -> TargetSize | None:
    """The output size as far as the file's header tells it; None where something is wrong, which is said later."""
    size = read_size(path, args.allow_large_input)
    try:
        return None if size is None else target_size(args, *size)
    except InputError:
        return None


def restore_options(args: argparse.Namespace, size: TargetSize) -> RestoreOptions:
    return RestoreOptions(
        size, args.strength, args.color_fix, args.color_strength, args.fidelity, args.grain, args.seed
    )


def load_mask(path: Path) -> torch.Tensor:
    """The mask (1, 1, H, W) in [0, 1] in a picture file: white or any pure colour is 1, black or transparent is 0."""
    with enough_to_read(path):
        picture = load_picture(path)
    mask = picture.rgb.amax(dim=1, keepdim=True)  # (1, 1, H, W)
    return mask if picture.alpha is None else mask * picture.alpha


def step_plan(args: argparse.Namespace) -> StepPlan | AutoSteps:
    """The steps asked for; `AutoSteps` chooses them for each image. A wrong tolerance is refused in either mode."""
    auto = AutoSteps(args.tolerance)
    if args.step_mode == "auto":
        if args.steps != MIN_STEPS:
            raise InputError("--steps is for --step-mode manual: leave it out, auto chooses by --tolerance")
        return auto
    return manual_plan(args.steps)


def size_note(name: str, picture: Picture, size: TargetSize) -> str | None:
    """A warning, where there is reason for one."""
    height, width = picture.rgb.shape[-2:]
    if exceeds_training(width, height, size):
        return f"note: {name} is enlarged more than {TRAINED_SCALE:g} times: expect less detail"
    return None


def load_model(args: argparse.Namespace, place: Callable[[torch.device], torch.device] = lambda d: d) -> Restorer:
    """The model asked for. TEASR's own stay on the CPU unless a device is named: the same bytes on every machine.

    place: which of several equal devices this process takes.
    """
    if args.model is not None and not _is_teasr_base(args.model):
        qwen_tile(args.tile_px, args.overlap_px)  # before the long load
        files = (args.model, args.lora, args.vae)
        device = place(choose_device(args.device))
        with refuse_out_of_memory("to load the model", "use --dtype fp8 or nf4, --offload, or close other programs"):
            return load_qwen_restorer(
                *files, args.dtype, device, args.offload, args.lora_strength, args.allow_other_base
            )
    device = CPU if args.device == "auto" else place(choose_device(args.device))
    with refuse_out_of_memory("to load the model", "close other programs, or use --device cpu"):
        restorer = load_restorer(args.dtype, args.lora, args.lora_strength, args.allow_other_base, device, args.model)
    restorer.tile(args.tile_px, args.overlap_px)
    return restorer


def enough_to_read(path: Path) -> AbstractContextManager[None]:
    """InputError where memory does not suffice to read `path`."""
    return refuse_out_of_memory(f"to read {path}", "close other programs, or make the image smaller first")


def enough_for(size: TargetSize) -> AbstractContextManager[None]:
    """InputError where memory does not suffice to make or save a result of `size`."""
    doing = f"for {size.width} x {size.height} pixels"
    return refuse_out_of_memory(doing, "use a smaller --tile-px, a smaller size or --max-megapixels")


def restore_picture(
    restorer: Restorer,
    picture: Picture,
    options: RestoreOptions,
    plan: StepPlan | AutoSteps,
    args: argparse.Namespace,
    progress: Progress | None = None,
    region: Region | None = None,
) -> tuple[Picture, Report]:
    """Restore the colours, of the region alone where there is one. Alpha is resampled on its own, with the colours
    bled under it first.

    See docs/decisions.md#alpha.
    """
    rgb, alpha = picture.rgb, picture.alpha
    if alpha is not None:
        rgb = bleed_rgb(rgb, alpha)
        alpha = resize_alpha(alpha, options.size)
    request = RestoreRequest(options, plan, args.seed, args.tile_px, args.overlap_px, region)
    callbacks = Callbacks(progress.on_step, progress.on_tile, progress.on_plan) if progress else Callbacks()
    restored, report = restorer.restore(rgb, request, callbacks)
    if picture.is_grey:
        restored = _grey(restored)
    return dataclasses.replace(picture, rgb=restored, alpha=alpha), report


def _grey(image: torch.Tensor) -> torch.Tensor:
    """A grey file stays grey: BT.601 luma of the three channels, which the model may have tinted."""
    luma = (image * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    return luma.clamp(0, 1).expand_as(image)
