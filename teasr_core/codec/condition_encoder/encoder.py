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

from ...tiling import TileCallback, convert_in_tiles, plan_codec_tiles
from ..block_dct import DCT_CHANNELS


class ConditionEncoder(nn.Module, ABC):
    """Turns the normalised latent of an LQ image (B, 48, h, w) into one that is nearer to the HQ image's."""

    kind: str  # its name in a base file
    blocks: int
    width: int  # of its features
    tile: int  # side of a tile in latent pixels; a smaller picture is encoded whole
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

    @torch.no_grad()
    def in_tiles(self, z_lq: torch.Tensor, on_tile: TileCallback | None = None) -> torch.Tensor:
        """Run `forward` on the encoder's device, in overlapping tiles where z_lq is large.

        The result is on the device of z_lq and in its dtype. `on_tile(done, count)` is called before each tile and may
        raise.
        """
        weight = next(self.parameters())
        plan = plan_codec_tiles(z_lq.shape[2], z_lq.shape[3], self.tile, self.overlap)
        encoded = convert_in_tiles(
            lambda tile: self(tile.to(weight)).to(z_lq), z_lq, plan, size_in=1, size_out=1, on_tile=on_tile
        )
        return encoded.contiguous()
