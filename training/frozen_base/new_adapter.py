"""The trainable branch LoRA. peft initialises the pairs, so its init options mean what its users know; what it does not
have is a LoRA on some of a layer's tokens, which is `teasr_core.model.branch_lora`'s."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BranchLora, target_paths

from ..config.distill import AdapterConfig

_PEFT_INIT: dict[str, bool | str] = {"kaiming": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}


def new_adapter(transformer: nn.Module, architecture: QwenArchitecture, config: AdapterConfig, seed: int) -> BranchLora:
    """A float32 adapter for the transformer's targets: A random, B zero, so that step 0 equals the base.

    With "orthogonal" both are random and their product is zero up to rounding. The global random state is left as it
    was. B carries no alpha / rank: training multiplies by it (`lora_scale`).
    """
    tensors: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path in target_paths(architecture.num_layers, config.targets):
            layer = transformer.get_submodule(path)  # quantised layers are no nn.Linear but know their sizes
            for name, weight in _pair(int(layer.in_features), int(layer.out_features), config).items():  # type: ignore[arg-type]
                tensors[f"{path}.{name}.weight"] = weight
        return BranchLora.from_tensors(tensors)  # draws too, before it loads


def lora_scale(config: AdapterConfig) -> float:
    """alpha / rank: what B(A(x)) is multiplied by; exported files have it folded into B."""
    return config.alpha / config.rank


def _pair(in_features: int, out_features: int, config: AdapterConfig) -> Mapping[str, torch.Tensor]:
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    layer = nn.utils.skip_init(nn.Linear, in_features, out_features, bias=False)
    options = LoraConfig(r=config.rank, lora_alpha=1, init_lora_weights=_PEFT_INIT[config.init])  # type: ignore[arg-type]
    pair = Linear(layer, "teasr", options, r=config.rank, lora_alpha=1)
    weights = dict(pair.named_parameters())
    return {name: weights[f"{name}.teasr.weight"].detach() for name in ("lora_A", "lora_B")}
