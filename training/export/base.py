"""`export`: the weights of a whole small model as a base file of the built-in model (docs/decisions.md#built-in-files).

From a pretraining run, or from a distillation with `adapter.trainable = "all"`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from teasr_core.codec.condition_encoder.encoder import ConditionEncoder
from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.weight_files.base_file import base_metadata, codec_from_json, encoder_from_file, encoder_tensors
from teasr_core.weight_files.lora_file import PROMPT_KEY

from ..config.pretrain import ModelConfig, architecture_of, encoder_config
from ..config.toml import from_mapping
from ..run.checkpoint import (
    EMA_PREFIX,
    FROZEN_PREFIX,
    MODEL_PREFIX,
    PROMPT_NAME,
    load_checkpoint,
    newest_checkpoint,
)
from .output import check_output, write_output


def export_base(
    run: Path, output: Path, weights: str = "ema", blend: Callable[[ConditionEncoder], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Write the weights of the newest checkpoint in `run` (or of the one given), bf16, to `output`.

    Returns the training summary.

    weights: "ema" (averaged) or "raw" (the last step's, which is better where the learning rate has run down:
    docs/log/any_step_training.md). blend: changes the condition encoder, which has the codec's statistics, in place and
    returns what the summary shall say of it (`pretrain.blend.blend_encoder`).
    Raises InputError for paths that cannot be used, ModelFileError for files that cannot, ConfigError where there is no
    encoder to change, and what `blend` raises.
    """
    checkpoint = newest_checkpoint(run)
    check_output(output, checkpoint)
    tensors, state = load_checkpoint(checkpoint)
    architecture, prediction, use_dtc, origin = _described(state)
    prefix = {"ema": EMA_PREFIX, "raw": MODEL_PREFIX}[weights]
    exported = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            name = PROMPT_KEY if name == PROMPT_NAME else name.removeprefix("transformer.")
            exported[name] = value.to(torch.bfloat16)
        elif key.startswith(FROZEN_PREFIX):  # weights that a distillation of all weights does not train
            exported[key.removeprefix(FROZEN_PREFIX)] = value.to(torch.bfloat16)
    summary = {
        "steps": state["step"],
        "weights": weights,
        "samples": state["samples"],
        "hours": round(state["seconds"] / 3600, 2),
        "presets": state["config"]["data"]["presets"],
        "scales": state["config"]["data"]["scales"],
        "perceptual": state["config"]["loss"]["perceptual"],
        **origin,
    }
    encoder = encoder_from_file(_encoder_config(state), exported)
    codec = codec_from_json(state["codec"], encoder)
    if blend is not None:
        if encoder is None:
            raise ConfigError(f"{run} has no condition encoder to blend: leave --blend-encoder out")
        summary |= blend(encoder)
        exported |= {name: value.to(torch.bfloat16) for name, value in encoder_tensors(codec).items()}
    metadata = base_metadata(architecture, prediction, use_dtc, codec, summary)
    write_output(output, exported, metadata)
    return summary


def _encoder_config(state: dict[str, Any]) -> str | None:
    """The JSON of the condition encoder for the base file, from a pretraining run or a distillation."""
    if "model" not in state["config"]:
        return state.get("condition_encoder")
    model = from_mapping(ModelConfig, state["config"]["model"], "model.")
    encoder = encoder_config(model)
    return None if encoder is None else json.dumps(encoder)


def _described(state: dict[str, Any]) -> tuple[QwenArchitecture, str, bool, dict[str, Any]]:
    """Architecture, prediction, use_dtc, and the entries of the summary that depend on the kind of run."""
    config = state["config"]
    if "model" in config:  # pretraining
        model = from_mapping(ModelConfig, config["model"], "model.")
        return architecture_of(model), model.prediction, model.use_dtc, {"stages": config["stages"]}
    architecture = QwenArchitecture.from_json(state["architecture"])
    return architecture, state["prediction"], state["use_dtc"], {"distilled_from": state["base_fingerprint"]}
