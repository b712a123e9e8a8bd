"""All modulation of a step, computed before it starts, so that a third of the weights can stay off the device.

img_mod and txt_mod depend on the time embedding alone, and all times of a step are drawn before it starts. On entry,
the sweep loads each block once and stores W silu(temb) + b for every pair of times; until it ends, the frozen Linears
return these rows. A LoRA on img_mod.1 acts on silu(temb) around the Linear as usual, and its gradient is the usual one.
The rows are exact, since they come from the same products as without the sweep.

A block finds its rows by the memory address of the time embedding that it receives: `time_text_embed` returns the
tensors of the sweep, and checkpointing recomputes a block with the tensor of the first call, whatever forwards ran in
between. Therefore these tensors must not be copied on the way (`checkpointing` offloads the token tensors only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from teasr_core.model.branch_lora import forward_overrides

from .quantised_linear import FrozenLinear

Times = tuple[float, ...]


class ModulationSweep(AbstractContextManager["ModulationSweep"]):
    """The context of one step, in which the modulation weights are not used.

    Args:
        transformer: its img_mod.1 and txt_mod.1 are FrozenLinear (`replace_linears`).
        times: the doubled time vectors (2B,) float32 of `dual_times` that the step will use; repeats are allowed.
        dtype: of the hidden states; the transformer's own by default, the autocast dtype under autocast.
        forward_context: a context around the products of the sweep, such as the autocast of the step's forwards.
    """

    def __init__(
        self,
        transformer: Any,
        times: Iterable[torch.Tensor],
        dtype: torch.dtype | None = None,
        forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.transformer = transformer
        self.times = list(times)
        self.dtype = dtype or transformer.dtype
        self.forward_context = forward_context
        self._embeddings: dict[Times, torch.Tensor] = {}  # (2B, D) of each pair
        self._rows: dict[nn.Module, dict[int, torch.Tensor]] = {}  # img_mod or txt_mod -> address -> rows
        self._installed: AbstractContextManager[None] | None = None

    def __enter__(self) -> ModulationSweep:
        with torch.no_grad(), self.forward_context():
            self._embed()
            self._sweep()
        overrides: list[tuple[nn.Module, Any]] = [(self.transformer.time_text_embed, self._time_forward())]
        overrides += [(module, self._modulation_forward(module)) for module in self._rows]
        self._installed = forward_overrides(overrides)
        self._installed.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        assert self._installed is not None
        self._installed.__exit__(*exception)
        self._installed = None
        self._embeddings, self._rows = {}, {}

    @property
    def num_bytes(self) -> int:
        """The device memory of the rows, which are kept for the step."""
        rows = [row for of_module in self._rows.values() for row in of_module.values()]
        return sum(row.numel() * row.element_size() for row in rows)

    def _embed(self) -> None:
        device = next(self.transformer.time_text_embed.parameters()).device
        like = torch.empty(0, dtype=self.dtype, device=device)
        for times in self.times:
            key = _key(times)
            if key not in self._embeddings:
                embedding = self.transformer.time_text_embed(times.to(device, torch.float32), like)  # (2B, D)
                self._embeddings[key] = embedding.clone()  # an address of its own

    def _sweep(self) -> None:
        sources = set()
        for block in self.transformer.transformer_blocks:
            for module, share in ((block.img_mod, 1), (block.txt_mod, 2)):
                linear = module[1]
                assert isinstance(linear, FrozenLinear), "the sweep needs img_mod.1 and txt_mod.1 as FrozenLinear"
                weight = linear.dequantised(self.dtype)
                self._rows[module] = {}
                for embedding in self._embeddings.values():
                    x = module[0](embedding[: len(embedding) // share])  # (2B, D); text takes the noise rows alone
                    self._rows[module][embedding.data_ptr()] = linear.product(x, weight)  # (2B, 6D)
                if linear.source is not None:
                    sources.add(linear.source)
        for source in sources:
            source.release()

    def _time_forward(self) -> Callable[..., torch.Tensor]:
        def time_forward(timestep: torch.Tensor, hidden_states: torch.Tensor, *_: Any) -> torch.Tensor:
            key = _key(timestep)
            assert key in self._embeddings, f"times {key} are not of this sweep: announce them before the step"
            embedding = self._embeddings[key]
            assert hidden_states.dtype == embedding.dtype, (
                f"the sweep ran in {embedding.dtype}, the forward is in {hidden_states.dtype}"
            )
            return embedding  # (2B, D)

        return time_forward

    def _modulation_forward(self, module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        forward, linear, rows = module.forward, module[1], self._rows[module]

        def modulation_forward(embedding: torch.Tensor) -> torch.Tensor:
            row = rows.get(embedding.data_ptr())
            assert row is not None, "modulation was asked for a time embedding that is not of this sweep"
            with _returning(linear, row.clone()):  # the LoRA adds to it in place
                return forward(embedding)  # (2B, 6D)

        return modulation_forward


def _key(times: torch.Tensor) -> Times:
    return tuple(times.tolist())


@contextmanager
def _returning(linear: FrozenLinear, rows: torch.Tensor) -> Iterator[None]:
    linear.rows = rows
    try:
        yield
    finally:
        linear.rows = None
