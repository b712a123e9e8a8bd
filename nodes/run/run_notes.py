"""The notes of a run travel in the LATENT from node to node, up to the report. Stock nodes ignore their key."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...teasr_core.image.target_size import TargetSize
from ...teasr_core.model.recipe import Recipe
from ...teasr_core.report import Report, SamplingRecord
from ..host.running import prompt_id

NOTES_KEY = "teasr_notes"


@dataclass(frozen=True)
class Phase:
    """The seconds that a phase took, and the id of the queued prompt it ran in."""

    seconds: float
    prompt: str | None


@dataclass(frozen=True)
class RunNotes(SamplingRecord):
    """How the images were encoded, sampled and decoded.

    size: the target size. image_seconds: the seconds of sampling for each image; for a cached latent, the time that it
    took originally. recipe: that of the MODEL for which the image was encoded, whose VAE tiles the decoder takes too.
    """

    size: TargetSize | None = None
    phases: Mapping[str, Phase] = field(default_factory=dict)
    image_seconds: tuple[float, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)

    def after(self, phase: str, started: float, **changes: Any) -> RunNotes:
        """These notes after a phase that began at `started` on `time.perf_counter`'s clock, with other `changes`."""
        ran = Phase(time.perf_counter() - started, prompt_id())
        return replace(self, phases={**self.phases, phase: ran}, **changes)

    def report(self) -> Report:
        """The report. A phase of an earlier prompt counts 0 s, because its result came from ComfyUI's cache."""
        now = prompt_id()
        seconds = {name: phase.seconds if phase.prompt == now else 0.0 for name, phase in self.phases.items()}
        record = {item.name: getattr(self, item.name) for item in fields(SamplingRecord)}
        return Report(**record, size=self.size, seconds=seconds)


def notes_of(latent: Mapping[str, Any]) -> RunNotes:
    return latent.get(NOTES_KEY, RunNotes())
