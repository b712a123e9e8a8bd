"""The one rounding of pixels to whole levels: what is measured, shown and saved is the same picture."""

import torch


def to_levels(image: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Round pixels in [0, 1] half up to the 2^bits levels of a picture file: floor(x (2^bits - 1) + 0.5).

    image: floating point, any shape; values outside [0, 1] are clipped. Returns uint8 for 8 bits and uint16 for 16,
    of the same shape, on the same device and in memory of its own.
    """
    levels = image.detach().clamp(0, 1).mul_(2**bits - 1).add_(0.5).floor_()
    return levels.to(torch.uint8 if bits == 8 else torch.uint16)
