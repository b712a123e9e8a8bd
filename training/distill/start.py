"""`adapter.start`: the TEASR LoRA that a distillation goes on from, checked before the weights of its base are read.

A LoRA file has alpha / rank folded into B, and a run multiplies by `lora_scale`; so B is divided by that, and the first
step begins with the file's own output. For the same reason the run trains with the prompt embedding that the file
holds. Once the run has a checkpoint, all of it comes from there and the file is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BranchLora, target_paths
from teasr_core.model.recipe import Recipe
from teasr_core.weight_files import base_file
from teasr_core.weight_files.file_kind import Kind, detect
from teasr_core.weight_files.lora_file import LoraFile, check_base, read_lora
from teasr_core.weight_files.qwen_file import read_qwen
from teasr_core.whole_file import file_sha256

from ..config.distill import AdapterConfig, DistillConfig
from ..config.shared import BUILTIN
from ..frozen_base.new_adapter import lora_scale

KEPT = ("gelu", "velocity_scale")  # of a recipe: what a run goes on with
SCHEME = ("condition_time", "start_time")  # of a recipe: what makes a LoRA one of another scheme than TEASR's


@dataclass(frozen=True)
class Start:
    """A LoRA that fits the run. record: what checkpoints and exported files say of it, as JSON values."""

    lora: LoraFile
    record: Mapping[str, Any]

    @property
    def recipe(self) -> Recipe:
        """How the run computes a velocity, and the exported LoRA: as the file does, but for what SAD + TAR is about.

        Times of the condition branch are target times, and sampling starts from noise at time 1. At t_tar = t_cur the
        first step therefore begins with the file's own velocity (docs/training/my_photographs.md).
        """
        return Recipe(**{name: getattr(self.lora.recipe, name) for name in KEPT})

    @property
    def changed(self) -> str:
        """What of the file's recipe the run does not go on with, for the log; empty for a LoRA of TEASR's own."""
        theirs, ours = asdict(self.lora.recipe), asdict(self.recipe)
        return ", ".join(f"{name} {theirs[name]} becomes {ours[name]}" for name in SCHEME if theirs[name] != ours[name])

    def adapter(self, architecture: QwenArchitecture, config: AdapterConfig) -> BranchLora:
        """The float32 adapter with the file's values, its parameters in the order of `new_adapter`."""
        scale, tensors = lora_scale(config), {}
        for path in target_paths(architecture.num_layers, config.targets):
            tensors[f"{path}.lora_A.weight"] = self.lora.tensors[f"{path}.lora_A.weight"].float()
            tensors[f"{path}.lora_B.weight"] = self.lora.tensors[f"{path}.lora_B.weight"].float() / scale
        with torch.random.fork_rng(devices=[]):
            return BranchLora.from_tensors(tensors)  # draws before it loads


def read_start(config: DistillConfig) -> Start:
    """Read the file of `adapter.start` and compare it with the config and with the headers of the base.

    Raises ModelFileError (LoraFileError) for a file that cannot be read or was made for another base, ConfigError for
    another rank or other targets than the run's, and where neither file nor config has a prompt that the base needs.
    """
    name = config.adapter.start
    path = base_file.ASSETS / base_file.LORA_NAME if name == BUILTIN else Path(name)
    if path.is_dir():
        raise ConfigError(
            f"adapter.start {name} is a folder: expected a TEASR LoRA file; of a run's folder "
            f"`python -m training export {name} my_lora.safetensors` writes one"
        )
    lora = read_lora(path)
    _check_settings(lora, config.adapter)
    _check_fit(lora, config)
    record = {
        "file": lora.name,
        "sha256": file_sha256(path),
        "steps": lora.step,
        "base": lora.base,
        "base_fingerprint": lora.base_fingerprint,
    }
    return Start(lora, record)


def _check_settings(lora: LoraFile, adapter: AdapterConfig) -> None:
    """ConfigError unless rank and targets of the run are the file's."""
    if lora.rank != adapter.rank:
        raise ConfigError(
            f"adapter.rank is {adapter.rank}, adapter.start {lora.name} has rank {lora.rank}: set adapter.rank to "
            f"{lora.rank}, or leave adapter.start empty"
        )
    if set(lora.targets) != set(adapter.targets):
        raise ConfigError(
            f"adapter.targets is {json.dumps(adapter.targets)}, adapter.start {lora.name} has others: set "
            f"adapter.targets={json.dumps(lora.targets)}, or leave adapter.start empty"
        )


def _check_fit(lora: LoraFile, config: DistillConfig) -> None:
    """Refuse a LoRA of another base, by what the base's headers and small tensors say."""
    adapter, base = config.adapter, config.base
    if base.path == BUILTIN or detect(Path(base.path), "transformer").kind != Kind.QWEN_TRANSFORMER:
        file = base_file.shipped_base() if base.path == BUILTIN else base_file.read_base(Path(base.path))
        check_base(lora, file.architecture, file.prediction, file.tensors, adapter.allow_other_base)
        return
    source = read_qwen(Path(base.path))
    if not source.is_fingerprint_fp8:  # such a base is refused when it is loaded
        tensors = source.fingerprint_tensors()
        check_base(lora, source.architecture, source.prediction, tensors, adapter.allow_other_base)
    if lora.prompt_embeds is None and not base.prompt:
        raise ConfigError(
            f"base.prompt is empty and adapter.start {lora.name} holds no prompt embedding: name the prompt file with "
            "which it was trained in base.prompt"
        )
