"""IMAGE and MASK of ComfyUI <-> the core's tensors (B, C, H, W). Inputs are never modified."""

from __future__ import annotations

import math

import comfy.model_management
import torch

from ...teasr_core.errors import InputError
from ...teasr_core.image.alpha import bleed_rgb, split_alpha
from ...teasr_core.image.target_size import TargetSize
from .sockets import check_finite, check_tensor

# A picture that is brighter than this on average is no picture of numbers from 0 to 1: all of it would clip to white.
MOST_MEAN = 1.5


def rgb_and_alpha(image: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """IMAGE (B, H, W, 1, 3 or 4) and an optional MASK -> rgb (B, 3, H, W), alpha (B, 1, H, W) or None, float32.

    Colour is bled under transparent pixels. MASK is ComfyUI's: 1 = transparent, (B or 1, H, W). A mask of zeros means
    opaque whatever its size, because LoadImage gives 64 x 64 zeros for an image without alpha.
    """
    image = check_tensor(image, "image", "an IMAGE")
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(f"image has shape {tuple(image.shape)}: expected (batch, height, width, 1, 3 or 4 channels)")
    planes = check_range(check_finite(image, "image"), "image").movedim(-1, 1).float().contiguous()  # (B, C, H, W)
    alpha = None
    if planes.shape[1] == 4:
        planes, alpha = split_alpha(planes)
    if mask is not None and bool(check_tensor(mask, "mask", "a MASK").any()):
        if alpha is not None:
            raise InputError(
                "the image has an alpha channel and a mask is wired too: unplug the mask, or drop the alpha"
            )
        alpha = mask_to_alpha(mask, planes)
    rgb = planes.expand(-1, 3, -1, -1)  # (B, 3, H, W); grey is three equal channels
    return (rgb if alpha is None else bleed_rgb(rgb.contiguous(), alpha.contiguous())), alpha


def mask_to_alpha(mask: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """ComfyUI's inverted alpha, of the shapes that `mask_planes` takes -> (B, 1, H, W), 1 = opaque."""
    found = mask_planes(mask, "mask")  # (b, h, w)
    batch, _, height, width = planes.shape
    if found.shape[1:] != (height, width) or found.shape[0] not in (1, batch):
        raise InputError(
            f"mask has shape {tuple(mask.shape)}, the image {(batch, height, width)}: wire the mask that came with "
            "this image, or resize it first"
        )
    return (1 - check_finite(found, "mask")[:, None].to(planes)).clamp(0, 1).expand(batch, -1, -1, -1)


def mask_planes(mask: torch.Tensor, name: str) -> torch.Tensor:
    """A MASK (B, H, W), (H, W) or (B, 1, H, W), which nodes also give -> (B, H, W)."""
    if mask.ndim == 2:
        return mask[None]
    if mask.ndim == 4 and mask.shape[1] == 1:
        return mask[:, 0]
    if mask.ndim != 3:
        raise InputError(f"{name} has shape {tuple(mask.shape)}: expected a MASK (batch, height, width)")
    return mask


def check_range(image: torch.Tensor, name: str) -> torch.Tensor:
    """`image` (B, ...) unless its numbers are plainly not those of an IMAGE, which go from 0 to 1.

    A few values outside are clipped, as ComfyUI does: filters overshoot, and highlights of an HDR picture are above 1.
    """
    if not image.is_floating_point():
        raise InputError(
            f"{name} holds whole numbers ({str(image.dtype).removeprefix('torch.')}): expected an IMAGE of numbers "
            "from 0 to 1, so convert it in the node before"
        )
    mean = max((float(one.float().mean()) for one in image.split(1)), default=0.0)
    if MOST_MEAN < mean < math.inf:  # infinity is `check_finite`'s to name
        raise InputError(
            f"{name} is {mean:.3g} on average: expected an IMAGE of numbers from 0 to 1, so divide it in the node "
            "before, by 255 if it came from whole numbers"
        )
    return image


def size_of(image: torch.Tensor) -> TargetSize:
    """The size of an IMAGE (B, H, W, C)."""
    return TargetSize(width=image.shape[2], height=image.shape[1])


def to_host(image: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> IMAGE (B, H, W, C), contiguous, as the host wants it between nodes."""
    return between_nodes(image.movedim(1, -1)).contiguous()


def between_nodes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device and in the dtype that ComfyUI keeps results in: the CPU and float32 unless it runs with
    --gpu-only or --fp16-intermediates.
    """
    return tensor.to(comfy.model_management.intermediate_device(), intermediate_dtype())


def intermediate_dtype() -> torch.dtype:
    """float16 with --fp16-intermediates, which older hosts do not have."""
    choose = getattr(comfy.model_management, "intermediate_dtype", None)
    return torch.float32 if choose is None else choose()


def with_alpha_of(image: torch.Tensor, source: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """IMAGE (B, H, W, 3) with a fourth channel where the IMAGE `source` that it was made of has one.

    mask (B or 1, H, W): its transparency at the new size, 1 = transparent.
    """
    if source is None or mask is None or source.shape[-1] != 4:
        return image
    alpha = (1 - mask.float())[..., None].to(image).expand(*image.shape[:-1], 1)  # (B, H, W, 1)
    return torch.cat([image, alpha], dim=-1)


def from_host(image: torch.Tensor, name: str) -> torch.Tensor:
    """IMAGE (B, H, W, 1 or C >= 3) -> (B, 3, H, W) float32; channels beyond 3 are dropped, grey is three equal ones."""
    image = check_tensor(image, name, "an IMAGE")
    if image.ndim != 4 or image.shape[-1] == 2 or 0 in image.shape:
        raise InputError(f"{name} has shape {tuple(image.shape)}: expected an IMAGE (batch, height, width, 3)")
    return check_range(image, name)[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1).float().contiguous()
