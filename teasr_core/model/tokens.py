"""Latent <-> token sequence, in the order both hosts use (Qwen-Image: channel, patch row, patch column)."""

from __future__ import annotations

import torch

from ..errors import InputError


def token_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Token rows and columns of a latent of `height` x `width`; both must be even.

    With an odd grid the two hosts centre image positions one apart relative to the text (2e-4 difference), so it is
    refused here and padded away in `restore`.
    """
    multiple = 2 * patch_size
    if height < multiple or width < multiple or height % multiple or width % multiple:
        raise InputError(
            f"latent of {width} x {height} has no even token grid: pad it to multiples of {multiple} latent pixels"
        )
    return height // patch_size, width // patch_size


def patchify(latent: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, h*w, C*patch_size**2), h = H/patch_size."""
    batch, channels, height, width = latent.shape
    h, w = token_grid(height, width, patch_size)
    patches = latent.reshape(batch, channels, h, patch_size, w, patch_size)  # (B, C, h, p, w, p)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, -1)  # (B, N, C*p*p)


def unpatchify(tokens: torch.Tensor, grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """(B, h*w, C*patch_size**2) -> (B, C, H, W), the inverse of `patchify`."""
    h, w = grid
    batch = tokens.shape[0]
    patches = tokens.reshape(batch, h, w, -1, patch_size, patch_size)  # (B, h, w, C, p, p)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, h * patch_size, w * patch_size)  # (B, C, H, W)
