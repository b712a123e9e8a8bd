"""TEASR LoRA files: read, check, write (docs/training/lora_format.md).

Keys carry the prefix `teasr.`, so that a stock LoRA loader reports them as unknown instead of applying the adapter to
every token. The ordinary prefixes are read too; they are written by `training export --all-tokens-unsafe` alone.
docs/training/lora_format.md tells what stock loaders were seen to do with each form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import LoraFileError
from ..model.architecture import QwenArchitecture
from ..model.branch_lora import READABLE_TARGETS, target_paths
from ..model.recipe import Recipe
from .file_kind import CHECKPOINT_KEY
from .recipe_metadata import read_recipe, recipe_metadata
from .safetensors_reader import read_tensors

PREFIX = "teasr."
ALL_TOKENS_PREFIXES = ("transformer.", "diffusion_model.")  # stock loaders apply these to every token
READABLE_PREFIXES = (PREFIX, *ALL_TOKENS_PREFIXES)
PROMPT_KEY = "teasr.prompt_embeds"
# Small tensors that fp8, GGUF and merged ordinary LoRAs leave alone; together they name the base
# (docs/decisions.md#base-fingerprint).
FINGERPRINT_KEYS = ("img_in.bias", "txt_in.bias", "proj_out.bias", "transformer_blocks.0.attn.norm_q.weight")
# The fingerprint of a LoRA that was imported without its base at hand: such a file cannot tell its base.
UNKNOWN_BASE = "unknown"
METADATA_KEYS = ("format", "scope", "positions", "prediction", "rank", "targets", "base", "base_fingerprint")


@dataclass(frozen=True)
class LoraFile:
    """A checked adapter. `tensors` have keys `{path}.lora_A.weight` (r, in) and `{path}.lora_B.weight` (out, r)."""

    name: str
    tensors: Mapping[str, torch.Tensor]
    prompt_embeds: torch.Tensor | None  # (T, text_width)
    prediction: str
    rank: int
    targets: tuple[str, ...]
    base: str
    base_fingerprint: str
    step: int
    config: Mapping[str, Any]
    recipe: Recipe = field(default_factory=Recipe)


def fingerprint(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the bf16 bytes of FINGERPRINT_KEYS. LoraFileError when the model lacks one of them."""
    digest = hashlib.sha256()
    for key in FINGERPRINT_KEYS:
        if key not in state_dict:
            raise LoraFileError(f"the model has no '{key}': expected a Qwen-Image transformer")
        value = state_dict[key].detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(value.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def read_lora(path: Path) -> LoraFile:
    """Read and check a LoRA file whole. LoraFileError or ModelFileError, one line, when anything is off (R4)."""
    return parse_lora(path.name, *read_tensors(path))


def parse_lora(name: str, stored: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> LoraFile:
    """The same from a file's tensors and metadata; `name` stands in the errors."""
    raw = dict(stored)
    values = _metadata(name, metadata)
    prompt_embeds = raw.pop(PROMPT_KEY, None)
    prefix = next((p for p in READABLE_PREFIXES if raw and all(key.startswith(p) for key in raw)), None)
    if prefix is None:
        raise LoraFileError(
            f"{name}: {len(raw)} tensors, first {sorted(raw)[:3]}: expected every key to begin with one of "
            f"{READABLE_PREFIXES}; this is no TEASR LoRA"
        )
    tensors = {key.removeprefix(prefix): value for key, value in raw.items()}
    _check_pairs(name, tensors, values["rank"])
    for key, value in [*tensors.items(), (PROMPT_KEY, prompt_embeds)]:
        if value is not None and not bool(torch.isfinite(value.float()).all()):
            raise LoraFileError(f"{name}: '{key}' holds NaN or infinity: the training run diverged, use an older one")
    if prompt_embeds is not None and prompt_embeds.ndim != 2:
        raise LoraFileError(f"{name}: '{PROMPT_KEY}' has shape {tuple(prompt_embeds.shape)}, expected (T, text_width)")
    recipe = read_recipe(name, metadata)
    if (recipe.uses_start_latent or recipe.velocity_scale != 1) and values["prediction"] != "velocity":
        raise LoraFileError(
            f"{name} has a start encoder or a velocity scale and predicts '{values['prediction']}': expected "
            "'velocity', the prediction of Qwen-Image; get the file again"
        )
    return LoraFile(
        name=name,
        tensors=tensors,
        prompt_embeds=prompt_embeds,
        prediction=values["prediction"],
        rank=values["rank"],
        targets=tuple(values["targets"]),
        base=values["base"],
        base_fingerprint=values["base_fingerprint"],
        step=values["step"],
        config=values["config"],
        recipe=recipe,
    )


def check_base(
    lora: LoraFile,
    architecture: QwenArchitecture,
    prediction: str,
    state_dict: Mapping[str, torch.Tensor],
    allow_other_base: bool = False,
) -> None:
    """Refuse an adapter that was made for another model.

    Architecture and prediction must match; the fingerprint may differ with `allow_other_base` (a fine-tuned base), and
    where the file does not know it (UNKNOWN_BASE).
    `state_dict` needs FINGERPRINT_KEYS only.
    """
    wanted = target_paths(architecture.num_layers, lora.targets)
    found = sorted({key.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight") for key in lora.tensors})
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unknown:
        raise LoraFileError(
            f"{lora.name} was made for another architecture: {len(missing)} of {len(wanted)} layers missing "
            f"{missing[:2]}, {len(unknown)} unknown {unknown[:2]}; {_advice(lora)}"
        )
    for path in wanted:
        a, b = lora.tensors[f"{path}.lora_A.weight"], lora.tensors[f"{path}.lora_B.weight"]
        shape = _linear_shape(path, architecture.width, architecture.token_channels)
        if (b.shape[0], a.shape[1]) != shape:
            raise LoraFileError(
                f"{lora.name}: '{path}' is {(b.shape[0], a.shape[1])}, the model has {shape}: "
                f"it was made for another model; {_advice(lora)}"
            )
    if lora.prompt_embeds is not None and lora.prompt_embeds.shape[-1] != architecture.text_width:
        raise LoraFileError(
            f"{lora.name}: prompt embedding is {lora.prompt_embeds.shape[-1]} wide, the model takes "
            f"{architecture.text_width}: it was made for another model"
        )
    if lora.prediction != prediction:
        raise LoraFileError(f"{lora.name} predicts '{lora.prediction}', the model '{prediction}': load its own base")
    if lora.base_fingerprint == UNKNOWN_BASE:
        return
    found_print = fingerprint(state_dict)
    if lora.base_fingerprint != found_print and not allow_other_base:
        raise LoraFileError(
            f"{lora.name} was trained on '{lora.base}' ({lora.base_fingerprint[:12]}), this model is "
            f"{found_print[:12]}: load that base, or set allow_other_base if yours is a fine-tune of it"
        )


def _advice(lora: LoraFile) -> str:
    return (
        f"load the base it names ('{lora.base}'), or train it again: an update may have brought another built-in model"
    )


def lora_metadata(
    *, prediction: str, rank: int, targets: Sequence[str], base: str, base_fingerprint: str, step: int,
    config: Mapping[str, Any], recipe: Recipe | None = None,
) -> dict[str, str]:  # fmt: skip
    """The string metadata of a LoRA file (docs/training/lora_format.md)."""
    return {
        "teasr.format": "1",
        "teasr.scope": "condition",
        "teasr.positions": "shared",
        "teasr.prediction": prediction,
        "teasr.rank": str(rank),
        "teasr.targets": json.dumps(list(targets)),
        "teasr.base": base,
        "teasr.base_fingerprint": base_fingerprint,
        "teasr.step": str(step),
        "teasr.config": json.dumps(dict(config), sort_keys=True),
        **recipe_metadata(recipe or Recipe()),
    }


def lora_tensors(
    tensors: Mapping[str, torch.Tensor],
    prompt_embeds: torch.Tensor | None,
    prefix: str = PREFIX,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, torch.Tensor]:
    """Tensors under their file keys, the pairs in `dtype`. Stock loaders would misapply any other `prefix`.

    The prompt embedding belongs to the form with PREFIX: diffusers refuses an ordinary LoRA that holds it.
    """
    out = {prefix + key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors.items()}
    if prompt_embeds is not None:
        out[PROMPT_KEY] = prompt_embeds.detach().to("cpu", torch.bfloat16).contiguous()
    return out


def _metadata(name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    if CHECKPOINT_KEY in metadata:
        raise LoraFileError(
            f"{name} is a training checkpoint: expected a TEASR LoRA; write one with `python -m training export {name} "
            "my_lora.safetensors`"
        )
    missing = [f"teasr.{key}" for key in METADATA_KEYS if f"teasr.{key}" not in metadata]
    if missing:
        raise LoraFileError(
            f"{name} has no metadata {missing[:3]}: expected a TEASR LoRA (an ordinary LoRA belongs in LoraLoader)"
        )
    for key, expected in (("format", "1"), ("scope", "condition"), ("positions", "shared")):
        if metadata[f"teasr.{key}"] != expected:
            raise LoraFileError(f"{name}: teasr.{key} is '{metadata[f'teasr.{key}']}', this version reads '{expected}'")
    try:
        targets, config = json.loads(metadata["teasr.targets"]), json.loads(metadata.get("teasr.config", "{}"))
        rank, step = int(metadata["teasr.rank"]), int(metadata.get("teasr.step", "0"))
    except ValueError:
        raise LoraFileError(
            f"{name}: teasr.rank, .targets, .step or .config is not readable: get the file again"
        ) from None
    if not isinstance(config, dict) or rank < 1:
        raise LoraFileError(f"{name}: rank {rank} or config {config!r} is impossible: get the file again")
    if not isinstance(targets, list) or not targets or any(target not in READABLE_TARGETS for target in targets):
        raise LoraFileError(f"{name}: targets {targets!r} are not among {READABLE_TARGETS}")
    known = {key: metadata[f"teasr.{key}"] for key in METADATA_KEYS}
    return known | {"targets": targets, "rank": rank, "step": step, "config": config}


def _check_pairs(name: str, tensors: Mapping[str, torch.Tensor], rank: int) -> None:
    halves = (".lora_A.weight", ".lora_B.weight")
    odd = [key for key in tensors if not key.endswith(halves)]
    paths = {key.rsplit(".lora_", 1)[0] for key in tensors if key not in odd}
    lonely = [p + half for p in sorted(paths) for half in halves if p + half not in tensors]
    if odd or lonely:
        raise LoraFileError(
            f"{name}: {len(odd)} tensors of another kind {sorted(odd)[:2]}, {len(lonely)} missing halves {lonely[:2]}: "
            "the file is incomplete or no TEASR LoRA"
        )
    for path in sorted(paths):
        a, b = tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise LoraFileError(
                f"{name}: '{path}' has shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                f"expected rank {rank} as teasr.rank says: get the file again"
            )


def _linear_shape(path: str, width: int, token_channels: int = 0) -> tuple[int, int]:
    """(out, in) of an adapted Linear in a transformer of this width; the MLP is four times as wide."""
    if path == "img_in":
        return width, token_channels
    if path.endswith("img_mlp.net.0.proj"):
        return 4 * width, width
    if path.endswith("img_mlp.net.2"):
        return width, 4 * width
    if path.endswith("img_mod.1"):
        return 6 * width, width
    return width, width
