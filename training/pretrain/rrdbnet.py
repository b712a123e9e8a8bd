"""The weights of an RRDBNet, such as Real-ESRGAN x4plus, as the start of an rrdb condition encoder.

To that network a block of the codec's latent is what a pixel of a picture is to Real-ESRGAN at x4: the DC coefficients
of the block are four times the mean of its pixels in [-1, 1]. The first convolution therefore starts as Real-ESRGAN's
own on the three DC channels, and with zeros on the 45 others, which it learns to use. At a scale factor of 4 the
encoder then begins as Real-ESRGAN, up to the Lanczos filter that enlarged the low-quality picture and to what lies
beyond the picture's edge, which is the codec's mean colour and not black.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from teasr_core.codec.block_dct import BLOCK, DCT_CHANNELS
from teasr_core.codec.condition_encoder.encoder import ConditionEncoder
from teasr_core.codec.condition_encoder.rrdb import RrdbEncoder
from teasr_core.errors import ConfigError, ModelFileError
from teasr_core.weight_files.pickle_reader import read_pickled_tensors
from teasr_core.weight_files.safetensors_reader import read_tensors

# Names of the encoder's layers, and of those of RRDBNet in BasicSR (Apache-2.0) and Real-ESRGAN (BSD-3-Clause).
OUTER_LAYERS = {
    "trunk": "conv_body", "up1": "conv_up1", "up2": "conv_up2", "detail": "conv_hr", "last": "conv_last",
}  # fmt: skip
NESTED = ("params_ema", "params")  # under which BasicSR saves a state dict


def copy_rrdbnet(
    encoder: ConditionEncoder | None, path: Path, setting: str = "model.encoder_start", keeps_rest: bool = False
) -> None:
    """Copy the weights of the RRDBNet in `path` (.pth or .safetensors) into `encoder`, in place.

    The codec must have given the encoder its statistics. setting: what named the file, for messages. keeps_rest: the
    first convolution's 45 other channels and the skip, which an RRDBNet lacks, stay as they are in place of zero.
    Raises ConfigError where the encoder is of another kind or size, ModelFileError where the file is no RRDBNet.
    """
    if not isinstance(encoder, RrdbEncoder):
        raise ConfigError(f"{setting} is set: it needs model.encoder_kind = 'rrdb' and encoder_blocks above 0")
    source = _read(path, setting)
    missing = [name for name in _names(encoder).values() if f"{name}.weight" not in source]
    used = {f"{name}.{part}" for name in (*_names(encoder).values(), "conv_first") for part in ("weight", "bias")}
    if "conv_first.weight" not in source or missing or source.keys() - used:
        example = (missing or sorted(source.keys() - used) or ["conv_first"])[0]
        raise ConfigError(
            f"{setting} is {path.name}: it is no RRDBNet of {encoder.blocks} blocks for x4 (first "
            f"difference: {example}): set model.encoder_blocks to its number, 23 for RealESRGAN_x4plus"
        )
    tensors = {
        f"{own}.{part}": source[f"{name}.{part}"].float()
        for own, name in _names(encoder).items()
        for part in ("weight", "bias")
    }
    first = source["conv_first.weight"].float()  # (features, 3, 3, 3), of pixels in [0, 1]
    if first.shape[1] != 3:
        raise ConfigError(f"{setting} is {path.name}, a network of {first.shape[1]} input channels, not 3")
    dc = torch.arange(3) * BLOCK * BLOCK  # channels of the DC coefficients; pixel = (4 pixel mean + 4) / 8
    std, mean = (value.flatten()[dc].to(first) for value in (encoder.std, encoder.mean))
    weight = first.new_zeros(len(first), DCT_CHANNELS, 3, 3)
    weight[:, dc] = first * (std / (2 * BLOCK)).view(1, -1, 1, 1)
    offset = (mean / (2 * BLOCK) + 0.5).view(1, -1, 1, 1)
    tensors["first.weight"] = weight
    tensors["first.bias"] = source["conv_first.bias"].float() + (first * offset).sum(dim=(1, 2, 3))
    tensors["skip.weight"] = torch.zeros_like(encoder.skip.weight)
    own = {name: value.shape for name, value in encoder.state_dict().items()}
    wrong = [name for name in own if tensors[name].shape != own[name]]
    if wrong:
        raise ConfigError(
            f"{setting} is {path.name}: {wrong[0]} is {tuple(tensors[wrong[0]].shape)}, the encoder has "
            f"{tuple(own[wrong[0]])}: set model.encoder_width to the network's features, 64 for RealESRGAN_x4plus"
        )
    if keeps_rest:
        details = [channel for channel in range(DCT_CHANNELS) if channel not in dc]
        tensors["first.weight"][:, details] = encoder.first.weight.detach()[:, details].float()
        tensors["skip.weight"] = encoder.skip.weight.detach()
    encoder.load_state_dict(tensors)


def _names(encoder: RrdbEncoder) -> dict[str, str]:
    """The layers of `encoder` but the first and the skip, and their names in RRDBNet."""
    body = {
        f"body.{block}.dense.{dense}.convs.{conv}": f"body.{block}.rdb{dense + 1}.conv{conv + 1}"
        for block in range(encoder.blocks)
        for dense in range(3)
        for conv in range(5)
    }
    return body | OUTER_LAYERS


def _read(path: Path, setting: str) -> Mapping[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)[0]
        return read_pickled_tensors(path, "RRDBNet's weights, a .pth or .safetensors", NESTED)
    except ModelFileError as error:
        raise ModelFileError(f"{setting} is {path}: {error}") from None
