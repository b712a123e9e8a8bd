"""What a run tells: how an image was sampled, its size, the seconds of each phase, and one line of all that (R33)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from .image.target_size import TargetSize
from .memory import peak_memory_mb
from .sampling.schedule import steps_text


@dataclass(frozen=True)
class SamplingRecord:
    """How an image was sampled. The report of a run and the notes that travel between the nodes share these fields.

    tile_px, vae_tile_px: the longest side of a tile of the sampler and of the VAE; 0 where it is not reported.
    steps: 0 where nothing was sampled. reason: why this number of steps was taken, where the pack chose it.
    largest_piece: the side in latent pixels to which tiles were cut because memory ran out.
    """

    tiles: int = 1
    tile_px: int = 0
    vae_tile_px: int = 0
    steps: int = 0
    dtype: str = ""
    reason: str = ""
    largest_piece: int | None = None


@dataclass(frozen=True)
class Report(SamplingRecord):
    """How a restoration went. size: that of the result. seconds: for each phase."""

    size: TargetSize | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def line(self) -> str:
        """E.g. `1024x1024, 25 tiles, 1 step, bf16 | encode 0.1 s, sample 4.2 s, decode 0.3 s | peak 812 MiB`."""
        size = f"{self.size.width}x{self.size.height}" if self.size else "?"
        tiles = f"{self.tiles} tile{'s' if self.tiles != 1 else ''}"
        if self.tiles > 1 and self.tile_px:
            tiles += f" of {self.tile_px} px"
        vae = f"VAE tiles of {self.vae_tile_px} px" if self.vae_tile_px else ""
        steps = steps_text(self.steps)
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        head = ", ".join(part for part in (size, tiles, vae, steps, self.dtype) if part)
        peak = f"peak {peak_memory_mb():.0f} MiB"
        cut = ""
        if self.largest_piece is not None:
            cut = f"memory ran out: tiles were cut to {self.largest_piece} latent pixels"
        return " | ".join(part for part in (head, phases, peak, self.reason, cut) if part)


class PhaseTimer:
    """Adds up the seconds of each phase over the images of a batch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
