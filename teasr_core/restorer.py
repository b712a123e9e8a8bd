"""A model outside ComfyUI, ready to restore: what the command line loads once and uses for every image.

Two of them: the built-in model, and a Qwen-Image transformer with its VAE and a TEASR LoRA.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from .codec.protocol import Codec
from .codec.qwen_vae import DOWNSCALE
from .device import OFFLOADS, STORAGES, choose_dtype, dtype_name
from .errors import InputError, LoraFileError, ModelFileError
from .model.architecture import QWEN_IMAGE, QwenArchitecture
from .model.branch_lora import BranchLora
from .model.qwen_velocity import QwenVelocity
from .model.recipe import Recipe
from .report import SamplingRecord
from .restore import (
    Callbacks,
    Restored,
    RestoreRequest,
    latent_sampler,
    restore,
)
from .sampling.auto_steps import AutoSteps
from .tiling import AUTO_OVERLAP_PX, AUTO_TILE_PX, QWEN_OVERLAP_PX, QWEN_TILE_PX, tile_in_latent
from .weight_files import base_file
from .weight_files.diffusers_folder import component_folder
from .weight_files.lora_file import UNKNOWN_BASE, LoraFile, check_base, read_lora
from .weight_files.qwen_file import QwenSource, read_qwen
from .weight_files.qwen_storage import load_stored, offload
from .weight_files.qwen_vae_file import load_qwen_vae
from .weight_files.start_encoder import StartEncoder, read_start_encoder

CPU = torch.device("cpu")


class Base(Protocol):
    """What a `Restorer` must know of its model; a `builtin.BaseFile` is one."""

    @property
    def architecture(self) -> QwenArchitecture: ...

    @property
    def codec(self) -> Codec: ...


@dataclass(frozen=True)
class QwenBase:
    """A Qwen-Image on disk with its loaded VAE. A `Base`."""

    source: QwenSource
    codec: Codec

    @property
    def architecture(self) -> QwenArchitecture:
        return self.source.architecture


@dataclass
class Restorer:
    """A loaded base with its adapter. `restore` is deterministic: same image, options, plan and seed, same pixels.

    Attributes:
        dtype: what is computed in; `storage` how the weights are kept where that differs (fp8, nf4).
        device: where the velocity runs. `resident` is the context in which its weights are there.
        auto_px: (tile, overlap) in pixels that a 0 stands for.
        recipe: how the adapter is meant to be run.
    """

    base: Base
    velocity: QwenVelocity
    dtype: torch.dtype
    storage: str = ""
    device: torch.device = CPU
    resident: Callable[[], AbstractContextManager[None]] = nullcontext
    auto_px: tuple[int, int] = (AUTO_TILE_PX, AUTO_OVERLAP_PX)
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def pixel_multiple(self) -> int:
        return self.base.architecture.block_multiple * self.base.codec.downscale

    def tile(self, tile_px: int, overlap_px: int) -> tuple[int, int]:
        """(tile, overlap) in latent pixels; 0 is automatic. InputError for what does not fit the token grid."""
        patch_multiple = self.base.architecture.block_multiple
        return tile_in_latent(tile_px, overlap_px, self.base.codec.downscale, patch_multiple, self.auto_px)

    def restore(self, image: torch.Tensor, request: RestoreRequest, callbacks: Callbacks | None = None) -> Restored:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H', W') of the requested size, with the report of how it went.

        Raises InputError for an image, a tile or an overlap that does not fit, and OutputError for a bad result.
        """
        tile, overlap = self.tile(request.tile_px, request.overlap_px)
        patch_multiple = self.base.architecture.block_multiple
        codec = self.base.codec
        sampler = latent_sampler(
            self.velocity, request, patch_multiple, tile, overlap, callbacks, codec.downscale, self.recipe
        )

        def sample_on_device(
            z_lq: torch.Tensor, z_start: torch.Tensor | None = None, /
        ) -> tuple[torch.Tensor, SamplingRecord]:
            with self.resident():
                return sampler(z_lq.to(self.device), z_start)

        restored, report = restore(image, codec, sample_on_device, request.options, self.pixel_multiple, request.region)
        planned = 0 if isinstance(request.plan, AutoSteps) else request.plan.steps  # reported at strength 0 too
        dtype = self.storage or dtype_name(self.dtype)
        return Restored(restored, replace(report, steps=report.steps or planned, dtype=dtype))


def load_restorer(
    dtype: str = "auto",
    lora_path: Path | None = None,
    lora_strength: float = 1.0,
    allow_other_base: bool = False,
    device: torch.device = CPU,
    base_path: Path | None = None,
) -> Restorer:
    """The built-in model with the shipped adapter, or with the one at `lora_path` in its place.

    base_path: another base file in place of the shipped one; the shipped adapter does not belong to it.
    """
    base = base_file.shipped_base() if base_path is None else base_file.read_base(base_path)
    lora = None
    if lora_path is not None:
        lora = read_lora(lora_path)
        check_base(lora, base.architecture, base.prediction, base.tensors, allow_other_base)
    elif base_path is None:
        lora = base_file.shipped_lora(base)
    chosen = choose_dtype(dtype, device)
    velocity = base_file.build_velocity(base, lora, lora_strength, chosen)
    torch.nn.Module.to(velocity.transformer, device)
    if velocity.lora is not None:
        velocity.lora.to(device)
    return Restorer(base, velocity, chosen, device=device, recipe=velocity.recipe)


def load_qwen_restorer(
    model: Path,
    lora: Path,
    vae: Path | None = None,
    dtype: str = "auto",
    device: torch.device = CPU,
    offload_mode: str = "none",
    lora_strength: float = 1.0,
    allow_other_base: bool = False,
) -> Restorer:
    """A Qwen-Image transformer with its VAE and a TEASR LoRA.

    Args:
        model: diffusers folder (whole or its transformer), single safetensors file or GGUF. vae: a folder or a
            safetensors file of the VAE; None takes the one in the model's own folder.
        lora: made for this base, with the prompt embedding to use. The second encoder that it may name is looked for
            beside it, and then beside the VAE.
        dtype: auto, fp32, bf16 (computed and stored), fp8, nf4 (stored); auto keeps block weights as the file packs
            them and unpacks each layer at use. offload_mode: none, model, sequential.
    Everything is checked before the transformer's weights are read. ModelFileError or InputError, one line.
    """
    if offload_mode not in OFFLOADS:
        raise InputError(f"offload is '{offload_mode}': expected one of {', '.join(OFFLOADS)}")
    storage = dtype if dtype in STORAGES else ""
    if storage == "nf4" and offload_mode == "sequential":
        raise InputError("offload sequential cannot move 4-bit blocks: choose offload model, or dtype fp8")
    source = read_qwen(model)
    adapter = _checked_lora(lora, source, allow_other_base)
    compute = choose_dtype("auto" if storage else dtype, device)
    vae_path, recipe = _vae_path(model, vae), adapter.recipe
    encoder = _start_encoder(adapter, (lora.parent, vae_path if vae_path.is_dir() else vae_path.parent))
    auto_px = recipe.tiles_px((QWEN_TILE_PX, QWEN_OVERLAP_PX))
    codec = load_qwen_vae(vae_path, compute, device, *auto_px, recipe.border(*auto_px), encoder)
    _check_channels(source, codec.channels, vae or model)
    kept = "file" if dtype == "auto" else storage
    transformer = load_stored(source, kept, compute, device if offload_mode == "none" else CPU)
    branch = BranchLora.from_tensors(adapter.tensors, dtype=compute, device=device).requires_grad_(False)
    assert adapter.prompt_embeds is not None  # checked
    velocity = QwenVelocity(transformer, adapter.prompt_embeds, source.prediction, branch, lora_strength, recipe=recipe)
    return Restorer(
        QwenBase(source, codec),
        velocity,
        compute,
        storage=storage,
        device=device,
        resident=offload(transformer, offload_mode, storage, device),
        auto_px=auto_px,
        recipe=recipe,
    )


def qwen_tile(tile_px: int, overlap_px: int) -> tuple[int, int]:
    """What `Restorer.tile` will say of a Qwen-Image, before one is loaded: its tokens are 16 px, an even grid 32."""
    return tile_in_latent(tile_px, overlap_px, DOWNSCALE, QWEN_IMAGE.block_multiple, (QWEN_TILE_PX, QWEN_OVERLAP_PX))


def _checked_lora(path: Path, source: QwenSource, allow_other_base: bool) -> LoraFile:
    lora = read_lora(path)
    if source.is_fingerprint_fp8 and not allow_other_base and lora.base_fingerprint != UNKNOWN_BASE:
        raise LoraFileError(
            f"{source.kind.path.name} keeps even its small tensors in fp8, so that {lora.name} cannot tell its base: "
            "give the bf16 or a scaled fp8 file, or set allow_other_base"
        )
    check_base(lora, source.architecture, source.prediction, source.fingerprint_tensors(), allow_other_base)
    if lora.prompt_embeds is None:
        raise LoraFileError(
            f"{lora.name} holds no prompt embedding, and outside ComfyUI nothing else can give one: use a LoRA "
            "written by `training export`, or by `training import-odtsr --prompt`"
        )
    return lora


def _start_encoder(lora: LoraFile, folders: tuple[Path, ...]) -> StartEncoder | None:
    """The second encoder that the LoRA names, or None where it names none."""
    name = lora.recipe.start_encoder
    if not name:
        return None
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise ModelFileError(
            f"{lora.name} starts from the latent of a second VAE encoder, and {name} is neither beside it nor beside "
            "the VAE: put the file there that `training import-odtsr` wrote together with the LoRA"
        )
    return read_start_encoder(path, lora.recipe)


def _vae_path(model: Path, vae: Path | None) -> Path:
    if vae is not None:
        return vae
    if model.is_dir() and component_folder(model, "vae") == model / "vae":
        return model
    raise InputError(f"{model.name} comes without a VAE: give --vae, for example qwen_image_vae.safetensors")


def _check_channels(source: QwenSource, channels: int, vae: Path) -> None:
    wanted = source.architecture.latent_channels
    if channels != wanted:
        raise InputError(
            f"{vae.name} has {channels} latent channels, the transformer {wanted}: give the VAE it goes with"
        )
