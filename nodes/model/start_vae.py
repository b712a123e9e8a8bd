"""The second VAE encoder of a LoRA in ComfyUI: where its file lies, and a VAE with it in place of its own."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import folder_paths

from ...teasr_core.errors import InputError, ModelFileError
from ...teasr_core.weight_files.lora_file import LoraFile
from ...teasr_core.weight_files.start_encoder import merged, read_start_encoder


def start_encoder_path(lora: LoraFile, lora_path: Path) -> Path | None:
    """The file of the second encoder that the LoRA names, checked, or None where it names none.

    It is looked for in `models/vae` and its folders, then beside the LoRA. ModelFileError where it is missing, or is
    not the one that the LoRA was trained with.
    """
    name = lora.recipe.start_encoder
    if not name:
        return None
    listed = [
        entry for entry in folder_paths.get_filename_list("vae") if PurePath(entry.replace("\\", "/")).name == name
    ]
    places = [Path(folder_paths.get_full_path_or_raise("vae", entry)) for entry in listed] + [lora_path.parent / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ModelFileError(
            f"{lora.name} starts from the latent of a second VAE encoder, and {name} is not in ComfyUI's models/vae: "
            "put the file there that `python -m training import-odtsr` wrote together with the LoRA"
        )
    read_start_encoder(path, lora.recipe)
    return path


def start_vae(vae: Any, path: Path) -> Any:
    """A VAE of ComfyUI's with the encoder of the file at `path`, and with everything else from `vae`.

    InputError for another kind of VAE, ModelFileError where the encoder does not fit it.
    """
    from comfy.sd import VAE

    if not isinstance(vae, VAE):
        raise InputError(
            f"the LoRA needs a second encoder of Qwen-Image's VAE, and the VAE that is wired is a "
            f"{type(vae).__name__}: wire VAELoader's with qwen_image_vae.safetensors"
        )
    tensors = merged(read_start_encoder(path), vae.get_sd(), "the VAE that is wired")
    return VAE(sd=tensors, device=vae.device, dtype=vae.vae_dtype)
