"""A frozen Linear whose weight is quantised and may be off the device; the trainer replaces Linears by it.

The weight is not trained, so that the backward only computes the gradient of the input, grad_out @ W. The weight is
unpacked for the forward, freed, and unpacked again for the backward; autograd keeps neither the weight nor the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from teasr_core.weight_files.packed import PackedTensor, Packing

from .groups import GroupPlan, group_of
from .quantise import Packed, pack, unpack


class WeightSource(Protocol):
    """Brings the packed weight of a layer to the device at every use (`streaming.BlockStreamer`)."""

    def packed(self, layer: FrozenLinear) -> Packed: ...

    def release(self) -> None: ...


class FrozenLinear(nn.Module):
    """x -> x W^T + b with a frozen, packed W. The bias stays an ordinary parameter under the same key.

    The packed weight is neither a parameter nor a buffer, since `.to(...)` must not move a streamed weight to the
    device, cast fp8 codes to bf16 or make fp8 the `dtype` of the model. `move` moves it.

    Attributes:
        stored: the packed weight; None until `store` for a model that was built on the meta device.
        packing: what `stored` means where it came as its file packs it.
        source: for weights on the host, the object that provides the packed weight at every use.
        rows: the result in place of x W^T + b; the modulation sweep sets it for the length of one call.
    """

    def __init__(self, in_features: int, out_features: int, precision: str, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.precision = precision
        self.bias = bias
        self.stored: Packed | None = None
        self.packing: Packing | None = None
        self.source: WeightSource | None = None
        self.rows: torch.Tensor | None = None
        self.requires_grad_(False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, precision: str) -> FrozenLinear:
        """The same layer, quantised; without its weight when that is on the meta device."""
        layer = cls(linear.in_features, linear.out_features, precision, linear.bias)
        if not linear.weight.is_meta:
            layer.store(linear.weight)
        return layer.train(linear.training)

    def store(self, weight: torch.Tensor) -> None:
        """Pack a weight (out, in) on its present device, for loaders that read one file after the other."""
        expected = (self.out_features, self.in_features)
        assert tuple(weight.shape) == expected, f"weight of shape {tuple(weight.shape)}, expected {expected}"
        self.stored = pack(weight, self.precision)

    def store_packed(self, packed: PackedTensor) -> None:
        """Keep a weight (out, in) as its file packs it, for the precision "file"."""
        expected = (self.out_features, self.in_features)
        assert packed.packing.shape == expected, f"weight of shape {packed.packing.shape}, expected {expected}"
        assert self.precision == "file", f"a packed weight for the precision {self.precision}"
        self.stored, self.packing = packed.tensors, packed.packing

    def move(self, device: torch.device) -> None:
        """Move the packed weight; the bias moves with the module."""
        assert self.stored is not None, "the weight was never stored: load the model before placing it"
        self.stored = tuple(tensor.to(device) for tensor in self.stored)

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        """W (out, in) in `dtype`, on the device."""
        packed = self.stored if self.source is None else self.source.packed(self)
        assert packed is not None, "the weight was never stored: load the model before using it"
        if self.packing is not None:
            return self.packing.unpack(packed, dtype)
        return unpack(packed, self.precision, (self.out_features, self.in_features), dtype)

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x W^T + b, (..., in) -> (..., out), for a weight that is already unpacked."""
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rows is not None:
            return self.rows  # (2B, out)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # Two dimensions inside: F.linear makes a view of three, and the LoRA could not add to that in place.
        flat: Any = _FrozenProduct.apply(x.reshape(-1, self.in_features), self)  # (rows, out)
        return flat.view(*x.shape[:-1], self.out_features)  # (..., out)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision}"


class _FrozenProduct(torch.autograd.Function):
    """The product. It saves no tensor: the layer finds its weight again even if that has left the device meanwhile."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer = layer
        return layer.product(x, layer.dequantised(x.dtype))  # (rows, out)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        grad_out = grad_outputs[0]
        if not ctx.needs_input_grad[0]:
            return None, None
        return grad_out @ ctx.layer.dequantised(grad_out.dtype), None  # (rows, in)


def replace_linears(transformer: nn.Module, groups: Mapping[str, GroupPlan]) -> int:
    """Replace every Linear whose group is quantised or leaves the device by a FrozenLinear. Returns how many.

    Paths, `in_features` and `out_features` stay, so that LoRA targets are found as before. Groups that stay as they
    were loaded are not touched. For a model on the meta device `FrozenLinear.store` must provide the weights.
    """
    replaced = 0
    for path, module in list(transformer.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        plan = groups.get(group_of(path), GroupPlan())
        if plan.is_plain:
            continue
        parent_path, _, name = path.rpartition(".")
        setattr(transformer.get_submodule(parent_path), name, FrozenLinear.from_linear(module, plan.precision))
        replaced += 1
    return replaced
