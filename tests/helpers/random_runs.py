"""Random pictures, sizes and settings from one seed, and what must hold for each: shared by tests/core and tests/nodes.

Sides from 1 px, odd and even; photographs, noise, constants; grey, RGB, alpha; batches; every size mode, colour fix and
number of steps. Results stay below 48 px, so that hundreds take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MAX_SIDE = 48
PIXELS_PER_MEGAPIXEL = 2**20
KINDS = ("photo", "noise", "constant", "edge")
CHANNELS = (1, 3, 4)
MODES = ("factor", "shortest", "longest", "exact", "megapixels")
FIXES = ("off", "wavelet", "adain", "lab")


@dataclass(frozen=True)
class RandomRun:
    """One picture, its target size and the settings, by the nodes' names. `amounts`: what the size mode asks for."""

    kind: str
    width: int
    height: int
    batch: int
    channels: int
    mode: str
    amounts: dict[str, float]
    expected: tuple[int, int]
    max_megapixels: float
    steps: int
    seed: int
    strength: float
    fidelity: float
    color_fix: str
    color_strength: float
    tile_px: int
    overlap_px: int

    def picture(self) -> torch.Tensor:
        """(B, C, H, W) float32 in [0, 1]."""
        rng = np.random.default_rng(self.seed % 2**32)
        shape = (self.batch, min(self.channels, 3), self.height, self.width)
        if self.kind == "noise":
            values = rng.random(shape)
        elif self.kind == "constant":
            values = np.broadcast_to(rng.random((self.batch, shape[1], 1, 1)), shape)
        else:
            slope = np.linspace(0, 1, self.width)[None] * 0.5 + np.linspace(0, 1, self.height)[:, None] * 0.4
            if self.kind == "edge":
                slope = (slope > rng.random() * 0.9) * 1.0
            values = (slope + rng.random((self.batch, shape[1], 1, 1)) * 0.1 + rng.normal(0, 0.02, shape)).clip(0, 1)
        if self.channels == 4:
            holes = (rng.random((self.batch, 1, self.height, self.width)) > 0.2) * 1.0
            values = np.concatenate([values, holes], axis=1)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    def size_is_right(self, width: int, height: int) -> bool:
        """The size asked for, or under the cap, with the aspect ratio to the pixel that rounding down costs."""
        cap = self.max_megapixels * PIXELS_PER_MEGAPIXEL
        wanted = self.expected
        if cap == 0 or wanted[0] * wanted[1] <= cap:
            return (width, height) == wanted
        shrink = (cap / (wanted[0] * wanted[1])) ** 0.5
        close = all(
            abs(found - max(1, side * shrink)) <= 1 for found, side in zip((width, height), wanted, strict=True)
        )
        return width * height <= max(1, cap) and (close or 1 in (width, height))


def random_runs(count: int, seed: int = 0) -> list[RandomRun]:
    """The same `count` runs for the same seed."""
    rng = np.random.default_rng(seed)
    return [_random_run(rng) for _ in range(count)]


def _random_run(rng: np.random.Generator) -> RandomRun:
    def choose(options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    width, height = (1 if rng.random() < 0.05 else int(rng.integers(1, 33)) for _ in range(2))
    mode = choose(MODES)
    amounts, expected = _target(rng, mode, width, height)
    tile_px = choose((0, 0, 16, 32, 48))
    return RandomRun(
        kind=choose(KINDS), width=width, height=height, batch=choose((1, 1, 2, 3)), channels=choose(CHANNELS),
        mode=mode, amounts=amounts, expected=expected,
        max_megapixels=choose((0.0, 0.0, 0.0, 400 / PIXELS_PER_MEGAPIXEL)),
        steps=int(rng.integers(1, 31)) if rng.random() < 0.1 else int(rng.integers(1, 5)),
        seed=int(rng.integers(2**64, dtype=np.uint64)), strength=choose((1.0, 1.0, 0.0, round(rng.random(), 2))),
        fidelity=choose((0.0, 0.0, round(rng.random(), 2), 1.0)), color_fix=choose(FIXES),
        color_strength=choose((1.0, 0.0, round(rng.random(), 2))),
        tile_px=tile_px, overlap_px=choose((0, 8, 16)[: 2 if tile_px == 16 else 3]),
    )  # fmt: skip


def _target(rng: np.random.Generator, mode: str, width: int, height: int) -> tuple[dict[str, float], tuple[int, int]]:
    """(what the mode asks for, the size that must come out); scales in 64ths, so that halves are exact."""
    long, short = max(width, height), min(width, height)
    top = min(8 * 64, MAX_SIDE * 64 // long)
    sixtyfourths = int(rng.integers(16, top + 1))
    scaled = tuple(max(1, (2 * side * sixtyfourths + 64) // 128) for side in (width, height))
    if mode == "factor":
        return {"scale": sixtyfourths / 64}, (scaled[0], scaled[1])
    if mode == "megapixels":
        megapixels = width * height * (sixtyfourths / 64) ** 2 / PIXELS_PER_MEGAPIXEL
        return {"mp": megapixels}, (scaled[0], scaled[1])
    if mode == "exact":
        sides = [int(rng.integers(max(1, -(-side // 4)), min(MAX_SIDE, 8 * side) + 1)) for side in (width, height)]
        return {"width": sides[0], "height": sides[1]}, (sides[0], sides[1])
    edge = short if mode == "shortest" else long
    px = int(rng.integers(max(1, -(-edge // 4)), max(1, edge * top // 64) + 1))
    sides = [max(1, (2 * side * px + edge) // (2 * edge)) for side in (width, height)]
    return {"px": px}, (sides[0], sides[1])


def frame_lines(image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outermost line of each side of (B, C, H, W), as (B, C, length)."""
    return {"top": image[:, :, 0], "bottom": image[:, :, -1], "left": image[..., 0], "right": image[..., -1]}


def border_artefact(found: torch.Tensor, resized: torch.Tensor) -> float:
    """How far an outermost line of (B, 3, H, W) strays from the resize, beyond what the whole picture does.

    The largest over pictures and sides of (mean |found - resized| on the line) - (the same of the whole picture), in
    pixels of [0, 1]. A black or flat line has about the picture's own mean; a clean border about 0.
    """
    change = (found - resized).abs()  # (B, 3, H, W)
    whole = change.mean(dim=(1, 2, 3))  # (B,)
    return max(float((line.mean(dim=(1, 2)) - whole).max()) for line in frame_lines(change).values())
