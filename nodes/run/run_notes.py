"""What a run tells the report, carried in the LATENT from node to node (stock nodes ignore the key)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...teasr_core.image.target_size import TargetSize
from ...teasr_core.report import Report

KEY = "teasr_notes"


@dataclass(frozen=True)
class Phase:
    """Seconds on `time.perf_counter`'s clock."""

    start: float
    end: float


@dataclass(frozen=True)
class RunNotes:
    """tile_px to largest_piece: as in `Report`.

    image_seconds: what sampling each image takes, the time it once took where its latent came from memory.
    """

    phases: Mapping[str, Phase] = field(default_factory=dict)
    tiles: int = 1
    tile_px: int = 0
    vae_tile_px: int = 0
    steps: int = 0
    dtype: str = ""
    reason: str = ""
    largest_piece: int | None = None
    image_seconds: tuple[float, ...] = ()

    @contextmanager
    def phase(self, name: str, into: dict[str, Phase]) -> Iterator[None]:
        """Time a block; `into` then holds the phases of these notes and the new one."""
        start = time.perf_counter()
        yield
        into.update(self.phases)
        into[name] = Phase(start, time.perf_counter())

    def report(self, size: TargetSize, started: float) -> Report:
        """Phases that ran since `started`; what came from the host's cache took 0 s."""
        seconds = {
            name: phase.end - phase.start if phase.start >= started else 0.0 for name, phase in self.phases.items()
        }
        return Report(
            size=size,
            tiles=self.tiles,
            tile_px=self.tile_px,
            vae_tile_px=self.vae_tile_px,
            steps=self.steps,
            dtype=self.dtype,
            reason=self.reason,
            largest_piece=self.largest_piece,
            seconds=seconds,
        )


def notes_of(latent: Mapping[str, Any]) -> RunNotes:
    return latent.get(KEY, RunNotes())
