"""The region of a restoration travels in the LATENT from the part that draws it to the sampler, decoder and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...teasr_core.errors import InputError
from ...teasr_core.image.region import Region, make_region
from ...teasr_core.image.target_size import TargetSize
from ..host.images import mask_planes
from ..host.sockets import check_finite, check_tensor

REGION_KEY = "teasr_region"


def region_of(latent: Mapping[str, Any]) -> Region | None:
    """The region in a LATENT, or None: then the whole picture is restored."""
    return latent.get(REGION_KEY)


def drawn_region(mask: torch.Tensor, count: int, picture: TargetSize, size: TargetSize) -> Region:
    """The region of a MASK of B or 1 images, 1 = restore, for `count` pictures resized to `size`.

    InputError for another number of masks, NaN, or a mask of another aspect ratio.
    """
    mask = mask_planes(check_tensor(mask, "region", "a MASK"), "region")
    if 0 in mask.shape or len(mask) not in (1, count):
        raise InputError(
            f"region has shape {tuple(mask.shape)}, there are {count} images: expected one MASK (1, height, width), or "
            "one for each image"
        )
    return make_region(check_finite(mask, "region")[:, None].float(), picture, size)
