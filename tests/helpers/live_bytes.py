"""Counting bytes of tensors, for tests of memory: what autograd saves, and what is alive at most.

By storage, so views count once. Not the process's memory: allocators and workspaces are left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Saved:
    """`tensors`: everything autograd was given to save; `num_bytes`: its storages, `ignore` left out."""

    def __init__(self, ignore: Iterable[torch.Tensor]) -> None:
        self.tensors: list[torch.Tensor] = []
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignore}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in self._ignored:
            self.tensors.append(tensor)
        return tensor

    @property
    def num_bytes(self) -> int:
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in self.tensors}
        return sum(storages.values())


@contextmanager
def saved_tensors(ignore: Iterable[torch.Tensor] = ()) -> Iterator[Saved]:
    """What autograd saves in the block, e.g. ignoring parameters, which are there anyway."""
    saved = Saved(ignore)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved


class LiveBytes(TorchDispatchMode):
    """Bytes of storages made inside the block: `now` alive, and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in inputs and storage._cdata not in self._known:
                    self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
