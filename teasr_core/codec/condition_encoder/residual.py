"""A small residual convolutional network as the condition encoder: the first built-in model's."""

from __future__ import annotations

import torch
from torch import nn

from .encoder import ConditionEncoder


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


class ResidualEncoder(ConditionEncoder):
    """`blocks` residual blocks of `width` features. Before training it changes nothing."""

    kind = "residual"
    tile = 128
    overlap = 32

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        if not (0 < width <= 4096 and 0 < blocks <= 1024):
            raise ValueError(f"condition encoder of width {width} with {blocks} blocks")
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

    def config(self) -> dict[str, int]:
        """Without a kind, as the first base files were written."""
        return {"width": self.width, "blocks": self.blocks}

    def description(self) -> str:
        return f"{self.blocks} residual blocks of {self.width}"
