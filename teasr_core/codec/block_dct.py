"""The orthonormal 4x4 block DCT: an image and its coefficients, exact both ways and without weights."""

from __future__ import annotations

import math

import torch

BLOCK = 4
DCT_CHANNELS = 3 * BLOCK * BLOCK


def dct_matrix() -> torch.Tensor:
    """Orthonormal DCT-II of length 4 (4, 4), float64: row k is cos(pi (2n+1) k / 8), scaled to unit length."""
    n = torch.arange(BLOCK, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * n[None, :] + 1) * n[:, None] / (2 * BLOCK))  # (frequency, position)
    return rows / rows.norm(dim=1, keepdim=True)


def image_to_coefficients(image: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 48, H/4, W/4). Channel = colour*16 + row frequency*4 + column frequency.

    The image is scaled to [-1, 1] first; H and W must be multiples of 4.
    """
    batch, colours, height, width = image.shape
    matrix = dct_matrix().to(image)  # (4, 4)
    blocks = (2 * image - 1).reshape(batch, colours, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    spectrum = torch.einsum("ki,bchiwj,lj->bcklhw", matrix, blocks, matrix)  # (B, 3, 4, 4, h, w)
    return spectrum.reshape(batch, colours * BLOCK * BLOCK, height // BLOCK, width // BLOCK)


def coefficients_to_image(coefficients: torch.Tensor, side: int = BLOCK) -> torch.Tensor:
    """(B, 48, h, w) -> (B, 3, side*h, side*w) around [0, 1], not clamped.

    side: pixels to a side of a block. 4 is the exact inverse (transpose); with 2 or 1 each pixel is the mean of those
    that it stands for.
    """
    batch, channels, h, w = coefficients.shape
    matrix = dct_matrix().reshape(BLOCK, side, BLOCK // side).mean(dim=2).to(coefficients)  # (frequency, position)
    spectrum = coefficients.reshape(batch, channels // (BLOCK * BLOCK), BLOCK, BLOCK, h, w)
    blocks = torch.einsum("ki,bcklhw,lj->bchiwj", matrix, spectrum, matrix)  # (B, 3, h, side, w, side)
    return (blocks.reshape(batch, -1, h * side, w * side) + 1) / 2
