"""The built-in model's LQ encoder, a small residual convolutional network on the latent of the low-quality image.

It repairs that latent before the condition branch sees it, so that it resembles the latent of a cleaner picture, as in
SUPIR (arXiv 2401.13627, section 3.1) and the first stage of DiffBIR (arXiv 2308.15070). Tokens of 8 px learn local
repair slowly; convolutions on the codec's 4 px grid learn it fast (docs/log/encoder.md). Training targets use the plain
codec. Files and the class below call this network the condition encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..tiling import TileCallback, convert_in_tiles, plan_codec_tiles

# Side and overlap of the tiles in latent pixels, for the nodes too. Pictures of up to 512 px are encoded whole.
TILE, OVERLAP = 128, 32


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), (B, width, h, w), without normalisation (EDSR, arXiv 1707.02921)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x).relu_())


class ConditionEncoder(nn.Module):
    """Turns the normalised latent of an LQ image (B, channels, h, w) into one that is nearer to the HQ image's.

    It has `blocks` residual blocks of `width` features. Before training it changes nothing.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.width, self.blocks = width, blocks
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.ModuleList([ResidualBlock(width) for _ in range(blocks)])
        self.tail = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, z_lq: torch.Tensor) -> torch.Tensor:
        x = self.head(z_lq.contiguous(memory_format=torch.channels_last))  # (B, width, h, w)
        for block in self.body:
            x = block(x)
        return z_lq + self.tail(x).to(z_lq)

    @torch.no_grad()
    def in_tiles(self, z_lq: torch.Tensor, on_tile: TileCallback | None = None) -> torch.Tensor:
        """Run `forward` on the encoder's device, in overlapping tiles where z_lq is large.

        The result is on the device of z_lq and in its dtype. `on_tile(done, count)` is called before each tile and may
        raise.
        """
        weight = self.head.weight
        plan = plan_codec_tiles(z_lq.shape[2], z_lq.shape[3], TILE, OVERLAP)
        encoded = convert_in_tiles(
            lambda tile: self(tile.to(weight)).to(z_lq), z_lq, plan, size_in=1, size_out=1, on_tile=on_tile
        )
        return encoded.contiguous()

    def config(self) -> dict[str, int]:
        """The JSON values that `load_condition_encoder` needs beside the tensors."""
        return {"width": self.width, "blocks": self.blocks}


def load_condition_encoder(
    channels: int, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> ConditionEncoder:
    """Build a frozen float32 encoder from its `config()` and its state dict.

    Raises KeyError, TypeError, ValueError or RuntimeError where they do not fit together.
    """
    width, blocks = int(config["width"]), int(config["blocks"])
    if not (0 < width <= 4096 and 0 < blocks <= 1024):
        raise ValueError(f"condition encoder of width {width} with {blocks} blocks")
    with torch.device("meta"):  # drawing weights would use the global random state
        encoder = ConditionEncoder(channels, width, blocks)
    encoder.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return encoder.eval().requires_grad_(False)
