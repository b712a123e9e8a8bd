"""What every condition encoder is: a network from the latent of an LQ image to one that resembles a cleaner picture's.

The condition branch then sees the repaired latent, as in SUPIR (arXiv 2401.13627, section 3.1) and the first stage of
DiffBIR (arXiv 2308.15070). Tokens of 8 px learn local repair slowly; convolutions on the codec's 4 px grid learn it
fast (docs/log/encoder.md). The targets of the transformer's training use the plain codec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from ...image.resize import resize
from ...image.target_size import TargetSize
from ...tiling import TileCallback, convert_in_tiles, plan_codec_tiles
from ..block_dct import BLOCK, DCT_CHANNELS, coefficients_to_image, image_to_coefficients


class ConditionEncoder(nn.Module, ABC):
    """Turns the normalised latent of an LQ image (B, 48, h, w) into one that is nearer to the HQ image's."""

    kind: str  # its name in a base file
    blocks: int
    width: int  # of its features
    tile: int  # side of a tile in latent pixels of its grid; a smaller picture is encoded whole
    overlap: int

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = torch.zeros(1, DCT_CHANNELS, 1, 1), torch.ones(1, DCT_CHANNELS, 1, 1)

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Take over the codec's mean and std (1, 48, 1, 1); they are the codec's and not stored with the weights."""
        self.mean, self.std = mean, std

    @abstractmethod
    def forward(self, z_lq: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The JSON values that `load_condition_encoder` needs beside the tensors."""

    @abstractmethod
    def description(self) -> str:
        """Its size in words, for `info`."""

    def finer(self, image: torch.Tensor, scale: float) -> float:
        """How many times finer than the result's own grid the one is on which `image` is encoded, 1 to 2.

        image: (B, 3, H, W) in [0, 1], which was enlarged by `scale`. 1 unless an encoder says otherwise.
        """
        return 1.0

    @torch.no_grad()
    def in_tiles(self, z_lq: torch.Tensor, finer: float = 1.0, on_tile: TileCallback | None = None) -> torch.Tensor:
        """Encode on the encoder's device, on a grid `finer` times as fine, in overlapping tiles where z_lq is large.

        The result is on the device of z_lq and in its dtype. `on_tile(done, count)` is called before each tile and may
        raise.
        """
        weight = next(self.parameters())

        def convert(tile: torch.Tensor) -> torch.Tensor:
            tile = tile.to(weight)
            return (self(tile) if finer == 1 else self._on_finer_grid(tile, finer)).to(z_lq)

        tile, overlap = (2 * int(size / finer / 2) for size in (self.tile, self.overlap))
        plan = plan_codec_tiles(z_lq.shape[2], z_lq.shape[3], tile, overlap)
        return convert_in_tiles(convert, z_lq, plan, size_in=1, size_out=1, on_tile=on_tile).contiguous()

    def _on_finer_grid(self, z_lq: torch.Tensor, finer: float) -> torch.Tensor:
        """Enlarge the picture of z_lq (B, 48, h, w) `finer` times, encode it, and shrink what its latent shows."""
        own = TargetSize(z_lq.shape[3] * BLOCK, z_lq.shape[2] * BLOCK)
        larger = TargetSize(*(round(side / BLOCK * finer) * BLOCK for side in (own.width, own.height)))
        encoded = self(self._latent_of(resize(self._image_of(z_lq), larger)).to(z_lq))
        return self._latent_of(resize(self._image_of(encoded), own))

    def _latent_of(self, image: torch.Tensor) -> torch.Tensor:
        return (image_to_coefficients(image) - self.mean.to(image)) / self.std.to(image)

    def _image_of(self, latent: torch.Tensor) -> torch.Tensor:
        latent = latent.float()
        return coefficients_to_image(latent * self.std.to(latent) + self.mean.to(latent))
