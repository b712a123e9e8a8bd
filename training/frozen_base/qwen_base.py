"""A Qwen-Image on disk as a distillation's base: packed tensor by tensor, never whole in memory in bf16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from teasr_core.codec.qwen_vae import QwenVaeCodec
from teasr_core.errors import ConfigError, InputError, ModelFileError
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.weight_files.diffusers_folder import component_folder
from teasr_core.weight_files.lora_file import fingerprint
from teasr_core.weight_files.packed import PackedTensor
from teasr_core.weight_files.qwen_file import QwenSource, load_qwen_transformer, read_qwen
from teasr_core.weight_files.qwen_vae_file import load_qwen_vae

from ..config.distill import DistillConfig
from ..memory.apply import prepare
from ..memory.costs import FileWeights
from ..memory.groups import BLOCK_GROUPS, BLOCKS, GroupPlan, group_of
from ..memory.planner import MemoryPlan
from ..memory.quantise import packed_bytes
from ..memory.quantised_linear import FrozenLinear, replace_linears
from ..memory.vae_decode import decode_checkpointed
from .prompt_file import read_prompt
from .settings import DTYPES, TrainingBase, base_dtype, memory_plan

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel


class CheckpointedVaeCodec(QwenVaeCodec):
    """The VAE with a decode whose backward holds one up-block's activations at a time."""

    def _decode_tile(self, latent: torch.Tensor) -> torch.Tensor:
        return decode_checkpointed(self.vae, latent).float()  # (B, 3, 8h, 8w)


def load_qwen_base(
    path: Path, config: DistillConfig, device: torch.device, note: Callable[[str], None],
    prompt: torch.Tensor | None = None,
) -> TrainingBase:  # fmt: skip
    """From a diffusers folder or a ComfyUI single file, with `base.vae` and, unless `prompt` is given, `base.prompt`.

    Everything is checked and the plan's table shown before the weights are read. Errors as `load_training_base`.
    """
    check_settings(path, config, prompt is not None)
    source = read_qwen(path)
    check_fingerprint(source)
    if prompt is None:
        prompt = read_prompt(Path(config.base.prompt))  # (T, text_width)
        if prompt.shape[1] != source.architecture.text_width:
            raise ModelFileError(
                f"{Path(config.base.prompt).name} holds embeddings {prompt.shape[1]} wide, the transformer takes "
                f"{source.architecture.text_width}: make the prompt file with this model's text encoder"
            )
    dtype = base_dtype(config, "bf16")
    found = qwen_plan(source, config, prompt.shape[0])
    note(found.format_table())
    vae = load_qwen_vae(Path(config.base.vae or path), DTYPES[found.decode_dtype], device).vae
    codec = CheckpointedVaeCodec(vae)
    if codec.channels != source.architecture.latent_channels:
        raise InputError(
            f"the VAE has {codec.channels} latent channels, the transformer {source.architecture.latent_channels}: "
            "set base.vae to the one it goes with"
        )
    transformer = load_packed(source, dtype, device, found.groups)
    return TrainingBase(
        velocity=QwenVelocity(transformer, prompt.to(device), source.prediction),
        codec=codec,
        memory=prepare(transformer, found, device),
        architecture=source.architecture,
        base_id=source.kind.model,
        base_fingerprint=fingerprint(source.fingerprint_tensors()),
        storage=source.kind.storage if any(plan.precision == "file" for plan in found.groups.values()) else "",
    )


def check_fingerprint(source: QwenSource) -> None:
    """ModelFileError for a file whose small tensors, by which a LoRA knows its base, were rounded too."""
    if source.is_fingerprint_fp8:
        raise ModelFileError(
            f"{source.kind.path.name} keeps even its small tensors in fp8: a LoRA could not tell its base by them, "
            "give the bf16 file; fp8 is made while it is loaded ([memory])"
        )


def qwen_plan(source: QwenSource, config: DistillConfig, prompt_tokens: int) -> MemoryPlan:
    """How a run holds the weights of this file; errors as `memory_plan`."""
    return memory_plan(config, source.architecture, prompt_tokens, file_weights(source))


def load_packed(
    source: QwenSource, dtype: torch.dtype, device: torch.device, groups: Mapping[str, GroupPlan]
) -> QwenImageTransformer2DModel:
    """The transformer with every weight packed on the device as it is read, and sent back where it does not live.

    Weights of the precision "file" are taken over as the file packs them.
    """
    frozen: dict[str, FrozenLinear] = {}
    takers: dict[str, Callable[[PackedTensor], None]] = {}

    def replace(model: nn.Module) -> None:
        replace_linears(model, groups)
        frozen.update({f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, FrozenLinear)})
        takers.update({name: partial(take, name) for name in source.packings if is_kept(name)})

    def is_kept(name: str) -> bool:
        return name in frozen and frozen[name].precision == "file"

    def take(name: str, packed: PackedTensor) -> None:
        frozen[name].store_packed(packed)
        send_home(name)

    def send_home(name: str) -> None:
        if groups[group_of(name)].placement != "resident":
            frozen[name].move(torch.device("cpu"))

    def pack(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        layer = frozen.get(name)
        if layer is None:
            return tensor
        layer.store(tensor)
        send_home(name)
        return None

    return load_qwen_transformer(source, dtype, device, place=pack, prepare=replace, takers=takers)


def file_weights(source: QwenSource) -> FileWeights | None:
    """Bytes of the block weights as the file packs them, for the planner; None where it packs none."""
    blocks: dict[str, list[int]] = {group: [0] * source.architecture.num_layers for group in BLOCK_GROUPS}
    for name, shape in source.shapes.items():
        group = group_of(name) if name.startswith(BLOCKS) else "rest"
        if group in blocks and name.endswith(".weight") and len(shape) == 2:
            packing = source.packings.get(name)
            size = packed_bytes((shape[0], shape[1]), "bf16") if packing is None else packing.num_bytes
            blocks[group][int(name.split(".")[1])] += size
    if not any(name.startswith(BLOCKS) for name in source.packings):
        return None
    return FileWeights({group: tuple(sizes) for group, sizes in blocks.items()}, source.stays_packed)


def check_settings(path: Path, config: DistillConfig, has_prompt: bool = False) -> None:
    """ConfigError for a setting that does not go with the Qwen-Image at `path`.

    has_prompt: the prompt's embedding comes from elsewhere (`adapter.start`), so `base.prompt` may be empty.
    """
    if not config.ablation.dtc:
        raise ConfigError("ablation.dtc is false: Qwen-Image's modulation is split by branch, only a TEASR base is not")
    if config.adapter.trainable != "lora":
        raise ConfigError('adapter.trainable is "all": only a small TEASR base is trained whole, set it to "lora"')
    if config.loss.loss_space != "latent":
        raise ConfigError(f"loss.loss_space is '{config.loss.loss_space}': Qwen-Image's latents have 'latent' alone")
    if config.train.crop_px % 32:
        raise ConfigError(f"train.crop_px is {config.train.crop_px}: Qwen-Image takes multiples of 32")
    if not config.base.prompt and not has_prompt:
        raise ConfigError(
            "base.prompt is empty: Qwen-Image needs the file of the empty prompt's embedding, made once by "
            "`python -m training cache-prompt --text-encoder DIR prompt.safetensors`"
        )
    has_vae = path.is_dir() and component_folder(path, "vae") == path / "vae"
    if not config.base.vae and not has_vae:
        raise ConfigError(f"base.vae is empty and {path.name} comes without one: name qwen_image_vae.safetensors")
