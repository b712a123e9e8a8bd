"""What `pretrain` trains: every weight of a small transformer, its prompt embedding, and the codec's statistics."""

from __future__ import annotations

import torch
from torch import nn

from teasr_core.architecture import QwenArchitecture
from teasr_core.codec import DCT_CHANNELS, DctCodec, image_to_coefficients
from teasr_core.qwen import QwenVelocity, build_transformer

from .config import DataConfig, ModelConfig
from .dataset import batches
from .initialise import initialise

STATISTICS_CROPS = 256


def architecture_of(config: ModelConfig) -> QwenArchitecture:
    return QwenArchitecture(
        latent_channels=DCT_CHANNELS,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        rope_axes=config.rope_axes,
        text_width=config.text_width,
    )


class PretrainModel(nn.Module):
    """Transformer and prompt embedding (T, text_width) as one module, so that one state dict holds both."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.architecture = architecture_of(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # diffusers initialises from the global generator
            self.transformer = build_transformer(self.architecture)
            initialise(self.transformer, config)
            self.prompt_embeds = nn.Parameter(torch.randn(config.prompt_tokens, config.text_width))

    def velocity(self) -> QwenVelocity:
        return QwenVelocity(self.transformer, self.prompt_embeds, self.config.prediction, use_dtc=self.config.use_dtc)


def measure_codec(config: DataConfig, seed: int) -> DctCodec:
    """Mean and std (48,) of the DCT coefficients of HQ training crops; each frequency pools its three colours' std.

    Equal std for the colours keeps the colour axes comparable; means differ by colour at DC only.
    """
    _, hq = next(batches(config, 64, STATISTICS_CROPS, seed, first_sample=0, count=1, workers=0))
    coefficients = image_to_coefficients(hq.double()).permute(1, 0, 2, 3).reshape(3, 16, -1)  # (3, 16, n)
    mean = coefficients.mean(dim=2)  # (3, 16)
    mean[:, 1:] = 0  # AC coefficients are symmetric under flips
    std = coefficients.var(dim=2).mean(dim=0).sqrt().expand(3, 16)  # (3, 16)
    return DctCodec(mean.flatten().tolist(), std.flatten().tolist())
