"""ODTSR's own code at tiny size: its generator, pipeline, transformer, VAE, scheduler, LoRA layer and saving code.

The code is not part of this repository. `ODTSR_PATH` names a checkout of RedMediaTech/ODTSR, and einops must be
installed; tests that need it are skipped otherwise. Packages that only its training or its other models need are
replaced by empty ones, so that they need not be installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from helpers.tiny import odtsr as tiny

AXES = (4, 14, 14)
WIDTH = tiny.HEADS * tiny.HEAD_DIM
# What the parts that are used here import but never call.
EMPTY = {
    "modelscope": ("snapshot_download",),
    "basicsr": (),
    "pillow_heif": (),
    "diffsynth.extensions": (),
    "diffsynth.extensions.realesrgan": (),
    "diffsynth.extensions.realesrgan.dataset": ("PairedSROnlineTxtDataset",),
    "diffsynth.trainers": (),
    "diffsynth.trainers.utils": (
        "DiffusionTrainingModule",
        "ImageDataset",
        "ModelLogger",
        "launch_training_task",
        "qwen_image_parser",
    ),
    "diffsynth.lora": ("GeneralLoRALoader",),
}


def odtsr_path() -> Path:
    """The checkout of ODTSR; skips the test where there is none."""
    path = Path(os.environ.get("ODTSR_PATH", ""))
    if not os.environ.get("ODTSR_PATH") or not (path / "examples" / "qwen_image" / "generator.py").exists():
        pytest.skip("no checkout of RedMediaTech/ODTSR: set ODTSR_PATH to one")
    for package in ("einops", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"ODTSR's code needs {package}: pip install {package}")
    return path


@functools.cache
def load_code() -> SimpleNamespace:
    """Their modules: `generator`, `pipeline`, `dit` and `vae`."""
    path = odtsr_path()
    for package in ("diffsynth", "diffsynth.models", "diffsynth.pipelines"):
        _shell(package, path / package.replace(".", "/"))
    # The package's own __init__ would import every model of DiffSynth.
    sys.modules["diffsynth.models"].__dict__.update(ModelManager=None, load_state_dict=None)
    empty = [name for name in EMPTY if not name.startswith("diffsynth") and importlib.util.find_spec(name) is None]
    for name, attributes in EMPTY.items():
        if name.startswith("diffsynth") or name in empty:
            module = _shell(name, path / name.replace(".", "/"))
            module.__dict__.update(dict.fromkeys(attributes, type("Unused", (torch.nn.Module,), {})))
    folder = str(path / "examples" / "qwen_image")
    sys.path[:0] = [entry for entry in (str(path), folder) if entry not in sys.path]
    code = SimpleNamespace(
        generator=importlib.import_module("generator"),
        pipeline=importlib.import_module("diffsynth.pipelines.qwen_image"),
        dit=importlib.import_module("diffsynth.models.qwen_image_dit"),
        vae=importlib.import_module("diffsynth.models.qwen_image_vae"),
    )
    for name in empty:
        del sys.modules[name]  # others must not find an empty package
    return code


def _shell(name: str, folder: Path) -> ModuleType:
    if name not in sys.modules:
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    return sys.modules[name]


class TheirGenerator:
    """Their `Generator` with the weights of `helpers.tiny.odtsr`, on the CPU."""

    def __init__(self) -> None:
        code = load_code()
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = self._generator(code)

    def _generator(self, code: SimpleNamespace) -> Any:
        """Their `Generator.__init__`, but for the loading of published weights."""
        made = code.generator.Generator.__new__(code.generator.Generator)
        code.generator.BaseModelForT2ILoRA.__init__(made)
        made.pipe = code.pipeline.QwenImagePipeline(device="cpu", torch_dtype=torch.float32)
        made.pipe.dit, made.pipe.vae = _tiny_dit(code), code.vae.QwenImageVAE(tiny.VAE_WIDTH)
        made.pipe.dit.load_state_dict(tiny.base())
        made.pipe.vae.load_state_dict(tiny.vae())
        made.pipe.scheduler.set_timesteps(1000, training=True)
        made.pipe.freeze_except([])
        made.pipe.new_vae = code.generator.deepcopy(made.pipe.vae)
        made.unfrozen(made.pipe.new_vae.encoder, type(made.pipe.new_vae.encoder.conv_in))
        made.add_custom_dual_lora(made.pipe.dit, lora_rank=tiny.RANK)
        missing, unexpected = made.load_state_dict(tiny.checkpoint(), strict=False)
        assert not unexpected and not any("lora_" in name for name in missing)
        made.device = "cpu"
        return made

    def save(self, folder: Path) -> Path:
        """The checkpoint that their own saving code writes."""
        self.model.save_ckpt(str(folder), iter=1, tag="gen")
        return folder / "net_gen_iter_1.pth"

    def infer(
        self, picture: torch.Tensor, fidelity: float, tile_px: int = tiny.TILE_PX, overlap_px: int = tiny.OVERLAP_PX
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(latent, picture) of their `infer` on (1, 3, H, W) of whole 8-bit levels in [0, 1].

        The latent (1, 16, h, w) is normalised; the picture (1, 3, H, W) is taken before it is cut to 8 bits. Everything
        runs in tiles of tile_px that overlap by overlap_px, as in their scripts. The LoRA, which they keep in bf16, and
        the base, in fp8, compute in float32.
        """
        pipe, latents, pictures = self.model.pipe, [], []
        model = self.model.float()
        pipe.units[-1] = _FixedPrompt(tiny.prompt())
        decode = pipe.vae.decode

        def keep_latent(latent: torch.Tensor, **options: Any) -> torch.Tensor:
            # Tiles call it again for each tile; the first call has the whole latent.
            latents.append(latent)
            return decode(latent, **options)

        def keep_picture(decoded: torch.Tensor) -> torch.Tensor:
            pictures.append((decoded + 1) / 2)
            return decoded

        levels = (picture[0].movedim(0, -1) * 255).round().to(torch.uint8)
        pipe.vae.decode, pipe.vae_output_to_image = keep_latent, keep_picture
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                model.infer(
                    "", "", Image.fromarray(levels.numpy()), cfg_scale=1.0, fidelity=fidelity, tiled=True,
                    tile_size=tile_px // 8, tile_stride=(tile_px - overlap_px) // 8,
                )  # fmt: skip
        finally:
            del pipe.vae.decode, pipe.vae_output_to_image
        return latents[0], pictures[0]


class _FixedPrompt:
    """A unit of their pipeline in place of the text encoder."""

    def __init__(self, prompt: torch.Tensor) -> None:
        self.embedding = {"prompt_emb": prompt[None], "prompt_emb_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        self.take_over, self.seperate_cfg = False, True
        self.input_params, self.onload_model_names = None, None
        self.input_params_posi, self.input_params_nega = {"prompt": "prompt"}, {"prompt": "negative_prompt"}

    def process(self, _pipe: Any, prompt: str) -> dict[str, torch.Tensor]:
        return self.embedding


def _tiny_dit(code: SimpleNamespace) -> Any:
    """Their transformer, whose class has the published widths written in, from the same parts at a small width."""
    dit, module = code.dit.QwenImageDiT.__new__(code.dit.QwenImageDiT), code.dit
    torch.nn.Module.__init__(dit)
    dit.pos_embed = module.QwenEmbedRope(theta=10000, axes_dim=list(AXES), scale_rope=True)
    dit.time_text_embed = module.TimestepEmbeddings(
        256, WIDTH, diffusers_compatible_format=True, scale=1000, align_dtype_to_timestep=True
    )
    dit.txt_norm = module.RMSNorm(tiny.TEXT_WIDTH, eps=1e-6)
    dit.img_in, dit.txt_in = torch.nn.Linear(64, WIDTH), torch.nn.Linear(tiny.TEXT_WIDTH, WIDTH)
    dit.transformer_blocks = torch.nn.ModuleList(
        module.QwenImageTransformerBlock(dim=WIDTH, num_attention_heads=tiny.HEADS, attention_head_dim=tiny.HEAD_DIM)
        for _ in range(tiny.LAYERS)
    )
    dit.norm_out, dit.proj_out = module.AdaLayerNorm(WIDTH, single=True), torch.nn.Linear(WIDTH, 64)
    return dit
