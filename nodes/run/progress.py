"""Progress and preview in ComfyUI's own progress bar."""

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

from ...teasr_core.tiling import TileCallback


class Progress:
    """One bar over images x steps x tiles, with ComfyUI's preview after each step (R24).

    steps, tiles: the numbers for each image. seconds: the time spent in the sampler itself so far, without loading the
    model.
    """

    def __init__(self, model: ModelPatcher, steps: Sequence[int], tiles: Sequence[int]) -> None:
        self.units = [count * each for count, each in zip(steps, tiles, strict=True)]
        self.all_tiles, self.tiles = tiles, 0
        self.bar = comfy.utils.ProgressBar(max(1, sum(self.units)))
        self.previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))
        self.first = 0  # units of the bar that were done before the current step
        self.seconds = 0.0

    def start_image(self, k: int) -> None:
        self.first, self.tiles = sum(self.units[:k]), self.all_tiles[k]

    def on_tile(self, done: int, _count: int) -> None:
        """Called before each tile. Guidance visits the tiles twice, but the bar never goes back."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.first + done > self.bar.current:
            self.bar.update_absolute(self.first + done)

    def on_step(self, _step: int, x0: torch.Tensor, _x: torch.Tensor, _total: int) -> None:
        self.first += self.tiles
        preview = self.previewer.decode_latent_to_preview_image("JPEG", x0) if self.previewer else None
        self.bar.update_absolute(self.first, preview=preview)

    def timed(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """SAMPLER_SAMPLE wrapper: adds the time of the call to `seconds`."""
        started = time.perf_counter()
        samples = executor(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return samples


def tile_progress() -> TileCallback:
    """A callback before each tile of a picture: it stops if the user has pressed Cancel, and moves a bar of its own."""
    bars: list[comfy.utils.ProgressBar] = []

    def on_tile(done: int, count: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if count > 1 and not bars:
            bars.append(comfy.utils.ProgressBar(count))
        for bar in bars:
            bar.update_absolute(done)

    return on_tile
