"""Files of the built-in model: a base transformer, its codec and, once distilled, its LoRA
(docs/decisions.md#built-in-files).

Reading a file needs neither diffusers nor ComfyUI: both hosts build their own transformer from `BaseFile`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..codec.block_dct import DCT_CHANNELS
from ..codec.condition_encoder.encoder import ConditionEncoder
from ..codec.condition_encoder.load import load_condition_encoder
from ..codec.condition_encoder.residual import ResidualEncoder
from ..codec.dct import DctCodec
from ..errors import LoraFileError, ModelFileError
from ..model.architecture import PREDICTIONS, QwenArchitecture
from .lora_file import PROMPT_KEY, LoraFile, check_base, read_lora
from .safetensors_reader import read_tensors

if TYPE_CHECKING:
    from ..model.qwen_velocity import QwenVelocity

ASSETS = Path(__file__).parents[1] / "assets"
BASE_NAME = "teasr_builtin_v2_base.safetensors"
LORA_NAME = "teasr_builtin_v2_lora.safetensors"
BASE_ID = "teasr_builtin_v2"

FORMATS = ("1", "2")

# Prefix of the condition encoder's tensors in a base file, and its entry in the metadata; the first model has none.
ENCODER_PREFIX = "condition_encoder."
ENCODER_KEY = "teasr.condition_encoder"


@dataclass(frozen=True)
class BaseFile:
    """A base file as it lies on disk: `tensors` are the transformer's (diffusers and ComfyUI share the keys)."""

    path: Path
    architecture: QwenArchitecture
    prediction: str
    use_dtc: bool
    codec: DctCodec
    tensors: Mapping[str, torch.Tensor]
    prompt_embeds: torch.Tensor  # (T, text_width)
    training: Mapping[str, Any]


def base_metadata(
    architecture: QwenArchitecture, prediction: str, use_dtc: bool, codec: DctCodec, training: Mapping[str, Any]
) -> dict[str, str]:
    """The string metadata of a base file; `read_base` is its inverse."""
    encoder = codec.condition_encoder
    return {
        **({} if encoder is None else {ENCODER_KEY: json.dumps(encoder.config())}),
        "teasr.format": _format(encoder),
        "teasr.kind": "base",
        "teasr.config": json.dumps(architecture.to_json(), sort_keys=True),
        "teasr.codec": json.dumps(codec_to_json(codec)),
        "teasr.prediction": prediction,
        "teasr.use_dtc": json.dumps(use_dtc),
        "teasr.training": json.dumps(dict(training), sort_keys=True),
    }


def _format(encoder: ConditionEncoder | None) -> str:
    """Format 2 is format 1 with an encoder that programs made for format 1 do not know."""
    return "1" if encoder is None or encoder.kind == ResidualEncoder.kind else "2"


def read_base(path: Path) -> BaseFile:
    """Read and check a base file. ModelFileError when it is damaged or of another kind."""
    tensors, metadata = read_tensors(path)
    if metadata.get("teasr.kind") != "base" or metadata.get("teasr.format") not in FORMATS:
        raise ModelFileError(
            f"{path.name} is no TEASR base file (format 1 or 2): expected one written by `training export`"
        )
    try:
        values = {key: json.loads(metadata[f"teasr.{key}"]) for key in ("codec", "config", "use_dtc", "training")}
        architecture = QwenArchitecture.from_json(values["config"])
        encoder = encoder_from_file(metadata.get(ENCODER_KEY), tensors)
        if metadata["teasr.format"] != _format(encoder):
            wanted = _format(encoder)
            raise ModelFileError(f"its format is {metadata['teasr.format']}, what it holds needs {wanted}")
        codec = codec_from_json(values["codec"], encoder)
        prediction = metadata["teasr.prediction"]
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{path.name} has damaged metadata ({error}): get the file again") from None
    tensors = {key: value for key, value in tensors.items() if not key.startswith(ENCODER_PREFIX)}
    if prediction not in PREDICTIONS or not isinstance(values["use_dtc"], bool):
        raise ModelFileError(
            f"{path.name} has an unknown prediction or use_dtc: it was made by another version of TEASR"
        )
    if not isinstance(values["training"], dict):
        raise ModelFileError(
            f"{path.name}: teasr.training is {values['training']!r}, no JSON object: get the file again"
        )
    prompt_embeds = tensors.pop(PROMPT_KEY, torch.zeros(0))
    if prompt_embeds.ndim != 2 or prompt_embeds.shape[1] != architecture.text_width:
        raise ModelFileError(
            f"{path.name}: '{PROMPT_KEY}' has shape {tuple(prompt_embeds.shape)}, expected "
            f"(T, {architecture.text_width}): get the file again"
        )
    return BaseFile(
        path=path,
        architecture=architecture,
        prediction=prediction,
        use_dtc=values["use_dtc"],
        codec=codec,
        tensors=tensors,
        prompt_embeds=prompt_embeds,
        training=values["training"],
    )


def codec_to_json(codec: DctCodec) -> dict[str, Any]:
    """The codec as a base file and a checkpoint remember it."""
    return {"kind": "dct4", "mean": codec.mean.flatten().tolist(), "std": codec.std.flatten().tolist()}


def encoder_from_file(config: str | None, tensors: Mapping[str, torch.Tensor]) -> ConditionEncoder | None:
    """The condition encoder among `tensors`, by the JSON in the metadata; None for a base without one.

    ModelFileError where tensors and metadata do not go together.
    """
    own = {key.removeprefix(ENCODER_PREFIX): t for key, t in tensors.items() if key.startswith(ENCODER_PREFIX)}
    if config is None and not own:
        return None
    try:
        return load_condition_encoder(json.loads(config or "null"), own)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[-1].strip()
        raise ModelFileError(f"its condition encoder is damaged ({cause}): get the file again") from None


def encoder_tensors(codec: DctCodec) -> dict[str, torch.Tensor]:
    """The condition encoder's weights by their names in a base file."""
    if codec.condition_encoder is None:
        return {}
    return {f"{ENCODER_PREFIX}{key}": value.contiguous() for key, value in codec.condition_encoder.state_dict().items()}


def codec_from_json(values: Mapping[str, Any], condition_encoder: ConditionEncoder | None = None) -> DctCodec:
    """The inverse of `codec_to_json`. ModelFileError for another kind of codec or another number of channels."""
    if not isinstance(values, dict) or values.get("kind") != "dct4":
        raise ModelFileError(f"codec {values!r} is unknown: it was made by another version of TEASR")
    if {len(values["mean"]), len(values["std"])} != {DCT_CHANNELS}:
        raise ModelFileError(f"the codec has {len(values['mean'])} means, expected {DCT_CHANNELS}: get the file again")
    numbers = [*values["mean"], *values["std"]]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) or min(values["std"]) <= 0:
        raise ModelFileError("the codec has means that are no numbers, or deviations not above 0: get the file again")
    return DctCodec(values["mean"], values["std"], condition_encoder)


def shipped_base() -> BaseFile:
    """The base that comes with the pack."""
    path = ASSETS / BASE_NAME
    if not path.exists():
        raise ModelFileError(f"the built-in model {BASE_NAME} is missing from {ASSETS.name}/: install the pack again")
    return read_base(path)


def shipped_lora(base: BaseFile) -> LoraFile | None:
    """The LoRA that comes with the pack, or None while the built-in model is a base alone."""
    path = ASSETS / LORA_NAME
    if not path.exists():
        return None
    lora = read_lora(path)
    check_base(lora, base.architecture, base.prediction, base.tensors)
    return lora


def build_velocity(
    base: BaseFile, lora: LoraFile | None = None, lora_strength: float = 1.0, dtype: torch.dtype = torch.float32
) -> QwenVelocity:
    """The standalone (diffusers) velocity of a base file with an optional adapter, on the CPU."""
    from ..model.branch_lora import BranchLora
    from ..model.qwen_velocity import QwenVelocity, build_transformer

    transformer = build_transformer(base.architecture)
    wanted = {key: value.shape for key, value in transformer.state_dict().items()}
    found = {key: value.shape for key, value in base.tensors.items()}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        raise ModelFileError(
            f"{base.path.name}: {len(wrong)} tensors are missing, unknown or of another shape, first {wrong[:3]}: "
            "the file does not hold the model its config describes"
        )
    transformer.load_state_dict(dict(base.tensors))
    nn.Module.to(transformer, dtype).eval().requires_grad_(False)  # diffusers' own `to` prints a warning
    prompt, adapter, recipe = base.prompt_embeds, None, None
    if lora is not None:
        recipe = lora.recipe
        if recipe.uses_start_latent:
            raise LoraFileError(
                f"{lora.name} starts from a second encoder of Qwen-Image's VAE, which {base.path.name} does not have: "
                "give the LoRA together with a Qwen-Image"
            )
        adapter = BranchLora.from_tensors(lora.tensors, dtype=dtype).requires_grad_(False)
        prompt = lora.prompt_embeds if lora.prompt_embeds is not None else prompt
    return QwenVelocity(transformer, prompt, base.prediction, adapter, lora_strength, base.use_dtc, recipe)
