"""Every node of the pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply_lora import TEASRApplyLoRA
from .color_fix import TEASRColorFix
from .condition import TEASRCondition
from .load_builtin import TEASRLoadBuiltin
from .sampler import TEASRSampler
from .step_selector import TEASRStepSelector
from .upscale import TEASRUpscale
from .upscale_parts import TEASRUpscaleInput, TEASRUpscaleOutput

NODES: list[type[io.ComfyNode]] = [
    TEASRUpscale,
    TEASRLoadBuiltin,
    TEASRApplyLoRA,
    TEASRCondition,
    TEASRStepSelector,
    TEASRSampler,
    TEASRColorFix,
    TEASRUpscaleInput,
    TEASRUpscaleOutput,
]


class TeasrExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
