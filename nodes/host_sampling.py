"""Algorithm 1 in the host: its guider and its euler, our noise, tiles, one image at a time."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..teasr_core.sampler import initial_noise
from ..teasr_core.tiling import TilePlan
from .bridge import KEY, TILES, HostTiles
from .conditioning import Conditioning
from .host_tiles import tile_memory

# Classifier-free guidance where a `negative` is wired. TEASR is trained without (METHOD 1), so this is an experiment.
NEGATIVE_CFG = 2.5


class Progress:
    """One bar over images x steps x tiles, with the host's preview after each step (R24)."""

    def __init__(self, model: ModelPatcher, images: int, steps: int, tiles: int) -> None:
        self.steps, self.tiles = steps, tiles
        self.bar = comfy.utils.ProgressBar(images * steps * tiles)
        self.previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))
        self.first = 0  # units done before the current step

    def start_image(self, k: int) -> None:
        self.first = k * self.steps * self.tiles

    def on_tile(self, done: int, _count: int) -> None:
        """Before each tile. Guidance visits the tiles twice; the bar never goes back."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.first + done > self.bar.current:
            self.bar.update_absolute(self.first + done)

    def on_step(self, _step: int, x0: torch.Tensor, _x: torch.Tensor, _total: int) -> None:
        self.first += self.tiles
        preview = self.previewer.decode_latent_to_preview_image("JPEG", x0) if self.previewer else None
        self.bar.update_absolute(self.first, preview=preview)


def sample_image(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning | None,
    latent: torch.Tensor,
    noise_mask: torch.Tensor | None,
    sigmas: torch.Tensor,
    seed: int,
    plan: TilePlan,
    progress: Progress,
) -> torch.Tensor:
    """One latent (1, C, 1, h, w), as SamplerCustomAdvanced would with RandomNoise, euler and these sigmas."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive} | ({} if negative is None else {"negative": negative}))
    guider.set_cfg(1.0 if negative is None else NEGATIVE_CFG)
    if plan.count > 1:
        options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        options["transformer_options"][TILES] = HostTiles(plan, progress.on_tile)
        add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, tile_memory(plan), options, is_model_options=True)
        guider.model_options = options
    _, channels, _, height, width = latent.shape
    noise = initial_noise(seed, channels, height, width)[:, :, None]  # (1, C, 1, h, w)
    samples = guider.sample(
        noise,
        latent,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=noise_mask,
        callback=progress.on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return samples.to(comfy.model_management.intermediate_device(), torch.float32)
