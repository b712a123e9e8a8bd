"""`export`: the adapter of a distillation run as a TEASR LoRA file (docs/training/lora_format.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from teasr_core.errors import InputError, LoraFileError
from teasr_core.model.branch_lora import target_paths
from teasr_core.model.recipe import Recipe
from teasr_core.weight_files.lora_file import (
    PREFIX,
    LoraFile,
    lora_metadata,
    lora_tensors,
    parse_lora,
)
from teasr_core.weight_files.safetensors_reader import WeightReader, read_header, read_tensors

from ..run.checkpoint import EMA_PREFIX, LORA_PREFIX, PROMPT_NAME, STATE_KEY, newest_checkpoint
from .output import check_output, write_output

PREFIXES = {"ema": EMA_PREFIX, "raw": LORA_PREFIX}  # of the adapter's keys in a checkpoint
EXPORT_KEY = "export"  # in teasr.config: which weights were exported, after how much training


def export_lora(run: Path, output: Path, weights: str = "ema", all_tokens_unsafe: str | None = None) -> dict[str, Any]:
    """Write the LoRA of a distillation run to `output`, bf16, alpha/rank folded into B.

    Args:
        run: folder of the run (its newest checkpoint is taken), one checkpoint, or a TEASR LoRA file to write again.
        weights: "ema" (averaged) or "raw" (the last step's) of a checkpoint; a LoRA file holds one set alone.
        all_tokens_unsafe: the prefix of an ordinary LoRA, one of ALL_TOKENS_PREFIXES; None writes our own. Stock
            loaders then apply the LoRA to every token, for which it was not trained. The file holds no prompt
            embedding, because diffusers refuses a file that does.

    Returns a summary: steps, rank, prefix, has_prompt and, where known, weights, samples and hours.
    Raises InputError for paths that cannot be used, ModelFileError (LoraFileError) for files that cannot.
    """
    source = newest_checkpoint(run)
    check_output(output, source)
    _, header = read_header(source)
    lora = _from_checkpoint(source, header, weights) if STATE_KEY in header else _from_file(source, header)
    prefix = all_tokens_unsafe or PREFIX
    tensors = lora_tensors(lora.tensors, None if all_tokens_unsafe else lora.prompt_embeds, prefix)
    metadata = lora_metadata(
        prediction=lora.prediction, rank=lora.rank, targets=lora.targets, base=lora.base,
        base_fingerprint=lora.base_fingerprint, step=lora.step, config=lora.config, recipe=lora.recipe,
    )  # fmt: skip
    written = parse_lora(source.name, tensors, metadata)  # a file that could not be read is not written
    write_output(output, tensors, metadata)
    about = {"steps": lora.step, "rank": lora.rank, "prefix": prefix, "has_prompt": written.prompt_embeds is not None}
    return {**lora.config.get(EXPORT_KEY, {}), **about}


def holds_lora(source: Path) -> bool:
    """Whether `source` holds a LoRA (a checkpoint of a distillation, or a LoRA file) and no whole model."""
    infos, header = read_header(source)
    return STATE_KEY not in header or any(key.startswith(LORA_PREFIX) for key in infos)


def without_folders(value: Any) -> Any:
    """A config that can be given away: of absolute paths only the last part is kept."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    is_private = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~")
    return PureWindowsPath(value).name if is_private else value  # knows both separators


def _from_checkpoint(source: Path, header: Mapping[str, str], weights: str) -> LoraFile:
    if not holds_lora(source):
        raise InputError(
            f"{source} holds the weights of a whole model and no LoRA (pretraining, or distillation with "
            'trainable = "all"): write a base file, `python -m training export RUN OUT` without --all-tokens-unsafe'
        )
    prefix = PREFIXES[weights]
    with WeightReader(source) as reader:  # the optimiser's moments stay on disk
        stored = {key: reader.read(key) for key in reader.infos if key.startswith((prefix, PROMPT_NAME))}
    prompt_embeds = stored.pop(PROMPT_NAME, None)
    state = json.loads(header[STATE_KEY])
    about = state["lora"]
    scale = about["alpha"] / about["rank"]
    tensors = {}
    for key, value in stored.items():
        name = key.removeprefix(prefix)
        tensors[name] = value.float() * scale if name.endswith(".lora_B.weight") else value.float()
    _check_complete(source, tensors, about["targets"])
    if prompt_embeds is None:
        raise LoraFileError(f"{source.name} holds no '{PROMPT_NAME}': expected a checkpoint of `training distill`")
    made = {"weights": weights, "samples": state["samples"], "hours": round(state["seconds"] / 3600, 2)}
    if "start" in state:  # the LoRA that the run went on from (`distill/start.py`)
        made["start"] = state["start"]
    return LoraFile(
        name=source.name,
        tensors=tensors,
        prompt_embeds=prompt_embeds,
        prediction=about["prediction"],
        rank=about["rank"],
        targets=tuple(about["targets"]),
        base=about["base"],
        base_fingerprint=about["base_fingerprint"],
        step=state["step"],
        config=without_folders({**state["config"], EXPORT_KEY: made}),
        recipe=Recipe(**about.get("recipe", {})),
    )


def _from_file(source: Path, header: Mapping[str, str]) -> LoraFile:
    if "teasr.scope" not in header:
        raise InputError(
            f"{source} is neither a training checkpoint nor a TEASR LoRA: give a run's folder or one of those"
        )
    lora = parse_lora(source.name, *read_tensors(source))
    _check_complete(source, lora.tensors, lora.targets)
    return lora


def _check_complete(source: Path, tensors: Mapping[str, torch.Tensor], targets: list[str] | tuple[str, ...]) -> None:
    """Raise LoraFileError unless there is every target of every block up to the highest, and nothing else."""
    found = {key.rsplit(".lora_", 1)[0] for key in tensors}
    blocks = [path.split(".")[1] for path in found if path.startswith("transformer_blocks.")]
    num_layers = 1 + max((int(block) for block in blocks if block.isdigit()), default=-1)
    expected = set(target_paths(num_layers, targets))
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing or unknown:
        raise LoraFileError(
            f"{source.name}: {len(missing)} of {len(expected)} layers missing {missing[:2]}, {len(unknown)} unknown "
            f"{unknown[:2]}: expected the targets {list(targets)} of {num_layers} blocks, take another checkpoint"
        )
