"""Progress and preview in ComfyUI's own bar."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher


class Progress:
    """One bar over images x steps x tiles, with the host's preview after each step (R24).

    steps: of each image. seconds: spent in the sampler itself so far, without loading the model.
    """

    def __init__(self, model: ModelPatcher, steps: Sequence[int], tiles: int) -> None:
        self.steps, self.tiles = steps, tiles
        self.bar = comfy.utils.ProgressBar(sum(steps) * tiles)
        self.previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))
        self.first = 0  # units done before the current step
        self.seconds = 0.0

    def start_image(self, k: int) -> None:
        self.first = sum(self.steps[:k]) * self.tiles

    def on_tile(self, done: int, _count: int) -> None:
        """Before each tile. Guidance visits the tiles twice; the bar never goes back."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.first + done > self.bar.current:
            self.bar.update_absolute(self.first + done)

    def on_step(self, _step: int, x0: torch.Tensor, _x: torch.Tensor, _total: int) -> None:
        self.first += self.tiles
        preview = self.previewer.decode_latent_to_preview_image("JPEG", x0) if self.previewer else None
        self.bar.update_absolute(self.first, preview=preview)

    def timed(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """SAMPLER_SAMPLE wrapper: adds to `seconds`."""
        started = time.perf_counter()
        samples = executor(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return samples
