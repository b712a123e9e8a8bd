"""Weights on the host that visit the device block by block, in a ring of two.

The layers pull: a FrozenLinear asks for its weight in its forward and again in its backward, and the streamer has the
whole block there by then. So it follows any order by itself: forward, recompute and backward with checkpointing, a
forward without gradient in between. While one block computes, the next in the direction of travel is copied on a side
stream. The bits are those of the host: nothing is approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .quantise import Packed
from .quantised_linear import FrozenLinear

RING = 2
_ALIGNMENT = 256  # bytes; every dtype's views start on it


class BlockStreamer:
    """A `WeightSource` for one group: `blocks[i]` are the layers of block i.

    Takes over the layers' packed weights: each block becomes one flat host buffer (pinned where the device is CUDA),
    one copy a visit.
    """

    def __init__(self, blocks: Sequence[Sequence[FrozenLinear]], device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._block_of: dict[FrozenLinear, int] = {}
        self._places: dict[FrozenLinear, list[tuple[int, torch.Tensor]]] = {}  # (offset, host view) of each tensor
        self._host = [self._take(index, layers) for index, layers in enumerate(blocks)]
        self._ring: list[torch.Tensor] = []
        self._ready: list[torch.cuda.Event] = []
        self._in_slot: list[int | None] = []  # block of each slot
        self._current: int | None = None
        self.num_copies = 0

    @property
    def resident(self) -> tuple[int, ...]:
        """Blocks that are on the device now."""
        return tuple(block for block in self._in_slot if block is not None)

    @property
    def host_bytes(self) -> int:
        return sum(flat.numel() for flat in self._host)

    def packed(self, layer: FrozenLinear) -> Packed:
        """The layer's packed weight on the device, valid until a layer of another block asks."""
        block = self._block_of[layer]
        if block != self._current:
            self._arrive(block)
        flat = self._ring[self._in_slot.index(block)]
        return tuple(
            flat[offset : offset + host.numel() * host.element_size()].view(host.dtype).view(host.shape)
            for offset, host in self._places[layer]
        )

    def release(self) -> None:
        """Give the ring's device memory back; the next use allocates it anew."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._ring, self._ready, self._in_slot, self._current = [], [], [], None

    def _take(self, index: int, layers: Sequence[FrozenLinear]) -> torch.Tensor:
        """Lay a block's packed tensors one behind the other in a flat host buffer; the layers get views of it."""
        sizes, total = [], 0
        for layer in layers:
            assert layer.stored is not None and layer.source is None, "store a weight before streaming it, once"
            for tensor in layer.stored:
                sizes.append((total, tensor.numel() * tensor.element_size()))
                total += math.ceil(sizes[-1][1] / _ALIGNMENT) * _ALIGNMENT
        flat = torch.empty(total, dtype=torch.uint8, pin_memory=self._stream is not None)
        offsets = iter(sizes)
        for layer in layers:
            assert layer.stored is not None
            views = []
            for tensor, (offset, size) in zip(layer.stored, offsets, strict=False):
                view = flat[offset : offset + size].view(tensor.dtype).view(tensor.shape)
                view.copy_(tensor)
                views.append((offset, view))
            self._places[layer] = views
            self._block_of[layer] = index
            layer.stored = tuple(view for _, view in views)
            layer.source = self
        return flat

    def _arrive(self, block: int) -> None:
        """Make `block` the one that computes, and start copying the one that comes after it."""
        if not self._ring:
            self._allocate()
        if block not in self._in_slot:
            self._copy(block, keep=None)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self._ready[self._in_slot.index(block)])
        following = self._following(block)
        self._current = block
        if following is not None and following not in self._in_slot:
            self._copy(following, keep=block)

    def _following(self, block: int) -> int | None:
        """The neighbour in the direction of travel; at both ends it turns."""
        last = len(self._host) - 1
        if last == 0:
            return None
        if block in (0, last):
            return 1 if block == 0 else last - 1
        return block - 1 if self._current is not None and block < self._current else block + 1

    def _copy(self, block: int, keep: int | None) -> None:
        """Copy a block into a slot that does not hold `keep`, after everything that was queued on the old content."""
        free = [slot for slot, held in enumerate(self._in_slot) if held is None]
        slot = free[0] if free else next(s for s, held in enumerate(self._in_slot) if held != keep or keep is None)
        self._in_slot[slot] = block
        self.num_copies += 1
        flat = self._host[block]
        if self._stream is None:
            self._ring[slot][: flat.numel()].copy_(flat)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._ring[slot][: flat.numel()].copy_(flat, non_blocking=True)
            self._ready[slot].record(self._stream)

    def _allocate(self) -> None:
        size = max(flat.numel() for flat in self._host)
        slots = min(RING, len(self._host))
        with torch.inference_mode(False):  # or a preview's ring could not be written by the next step
            self._ring = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(slots)]
        self._ready = [torch.cuda.Event() for _ in range(slots)] if self._stream is not None else []
        self._in_slot = [None] * slots
