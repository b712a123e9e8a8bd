"""3x3 convolutions with a quarter of the multiplications, for inference in fp32 on a CPU.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): a tile of 4x4 results takes 36
multiplications for each pair of channels where a plain convolution takes 144. The tile's 6x6 pixels, the kernel and the
results are each transformed by a small matrix, and the multiplications become 36 matrix products over the channels. The
result differs from a plain convolution's by rounding alone. PyTorch's convolutions on a CPU are plain ones; on a GPU
cuDNN chooses for itself.

Features are kept as phases, (C, 4 * rows + 2, 4, columns + 2) for rows x columns tiles: phase j of a row holds its
pixels 4 * x + j, so that the tiles are gathered by copying runs. Around the picture lie zeros: a row of pixels above
and below, a column of tiles to the left and to the right.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

STEP, SIDE = 4, 6  # of a tile of results, and of the pixels that it is made from
POINTS = SIDE * SIDE  # products for each tile and pair of channels
LEAST = 128  # tiles below which little is won or nothing
BAND = 512  # tiles that one thread works on at a time: fewer are slow to multiply, more do not stay in the cache
SKEW = 16  # numbers between the points, which would else compete for the same lines of the cache

# Lavin and Gray, section 4.3: of the pixels, of the kernel, of the results.
_PIXELS = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_KERNEL = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_RESULTS = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


def _both_sides(matrix: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """The matrix that transforms the rows and the columns of a flattened square at once."""
    one_side = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one_side, one_side).float()


OF_PIXELS, OF_KERNEL, OF_RESULTS = _both_sides(_PIXELS), _both_sides(_KERNEL), _both_sides(_RESULTS)


def pays(features: torch.Tensor) -> bool:
    """Whether features (B, C, H, W) can be convolved here, and are large enough for it to be faster."""
    tiles = -(-features.shape[2] // STEP) * -(-features.shape[3] // STEP)
    fits = features.device.type == "cpu" and features.dtype == torch.float32
    return fits and tiles >= LEAST and not torch.is_grad_enabled()


def to_phases(features: torch.Tensor) -> torch.Tensor:
    """Features (C, H, W) as phases (C, 4 * rows + 2, 4, columns + 2)."""
    _, height, width = features.shape
    padded = F.pad(features, (STEP, STEP + -width % STEP, 1, 1 + -height % STEP))
    return padded.unflatten(2, (-1, STEP)).transpose(2, 3).contiguous()


def from_phases(phases: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The features (C, height, width) of phases."""
    return phases.transpose(2, 3).flatten(2)[:, 1 : 1 + height, STEP : STEP + width]


class FeatureStack:
    """Features of one size, one above another: each is transformed once for all the convolutions that see it.

    height, width: of the features in pixels. channels: the most that the stack can hold.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width = height, width
        self.rows, self.columns = -(-height // STEP), -(-width // STEP)
        self.channels = 0  # that it holds
        step = max(1, BAND * torch.get_num_threads() // self.columns)
        self.bands = [(first, min(first + step, self.rows)) for first in range(0, self.rows, step)]
        # Of each band (36, channels * tiles), one channel behind another, and SKEW numbers that are not used.
        self.points = [torch.empty(POINTS, channels * (end - first) * self.columns + SKEW) for first, end in self.bands]

    def push(self, phases: torch.Tensor) -> None:
        """Lay the phases of features on the stack."""
        channels = len(phases)
        sides = phases.unfold(1, SIDE, STEP).permute(4, 2, 0, 1, 3)  # (6, 4, C, rows, columns + 2)
        for (first, end), points in zip(self.bands, self.points, strict=True):
            band = sides[:, :, :, first:end]
            pixels = band.new_empty(SIDE, SIDE, channels, end - first, self.columns)
            pixels[:, 0] = band[:, 3, ..., :-2]  # the last pixel of the tile to the left
            pixels[:, 1:5] = band[..., 1:-1]
            pixels[:, 5] = band[:, 0, ..., 2:]  # the first pixel of the tile to the right
            pixels = pixels.view(POINTS, -1)  # (36, C * tiles)
            start = self.channels * (end - first) * self.columns
            torch.mm(OF_PIXELS, pixels, out=points[:, start : start + pixels.shape[1]])
        self.channels += channels

    def clear(self) -> None:
        self.channels = 0

    def convolve(self, conv: nn.Conv2d, slope: float) -> torch.Tensor:
        """What `conv`, 3x3 with zeros around the picture, and a leaky ReLU make of all that the stack holds, as phases.

        slope: of the leaky ReLU; 1 leaves the results as they are.
        """
        width = conv.out_channels
        assert conv.in_channels == self.channels and conv.bias is not None
        kernel = (OF_KERNEL @ conv.weight.reshape(-1, 9).T).view(POINTS, width, self.channels)
        phases = kernel.new_empty(width, STEP * self.rows + 2, STEP, self.columns + 2)
        inside = phases[:, 1:-1, :, 1:-1].unflatten(1, (-1, STEP)).permute(2, 3, 0, 1, 4)  # (4, 4, C', rows, columns)
        for (first, end), points in zip(self.bands, self.points, strict=True):
            tiles = (end - first) * self.columns
            held = points[:, : self.channels * tiles].unflatten(1, (self.channels, tiles))
            products = torch.bmm(kernel, held)  # (36, C', tiles)
            results = (OF_RESULTS @ products.view(POINTS, -1)).view(STEP, STEP, width, end - first, self.columns)
            results += conv.bias.view(-1, 1, 1)
            inside[:, :, :, first:end] = results if slope == 1 else F.leaky_relu_(results, slope)
        self._clear_surroundings(phases)
        return phases

    def _clear_surroundings(self, phases: torch.Tensor) -> None:
        """Zeros for all that is not of the picture, also where it ends within a tile."""
        phases[:, 0] = 0
        phases[:, 1 + self.height :] = 0
        phases[..., 0] = 0
        phases[..., -1] = 0
        if self.width % STEP:
            phases[:, :, self.width % STEP :, -2] = 0
