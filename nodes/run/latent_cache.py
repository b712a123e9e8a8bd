"""A cache of sampled latents: a number of steps that was sampled before comes back at once.

ComfyUI's default cache drops the result of the last slider position as soon as another one runs. This small cache
drops the least recently used latent first. It is the pack's one object that outlives a run
(docs/decisions.md#visited-step-counts). It holds no model: an entry is used only for the very MODEL object that made
it, which ComfyUI keeps as long as nothing upstream of it changes.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SampledLatent:
    """A latent (1, C, 1, h, w) and the seconds that sampling it took. largest_piece: as in `SamplingRecord`."""

    samples: torch.Tensor
    seconds: float = 0.0
    largest_piece: int | None = None


class LatentCache:
    """The most recently used latents, at most `max_bytes` of them. Latents are copied on the way in and out."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.entries: OrderedDict[bytes, tuple[weakref.ref[ModelPatcher], SampledLatent]] = OrderedDict()

    def get(self, model: ModelPatcher, key: bytes | None) -> SampledLatent | None:
        """A copy of what was put under `key` for this MODEL, or None. A key of None is never found."""
        if key is None:
            return None
        entry = self.entries.get(key)
        if entry is None or entry[0]() is not model:
            return None
        self.entries.move_to_end(key)
        return replace(entry[1], samples=entry[1].samples.clone())

    def put(self, model: ModelPatcher, key: bytes | None, latent: SampledLatent) -> None:
        if key is None or latent.samples.nbytes > self.max_bytes:
            return
        for dead in [entry for entry, (owner, _) in self.entries.items() if owner() is None]:
            del self.entries[dead]  # its MODEL was unloaded, so that nothing can ask for it again
        self.entries[key] = (weakref.ref(model), replace(latent, samples=latent.samples.clone()))
        self.entries.move_to_end(key)
        while sum(entry.samples.nbytes for _, entry in self.entries.values()) > self.max_bytes:
            self.entries.popitem(last=False)


SAMPLED_LATENTS = LatentCache()


def digest(*values: Any) -> bytes | None:
    """A hash of everything in nested lists and dictionaries, or None if something in them is not plain data.

    A ControlNet or a hook in a conditioning may behave differently from run to run, so such runs are not cached.
    """
    state = hashlib.sha256()
    return state.digest() if _update(state, values) else None


def _update(state: Any, value: Any) -> bool:
    state.update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        state.update(repr((tuple(value.shape), value.dtype)).encode())
        state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return True
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _update(state, k) and _update(state, v) for k, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        state.update(str(len(value)).encode())
        return all(_update(state, item) for item in value)
    state.update(repr(value).encode())
    return value is None or isinstance(value, (str, int, float, bool))
