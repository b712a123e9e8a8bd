"""Our own additions to the paper's losses: against an 8 px lattice and for local contrast."""

from __future__ import annotations

import torch
from torch.nn import functional

from .losses import float32_or_wider

LATTICE_PX = 8  # a token of the built-in model


TEXTURE_DISTANCES = (1, 2, 4)  # px between what `texture_loss` compares


TEXTURE_FLOOR = 0.01  # contrast in [-1, 1] that counts as none: 1.3 levels of 255


def lattice_loss(x_fake: torch.Tensor, x_0: torch.Tensor, pitch: int = LATTICE_PX) -> torch.Tensor:
    """Energy of what repeats every `pitch` pixels in the error of (B, 3, H, W), along rows and along columns, float32.

    Networks that see a token or a block at a time can please LPIPS with a lattice at its pitch. The mean error of each
    row over its W / pitch periods, without its mean, is all that such a lattice leaves; an error without a period
    leaves pitch / W of its own energy, so the result is scaled to be that of the error itself then. H and W are
    multiples of pitch. After the spectral losses of Durall et al. (arXiv 2003.01826) and Jiang et al. (2012.12821).
    """
    error = float32_or_wider(x_fake) - float32_or_wider(x_0)
    return (_repeating(error, pitch) + _repeating(error.transpose(2, 3), pitch)) / 2


def _repeating(error: torch.Tensor, pitch: int) -> torch.Tensor:
    periods = error.shape[3] // pitch
    row = error.unflatten(3, (periods, pitch)).mean(dim=3)  # (B, 3, H, pitch)
    return periods * (row - row.mean(dim=3, keepdim=True)).square().mean()


def texture_loss(x_fake: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
    """How far the local contrast of (B, 3, H, W) in [-1, 1] is from the photograph's, wherever texture lies, float32.

    Contrast is the RMS of differences across 1, 2 and 4 px, along rows and along columns, of brightness and of two
    colour differences; the loss is the mean |log ratio|, so that grain on a flat part weighs as much as a lawn gone
    smooth. Each of the 8 columns (rows) of a token is looked at by itself: a network that works token by token would
    soon pay with edges between its tokens. Pixel losses and LPIPS are least for the mean of what may be there, which
    has too little contrast; this asks for the right amount in the right place and leaves open where each hair lies.
    H and W are multiples of 8, at least 40. After the patch-wise texture loss of EnhanceNet (Sajjadi et al., arXiv
    1612.07919), with differences for its VGG features.
    """
    fake, real = (_opponent_colors(float32_or_wider(x)) for x in (x_fake, x_0))
    turned = fake.transpose(2, 3), real.transpose(2, 3)
    parts = [
        (_log_contrast(ours, distance) - _log_contrast(theirs, distance)).abs().mean()
        for ours, theirs in ((fake, real), turned)
        for distance in TEXTURE_DISTANCES
    ]
    return torch.stack(parts).mean()


def _opponent_colors(x: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) RGB -> brightness, red - green, blue - green: grain that differs by channel is not brightness."""
    red, green, blue = x.unbind(1)
    return torch.stack([(red + green + blue) / 3, red - green, blue - green], dim=1)


def _log_contrast(x: torch.Tensor, distance: int) -> torch.Tensor:
    """Log RMS of x[..., k + distance] - x[..., k] by k modulo 8, in half overlapping windows of 16 rows x 4 tokens."""
    energy = (x[..., distance:] - x[..., :-distance]).square()[..., : x.shape[3] - LATTICE_PX]
    phases = energy.unflatten(3, (-1, LATTICE_PX)).movedim(4, 1).flatten(0, 1)  # (8 B, 3, H, W / 8 - 1)
    return (functional.avg_pool2d(phases, (16, 4), stride=(8, 2)) + TEXTURE_FLOOR**2).log() / 2
