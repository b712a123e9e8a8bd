"""Every node of the pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply_lora import TEASRApplyLoRA
from .color_fix import TEASRColorFix
from .compare_steps import TEASRCompareSteps
from .condition import TEASRCondition
from .load_builtin import TEASRLoadBuiltin
from .parts.auto_sampler import TEASRUpscaleAutoSampler
from .parts.compare_parts import TEASRCompareStepsColumn, TEASRCompareStepsGrid
from .parts.region_part import TEASRUpscaleRegion
from .parts.upscale_parts import TEASRUpscaleDecode, TEASRUpscaleInput, TEASRUpscaleOutput
from .sampler import TEASRSampler
from .step_selector import TEASRStepSelector
from .upscale import TEASRUpscale

NODES: list[type[io.ComfyNode]] = [
    TEASRUpscale,
    TEASRLoadBuiltin,
    TEASRApplyLoRA,
    TEASRCondition,
    TEASRStepSelector,
    TEASRSampler,
    TEASRCompareSteps,
    TEASRColorFix,
    TEASRUpscaleInput,
    TEASRUpscaleRegion,
    TEASRUpscaleAutoSampler,
    TEASRUpscaleDecode,
    TEASRUpscaleOutput,
    TEASRCompareStepsColumn,
    TEASRCompareStepsGrid,
]


class TeasrExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
