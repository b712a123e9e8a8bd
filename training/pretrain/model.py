"""What `pretrain` trains: every weight of a small transformer, its prompt embedding, and the codec's statistics."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from teasr_core.codec.block_dct import image_to_coefficients
from teasr_core.codec.condition_encoder.encoder import ConditionEncoder
from teasr_core.codec.condition_encoder.load import make_condition_encoder
from teasr_core.codec.dct import DctCodec
from teasr_core.errors import ConfigError
from teasr_core.model.qwen_velocity import QwenVelocity, build_transformer
from teasr_core.weight_files.base_file import BaseFile, codec_from_json, codec_to_json, read_base, shipped_base
from teasr_core.weight_files.file_kind import Kind, detect

from ..config.pretrain import ModelConfig, architecture_of, encoder_config
from ..config.shared import BUILTIN, DataConfig
from ..data.dataset import batches
from .initialise import initialise

STATISTICS_CROPS, STATISTICS_PX = 256, 64


class PretrainModel(nn.Module):
    """Transformer, prompt embedding (T, text_width) and condition encoder as one module: one state dict holds all."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.architecture = architecture_of(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # diffusers initialises from the global generator
            self.transformer = build_transformer(self.architecture)
            initialise(self.transformer, config)
            self.prompt_embeds = nn.Parameter(torch.randn(config.prompt_tokens, config.text_width))
            self.condition_encoder: ConditionEncoder | None = None
            encoder = encoder_config(config)
            if encoder is not None:
                self.condition_encoder = make_condition_encoder(encoder)

    def velocity(self) -> QwenVelocity:
        return QwenVelocity(self.transformer, self.prompt_embeds, self.config.prediction, use_dtc=self.config.use_dtc)


def load_start(model: PretrainModel, path: Path) -> DctCodec:
    """Give `model` the weights of a base file, in place; a codec with the file's statistics and the model's encoder.

    An LQ encoder that the file lacks begins untrained. ConfigError where the sizes differ.
    """
    base = read_base(path)
    config = model.config
    if (base.architecture, base.prediction, base.use_dtc) != (model.architecture, config.prediction, config.use_dtc):
        raise ConfigError(
            f"model.start is {path.name}, a model of {base.architecture}, prediction {base.prediction}, dtc "
            f"{base.use_dtc}: give [model] the same, or leave start out"
        )
    if base.prompt_embeds.shape != model.prompt_embeds.shape:
        raise ConfigError(f"model.start has {len(base.prompt_embeds)} prompt tokens: set model.prompt_tokens to that")
    model.transformer.load_state_dict(dict(base.tensors))
    with torch.no_grad():
        model.prompt_embeds.copy_(base.prompt_embeds)
    if base.codec.condition_encoder is not None:
        _copy_encoder(base.codec.condition_encoder, model, "model.start")
    return codec_from_json(codec_to_json(base.codec), model.condition_encoder)


def encoder_base(name: str) -> BaseFile | None:
    """The base file that `model.encoder_start` names; None where it names the weights of an RRDBNet, or nothing."""
    if name == BUILTIN:
        return shipped_base()
    path = Path(name)
    is_base = path.suffix == ".safetensors" and path.is_file() and detect(path).kind is Kind.TEASR_BASE
    return read_base(path) if is_base else None


def load_encoder(model: PretrainModel, base: BaseFile) -> DctCodec:
    """Give `model` the condition encoder of `base`, in place; a codec with the file's statistics and that encoder.

    ConfigError where the sizes differ, or where the file has no encoder.
    """
    if base.codec.condition_encoder is None:
        raise ConfigError(f"model.encoder_start is {base.path.name}, a base file without a condition encoder")
    _copy_encoder(base.codec.condition_encoder, model, "model.encoder_start")
    return codec_from_json(codec_to_json(base.codec), model.condition_encoder)


def _copy_encoder(given: ConditionEncoder, model: PretrainModel, setting: str) -> None:
    own = model.condition_encoder
    if own is None or given.config() != own.config():
        raise ConfigError(
            f"{setting} has a condition encoder of {given.config()}, [model] asks for "
            f"{'none' if own is None else own.config()}: set encoder_blocks = {given.blocks}, encoder_width = "
            f"{given.width} and encoder_kind = '{given.kind}'"
        )
    own.load_state_dict(given.state_dict())


def measure_codec(
    config: DataConfig, seed: int, crop_px: int, condition_encoder: ConditionEncoder | None = None
) -> DctCodec:
    """Mean and std (48,) of the DCT coefficients of HQ training crops; each frequency pools its three colours' std.

    crop_px: the smallest of the run, so that its photographs are large enough; of a larger one 64 px do. Equal std for
    the colours keeps the colour axes comparable; means differ by colour at DC only.
    """
    crop_px = min(crop_px, STATISTICS_PX)
    _, hq = next(batches(config, crop_px, STATISTICS_CROPS, seed, first_sample=0, count=1, workers=0))
    coefficients = image_to_coefficients(hq.double()).permute(1, 0, 2, 3).reshape(3, 16, -1)  # (3, 16, n)
    mean = coefficients.mean(dim=2)  # (3, 16)
    mean[:, 1:] = 0  # AC coefficients are symmetric under flips
    std = coefficients.var(dim=2).mean(dim=0).sqrt().expand(3, 16)  # (3, 16)
    return DctCodec(mean.flatten().tolist(), std.flatten().tolist(), condition_encoder)
