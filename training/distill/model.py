"""What `distill` trains: the branch LoRA of a frozen base or, for a small base, all of its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teasr_core.codec.dct import DctCodec
from teasr_core.codec.protocol import Codec
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.model.recipe import Recipe
from teasr_core.weight_files.base_file import codec_to_json, encoder_tensors

from ..config.distill import DistillConfig
from ..frozen_base.load import load_training_base
from ..frozen_base.new_adapter import lora_scale, new_adapter
from ..frozen_base.settings import DTYPES
from ..memory.apply import PreparedMemory
from ..run.checkpoint import (
    FROZEN_PREFIX,
    LORA_PREFIX,
    MODEL_PREFIX,
    PROMPT_NAME,
    list_checkpoints,
    read_state,
    read_tensor,
)
from .start import KEPT, read_start


class DistillModel:
    """Velocity, codec and the trainable parameters by name, all on the device; `memory` holds the frozen ones.

    prefix: of the parameters in a checkpoint, LORA_PREFIX or, with `trainable = "all"`, MODEL_PREFIX.
    start: the record of the LoRA that a new run begins with (`start.Start`); None for a new adapter, and for a run with
        a checkpoint, whose state holds the record.
    """

    velocity: QwenVelocity
    codec: Codec
    memory: PreparedMemory
    parameters: dict[str, nn.Parameter]
    start: Mapping[str, Any] | None

    def __init__(self, config: DistillConfig, device: torch.device, note: Callable[[str], None] = print) -> None:
        start, prompt, recipe = None, None, Recipe()
        if config.adapter.start:
            checkpoints = list_checkpoints(Path(config.run.output_dir))
            if checkpoints:
                prompt = read_tensor(checkpoints[-1], PROMPT_NAME)
                recipe = Recipe(**read_state(checkpoints[-1]).get("lora", {}).get("recipe", {}))
            else:
                start = read_start(config)
                prompt, recipe = start.lora.prompt_embeds, start.recipe
        self.start = None if start is None else start.record
        base = load_training_base(config, device, note, prompt)
        self.base, self.config = base, config
        self.velocity, self.codec, self.memory = base.velocity, base.codec, base.memory
        self.velocity.recipe = recipe
        transformer = self.velocity.transformer
        if config.adapter.trainable == "lora":
            self.prefix = LORA_PREFIX
            if start is None:
                lora = new_adapter(transformer, base.architecture, config.adapter, config.run.seed)
            else:
                lora = start.adapter(base.architecture, config.adapter)
                note(f"starting from {start.lora.name}: rank {start.lora.rank}, {start.lora.step} steps")
                if start.changed:
                    note(f"{start.lora.name} is of another scheme: {start.changed}")
            lora = lora.to(device, DTYPES[config.adapter.dtype])
            self.velocity.lora, self.velocity.lora_strength = lora, lora_scale(config.adapter)
            self.parameters = dict(lora.named_parameters())
        else:
            self.prefix = MODEL_PREFIX
            nn.Module.to(transformer, torch.float32).requires_grad_(True)
            self.velocity.prompt_embeds = nn.Parameter(self.velocity.prompt_embeds.float())
            self.parameters = {f"transformer.{n}": p for n, p in transformer.named_parameters()}
            self.parameters[PROMPT_NAME] = self.velocity.prompt_embeds

    @property
    def mixes_dtypes(self) -> bool:
        """Whether the adapter's dtype differs from that of the base, as far as the base is not quantised."""
        base_dtype = next(self.velocity.transformer.parameters()).dtype
        return any(parameter.dtype != base_dtype for parameter in self.parameters.values())

    def frozen_tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds beside the trained weights: all that an exported file needs."""
        if self.prefix == LORA_PREFIX:
            return {PROMPT_NAME: self.velocity.prompt_embeds}
        assert isinstance(self.codec, DctCodec)
        return {f"{FROZEN_PREFIX}{key}": value for key, value in encoder_tensors(self.codec).items()}

    def description(self) -> dict[str, Any]:
        """What an exported file must know, as JSON values; a resumed run must have the same."""
        adapter, base = self.config.adapter, self.base
        if self.prefix == MODEL_PREFIX:
            assert isinstance(self.codec, DctCodec)
            encoder = self.codec.condition_encoder
            return {
                "architecture": base.architecture.to_json(),
                "prediction": self.velocity.prediction,
                "use_dtc": self.velocity.use_dtc,
                "codec": codec_to_json(self.codec),
                "base_fingerprint": base.base_fingerprint,
                "condition_encoder": None if encoder is None else json.dumps(encoder.config()),
            }
        recipe = self.velocity.recipe
        kept = {} if recipe == Recipe() else {"recipe": {name: getattr(recipe, name) for name in KEPT}}
        return {
            "lora": {
                **kept,
                "prediction": self.velocity.prediction,
                "rank": adapter.rank,
                "alpha": adapter.alpha,
                "targets": list(adapter.targets),
                "base": base.base_id,
                "base_fingerprint": base.base_fingerprint,
            },
            "precision": {group: plan.precision for group, plan in base.memory.groups.items()},
            **({"storage": base.storage} if base.storage else {}),
        }
