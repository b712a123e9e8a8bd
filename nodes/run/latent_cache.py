"""Step counts the slider has visited come back at once.

ComfyUI's default cache drops the result of the last slider position as soon as another one runs. This small LRU of
sampled latents is the pack's one object that outlives a run (docs/decisions.md#visited-step-counts). It holds no
model: an entry counts only for the very MODEL object it was made with, which ComfyUI keeps as long as nothing upstream
of it changes.
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
class Visit:
    """A latent (1, C, 1, h, w), the seconds its sampling took, and `Report.largest_piece` of it."""

    samples: torch.Tensor
    seconds: float = 0.0
    largest_piece: int | None = None


class VisitedLatents:
    """Least recently used latents, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.entries: OrderedDict[bytes, tuple[weakref.ref[ModelPatcher], Visit]] = OrderedDict()

    def get(self, model: ModelPatcher, key: bytes | None) -> Visit | None:
        """A copy of what was put, or None. `key` None never matches."""
        entry = None if key is None else self.entries.get(key)
        if entry is None or entry[0]() is not model:
            return None
        self.entries.move_to_end(key)
        return replace(entry[1], samples=entry[1].samples.clone())

    def put(self, model: ModelPatcher, key: bytes | None, visit: Visit) -> None:
        if key is None or visit.samples.nbytes > self.max_bytes:
            return
        for dead in [entry for entry, (owner, _) in self.entries.items() if owner() is None]:
            del self.entries[dead]  # its MODEL was unloaded: nothing can ask for it again
        self.entries[key] = (weakref.ref(model), replace(visit, samples=visit.samples.clone()))
        self.entries.move_to_end(key)
        while sum(visit.samples.nbytes for _, visit in self.entries.values()) > self.max_bytes:
            self.entries.popitem(last=False)


VISITED = VisitedLatents()


def digest(*values: Any) -> bytes | None:
    """A hash of everything in nested lists and dictionaries, or None where something has no plain content.

    A ControlNet or a hook in a conditioning may behave differently from run to run; such runs are not remembered.
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
