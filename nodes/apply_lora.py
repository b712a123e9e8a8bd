"""TEASRApplyLoRA puts the dual-branch hooks and a TEASR LoRA on a Qwen-Image MODEL, or on the built-in one."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..teasr_core.errors import LoraFileError
from ..teasr_core.weight_files.lora_file import UNKNOWN_BASE, LoraFile, check_base, fingerprint, read_lora
from .host.sockets import check_model
from .inputs import CATEGORY, lora_strength_input
from .model.builtin_model import base_traits
from .model.conditioning import prompt_conditioning
from .model.dual_branch import DualBranch, attach
from .model.lora_patcher import adapter_patcher
from .model.qwen_probe import fingerprint_tensors, is_2511, is_cast_to_fp8, probe_architecture
from .model.start_vae import start_encoder_path


class TEASRApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRApplyLoRA",
            display_name="TEASR Apply LoRA",
            category=CATEGORY,
            description="Turns a Qwen-Image model into an any-step restorer. It replaces a TEASR LoRA on it.",
            search_aliases=["lora loader", "qwen image upscale", "teasr"],
            inputs=[
                io.Model.Input("model", tooltip="Wire Qwen-Image (bf16, fp8 or GGUF) or TEASR's built-in model here."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="Choose a TEASR LoRA of ComfyUI's `loras` folder. Ordinary LoRAs belong in LoraLoader.",
                ),
                lora_strength_input("1 is what the LoRA was trained for; 0 skips it and keeps the two-branch model."),
                io.Boolean.Input(
                    "allow_other_base",
                    default=False,
                    advanced=True,
                    tooltip="On accepts a model other than the one the LoRA was trained on, such as a fine-tune of it.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="This is the prompt embedding the LoRA was trained with."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_inputs: object) -> str:
        """A file that was written again under the same name is read again."""
        stat = Path(folder_paths.get_full_path_or_raise("loras", lora_name)).stat()
        return f"{lora_name} {stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    def execute(
        cls, model: ModelPatcher, lora_name: str, lora_strength: float = 1.0, allow_other_base: bool = False
    ) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
        lora = read_lora(path)
        traits = base_traits(check_model(model))
        architecture = probe_architecture(model)
        tensors = fingerprint_tensors(model)
        if is_cast_to_fp8(tensors) and not allow_other_base and lora.base_fingerprint != UNKNOWN_BASE:
            raise LoraFileError(
                f"this MODEL was rounded to fp8 while loading, so that {lora.name} cannot tell its base: choose the "
                "loader's weight_dtype default (with an fp8 file if need be), or set allow_other_base"
            )
        if is_2511(model) and not allow_other_base and fingerprint(tensors) != lora.base_fingerprint:
            raise LoraFileError(
                f"this MODEL is Qwen-Image-Edit-2511, {lora.name} was trained on '{lora.base}': load that base, or set "
                "allow_other_base to try it all the same"
            )
        check_base(lora, architecture, traits.prediction, tensors, allow_other_base)
        encoder = start_encoder_path(lora, path)
        adapter = adapter_patcher(lora, path) if lora_strength != 0 else None
        branch = DualBranch(traits.prediction, traits.use_dtc, lora_strength, adapter is not None, lora.recipe, encoder)
        return io.NodeOutput(attach(model, branch, adapter), conditioning_output(lora))


def conditioning_output(lora: LoraFile) -> object:
    """The file's prompt embedding, or a blocker, whose sentence ComfyUI shows only if the output is wired."""
    if lora.prompt_embeds is None:
        return ExecutionBlocker(
            f"{lora.name} holds no prompt embedding: wire a CLIPTextEncode with an empty prompt in place of "
            "TEASRApplyLoRA's conditioning"
        )
    return prompt_conditioning(lora.prompt_embeds)
