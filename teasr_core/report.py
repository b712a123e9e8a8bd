"""The one line at the end of a run: size, tiles, steps, seconds per phase, peak memory (R33)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .image.target_size import TargetSize
from .memory import peak_memory_mb
from .sampling.schedule import steps_text


@dataclass
class Report:
    """Filled while an image is restored.

    tile_px, vae_tile_px: longest side of a tile, of the sampler and of the VAE; 0 says nothing about it.
    reason: why this number of steps, where the pack chose it. largest_piece: side in latent pixels that tiles were cut
    to where memory ran out.
    """

    size: TargetSize | None = None
    tiles: int = 1
    tile_px: int = 0
    vae_tile_px: int = 0
    steps: int = 0
    dtype: str = ""
    reason: str = ""
    largest_piece: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

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
