"""Grain: measured in the input, given back to the restored picture.

A restored picture is smoother than any photograph, which makes skin look waxy. What is given back has the strength and
the colour of the input's own noise, and is as fine as a pixel: an enlarged grain would look like an enlarged picture.

The noise is what a mask that suppresses every structure varying along one direction leaves (Immerkaer 1996, Fast Noise
Variance Estimation), in the flattest blocks, by the median of the blocks, which the others cannot move (as in Donoho
and Johnstone 1994, Ideal Spatial Adaptation by Wavelet Shrinkage). A block counts only where its spectrum is white, so
that texture, drawings and smooth shading are not taken for noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..errors import InputError
from .flat_areas import flat_weights

BLOCK_PX = 16
# Blocks along each side of the picture at most; they are spread evenly. 4096 blocks tell the noise to one percent.
_MOST_BLOCKS = 64
_FLATTEST = 4  # one block of so many is looked at, ...
_FEWEST = 8  # ... but no fewer than these
_CLIPPED = 0.05  # a block with a larger share of pixels at 0 or 1 has lost part of its noise
# Of white noise, Immerkaer's mask and the differences of neighbours show the same variance. Their ratio in a block of
# noise is 1 with a standard deviation of 0.14; in texture it is lower, in a checkerboard higher.
_WHITE = (0.8, 1.7)
# The noise of an enlarged picture is white again in every n-th pixel. Enlargement by up to 8 is looked for.
_LARGEST_STEP = 9
# In less than half of an 8-bit step there is no grain: rounding alone has 0.29.
_LEAST = 0.5 / 255
# The grain is drawn from another stream than the noise that the sampler starts from.
_SEED_OFFSET = 0x9E3779B97F4A7C15

# The mean spectrum of the blocks must be flat: a regular pattern may look white to its nearest neighbours alone.
_LEAST_FLATNESS = 0.4

Blocks = torch.Tensor  # (N, 3, BLOCK_PX, BLOCK_PX)


def measure_grain(picture: torch.Tensor) -> torch.Tensor:
    """The covariance (3, 3) float64 of the noise in R, G and B of a picture (1, 3, H, W) in [0, 1]; 0 if it is clean.

    Noise that spreads over several pixels, as in an enlarged picture or a JPEG, is measured at the first distance at
    which it is white. A picture with a side below 16 px counts as clean.
    """
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    blocks = _flattest(picture)
    if blocks is None:
        return nothing
    noise, detail = _energies(blocks)
    # Noise that is white in every step-th pixel alone has a ratio below 0.5 / (step - 1)^3 (measured: 0.18 at an
    # enlargement of 1.5, 0.05 at 2, 0.01 at 3, 0.003 at 4). That of sharp texture is above 0.1, and so it is not taken
    # for the noise of an enlarged picture.
    ratio = float(noise.sum() / detail.sum().clamp(min=1e-20))
    for step in range(1, _LARGEST_STEP + 1):
        if step > 1:
            blocks = _flattest(picture[..., ::step, ::step])
        if blocks is None or ratio * (step - 1) ** 3 > 0.5:
            return nothing
        covariance = _covariance(blocks)
        if covariance is not None:
            return covariance
    return nothing


def grain_source(image: torch.Tensor | None, resized: torch.Tensor) -> torch.Tensor:
    """The picture in which to measure the grain: the input, unless resizing has made it smaller and averaged the noise
    away.
    """
    return resized if image is None or image.shape[-2:].numel() > resized.shape[-2:].numel() else image


def add_grain(
    image: torch.Tensor, reference: torch.Tensor, source: torch.Tensor, amount: float, seed: int
) -> torch.Tensor:
    """`image` with the grain of `source`, as far as it lacks it: (B, 3, H, W) float32 in [0, 1], clamped to [0, 1].

    image: the restored picture. reference: the resized input, the same size, batch B or 1: where it is one flat colour
    (`flat_areas`) no grain is added. source: the picture whose grain it is, any size, batch B or 1.
    amount: 0 to 1, the share of the standard deviation that is given back; 0 returns the tensor `image` itself.
    seed: every image of a batch gets the one field of the seed, whatever the tiles.
    Raises InputError for another amount.
    """
    if not 0 <= amount <= 1:
        raise InputError(f"grain is {amount}: expected a number from 0 to 1")
    if amount == 0:
        return image
    images = []
    for b, one in enumerate(image.split(1)):
        missing = measure_grain(source[b : b + 1] if len(source) > 1 else source) - measure_grain(one)
        flat_in = reference[b] if len(reference) > 1 else reference[0]
        images.append(_with_noise(one[0], flat_in, amount * _root(missing), seed) if bool(missing.any()) else one[0])
    return torch.stack(images)


def _with_noise(image: torch.Tensor, reference: torch.Tensor, root: torch.Tensor, seed: int) -> torch.Tensor:
    """(3, H, W) plus `root` (3, 3) times white noise, less where the reference is flat."""
    generator = torch.Generator("cpu").manual_seed((seed + _SEED_OFFSET) % 2**64)
    width, out = image.shape[-1], torch.empty_like(image)
    for rows, flat in flat_weights(reference):
        # Row by row, so that the field does not depend on how many rows are taken at a time.
        white = [torch.randn(3, width, generator=generator) for _ in range(len(flat))]
        noise = torch.einsum("ij,rjw->irw", root.float(), torch.stack(white)).to(image)  # (3, rows, W)
        out[:, rows] = torch.addcmul(image[:, rows], noise, 1 - flat.to(image)).clamp_(0, 1)
    return out


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric square root (3, 3) of a covariance, what is negative in it left out."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def _flattest(picture: torch.Tensor) -> Blocks | None:
    """The flattest blocks of a picture (1, 3, H, W) that are not clipped, or None where there is none."""
    side = BLOCK_PX
    if min(picture.shape[-2:]) < side:
        return None
    grid = picture[0].unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4)  # (rows, columns, 3, 16, 16)
    for dim in (0, 1):
        count = grid.shape[dim]
        places = torch.linspace(0, count - 1, min(count, _MOST_BLOCKS)).round().long().to(grid.device)
        grid = grid.index_select(dim, places)
    blocks = grid.flatten(0, 1)  # (N, 3, 16, 16)
    clipped = ((blocks <= 0) | (blocks >= 1)).any(dim=1).float().mean(dim=(1, 2))  # (N,)
    blocks = blocks[clipped <= _CLIPPED]
    if len(blocks) == 0:
        return None
    coarse = F.avg_pool2d(blocks, side // 4)  # (N, 3, 4, 4), which the mask that measures the noise does not see
    structure = coarse.var(dim=(2, 3)).sum(dim=1)  # (N,)
    return blocks[structure.argsort(stable=True)[: max(_FEWEST, len(blocks) // _FLATTEST)]]


def _second_differences(blocks: Blocks) -> torch.Tensor:
    """Immerkaer's mask [1 -2 1; -2 4 -2; 1 -2 1] / 6, which keeps the variance of white noise. (N, 3, 14, 14)"""
    return blocks.diff(n=2, dim=-2).diff(n=2, dim=-1) / 6


def _energies(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """The variance of white noise, over the channels, by Immerkaer's mask and by the differences of neighbours. (N,)"""
    noise = _second_differences(blocks).square().mean(dim=(2, 3)).sum(dim=1)
    down, across = (blocks.diff(dim=dim).var(dim=(2, 3)).sum(dim=1) for dim in (-2, -1))
    return noise, (down + across) / 4


def _covariance(blocks: Blocks) -> torch.Tensor | None:
    """(3, 3) float64 where most blocks hold white noise, else None."""
    noise, detail = _energies(blocks)
    is_white = (noise > _WHITE[0] * detail) & (noise < _WHITE[1] * detail)  # (N,)
    median = torch.where(is_white, noise, 0).median()  # 0 where fewer than half are white
    if float(median) < 3 * _LEAST**2:
        return None
    typical = blocks[is_white & (noise > median / 2) & (noise < median * 2)]
    if _flatness(typical) < _LEAST_FLATNESS:
        return None
    residual = _second_differences(typical).movedim(1, 0).flatten(1).double().cpu()  # (3, samples)
    return residual @ residual.T / residual.shape[1]


def _flatness(blocks: Blocks) -> float:
    """The geometric mean of the power spectrum of the blocks over its arithmetic mean: 1 for white noise.

    Frequencies along one axis alone are left out, because shading leaks into them.
    """
    power = torch.fft.fft2(blocks).abs().square().sum(dim=(0, 1))[1:, 1:]  # (15, 15)
    return float(power.log().mean().exp() / power.mean())
