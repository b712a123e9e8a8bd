"""TEASRLoadBuiltin gives the model that comes with the pack."""

from __future__ import annotations

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..teasr_core.device import DTYPES
from ..teasr_core.weight_files import base_file
from ..teasr_core.weight_files.lora_file import LoraFile
from .inputs import CATEGORY, lora_strength_input
from .model.builtin_model import builtin_patcher
from .model.conditioning import prompt_conditioning
from .model.dct_vae import DctVAE
from .model.dual_branch import TILES, DualBranch, attach
from .model.lora_patcher import adapter_patcher
from .run.tile_plan import stock_tiles


class TEASRLoadBuiltin(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRLoadBuiltin",
            display_name="TEASR Load Built-in Model",
            category=CATEGORY,
            description="Loads the small restoration model that comes with TEASR; nothing is downloaded.",
            search_aliases=["upscale model", "super resolution", "restore", "teasr"],
            inputs=[
                lora_strength_input(
                    "This much of the shipped LoRA is applied; 1 is what it was trained for, 0 is the base alone."
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *DTYPES],
                    default="auto",
                    tooltip="This is the number format. auto takes bf16, but on a CPU only if a short timing says that "
                    "it is faster.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Vae.Output(display_name="vae"),
                io.Conditioning.Output(display_name="conditioning"),
            ],
        )

    @classmethod
    def execute(cls, lora_strength: float = 1.0, dtype: str = "auto") -> io.NodeOutput:
        base = base_file.shipped_base()
        lora: LoraFile | None = base_file.shipped_lora(base)
        adapter = None
        if lora is not None and lora_strength != 0:
            adapter = adapter_patcher(lora, base_file.ASSETS / base_file.LORA_NAME)
        branch = DualBranch(base.prediction, base.use_dtc, lora_strength, use_adapter=adapter is not None)
        model = attach(builtin_patcher(base, dtype), branch, adapter)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, TILES, stock_tiles)
        prompt = base.prompt_embeds if lora is None or lora.prompt_embeds is None else lora.prompt_embeds
        return io.NodeOutput(model, DctVAE(base.codec), prompt_conditioning(prompt))
