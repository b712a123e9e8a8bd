"""What a run tells the report, carried in the LATENT from node to node (stock nodes ignore the key)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from ...teasr_core.image.target_size import TargetSize
from ...teasr_core.report import Report, SamplingRecord

KEY = "teasr_notes"


@dataclass(frozen=True)
class Phase:
    """Seconds on `time.perf_counter`'s clock."""

    start: float
    end: float


@dataclass(frozen=True)
class RunNotes(SamplingRecord):
    """How the images were sampled, and when.

    image_seconds: seconds of sampling for each image; for a latent from the cache, the time that it took originally.
    """

    phases: Mapping[str, Phase] = field(default_factory=dict)
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
        sampled = {item.name: getattr(self, item.name) for item in fields(SamplingRecord)}
        return Report(**sampled, size=size, seconds=seconds)


def notes_of(latent: Mapping[str, Any]) -> RunNotes:
    return latent.get(KEY, RunNotes())
