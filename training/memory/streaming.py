"""Weights that stay on the host and are copied to the device block by block, into two alternating buffers.

A FrozenLinear asks for its weight in its forward and again in its backward, and the streamer then copies the whole
block unless it is there already. So any order works: forward, recomputation and backward with checkpointing, a forward
without gradient in between. While one block computes, the next one in the present direction is copied on a side stream.
The copies have the bits of the host.
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

    It takes over the packed weights of the layers. Each block becomes one flat buffer on the host (pinned where the
    device is CUDA), which is copied at once.
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
        """The packed weight of the layer on the device, valid until a layer of another block asks for its own."""
        block = self._block_of[layer]
        if block != self._current:
            self._arrive(block)
        flat = self._ring[self._in_slot.index(block)]
        return tuple(
            flat[offset : offset + host.numel() * host.element_size()].view(host.dtype).view(host.shape)
            for offset, host in self._places[layer]
        )

    def release(self) -> None:
        """Free the buffers on the device; the next use allocates them again."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._ring, self._ready, self._in_slot, self._current = [], [], [], None

    def _take(self, index: int, layers: Sequence[FrozenLinear]) -> torch.Tensor:
        """Copy the packed tensors of a block into one flat host buffer, of which the layers then hold views."""
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
        """Make `block` the current one and start to copy the next."""
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
        """The next block in the present direction, which turns at both ends."""
        last = len(self._host) - 1
        if last == 0:
            return None
        if block in (0, last):
            return 1 if block == 0 else last - 1
        return block - 1 if self._current is not None and block < self._current else block + 1

    def _copy(self, block: int, keep: int | None) -> None:
        """Copy a block into a slot that does not hold `keep`, after all work that was queued on the old content."""
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
