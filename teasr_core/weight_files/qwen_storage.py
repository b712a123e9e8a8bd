"""How a loaded transformer keeps its block weights: as numbers, as the file packs them, in fp8 or in 4 bits; and where,
between two uses.

Outside the blocks, and in norms, everything stays in the dtype that is computed in: it is small, and the times'
embedder and the modulated norms are what rounding hurts most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import InputError
from .packed import PackedLinear, PackedTensor
from .qwen_file import QwenSource, load_qwen_transformer

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

FP8 = torch.float8_e4m3fn
BLOCKS = "transformer_blocks."
# diffusers looks for these patterns in the path of a module; the first one covers every norm.
KEPT_PATTERNS = ("norm", "^time_text_embed", "^img_in$", "^txt_in$", "^proj_out$")


def load_stored(
    source: QwenSource, storage: str, dtype: torch.dtype, device: torch.device
) -> QwenImageTransformer2DModel:
    """The transformer with its block weights in `storage` ("" = `dtype` itself); quantised one tensor at a time.

    storage: "", "file" (as the file packs them, unpacked layer by layer at use), "fp8" (float8_e4m3fn, raised to
        `dtype` in the same way) or "nf4" (bitsandbytes).
    dtype: what is computed in. InputError for nf4 without bitsandbytes.
    """
    if storage == "fp8":
        model = load_qwen_transformer(source, dtype, device, place=_to_fp8)
        model.enable_layerwise_casting(FP8, dtype, skip_modules_pattern=KEPT_PATTERNS)
        return model
    if storage == "nf4":
        return _load_nf4(source, dtype, device)
    if storage == "file":
        return _load_packed(source, dtype, device)
    assert not storage, storage
    return load_qwen_transformer(source, dtype, device)


def _to_fp8(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """fp8 for the blocks' Linears. Anything beyond fp8's largest number, 448, would become NaN: it is clamped."""
    if not name.startswith(BLOCKS) or "norm" in name:
        return tensor
    largest = torch.finfo(FP8).max
    return tensor.clamp(-largest, largest).to(FP8)


def _load_packed(source: QwenSource, dtype: torch.dtype, device: torch.device) -> QwenImageTransformer2DModel:
    takers: dict[str, Callable[[PackedTensor], None]] = {}

    def prepare(model: nn.Module) -> None:
        for path, module in list(model.named_modules()):
            name = f"{path}.weight"
            if path.startswith(BLOCKS) and isinstance(module, nn.Linear) and name in source.packings:
                parent, _, leaf = path.rpartition(".")
                linear = PackedLinear(module.in_features, module.out_features, module.bias)
                model.get_submodule(parent).add_module(leaf, linear)
                takers[name] = linear.store

    return load_qwen_transformer(source, dtype, device, prepare=prepare, takers=takers)


def _load_nf4(source: QwenSource, dtype: torch.dtype, device: torch.device) -> QwenImageTransformer2DModel:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise InputError("dtype nf4 needs bitsandbytes: pip install bitsandbytes, or choose fp8") from None
    packed: set[str] = set()
    quantised: Any = Params4bit  # its annotations hide torch's

    def prepare(model: nn.Module) -> None:
        for path, module in list(model.named_modules()):
            if path.startswith(BLOCKS) and isinstance(module, nn.Linear):
                parent, _, leaf = path.rpartition(".")
                with torch.device("meta"):
                    linear = Linear4bit(
                        module.in_features, module.out_features, module.bias is not None, dtype, quant_type="nf4"
                    )
                model.get_submodule(parent).add_module(leaf, linear)
                packed.add(f"{path}.weight")

    def place(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in packed:
            return tensor
        return quantised(tensor, requires_grad=False, quant_type="nf4").to(device)  # quantised by the move

    return load_qwen_transformer(source, dtype, device, place, prepare)


def offload(
    model: QwenImageTransformer2DModel, mode: str, storage: str, device: torch.device
) -> Callable[[], AbstractContextManager[None]]:
    """Where the weights are: a context to sample in.

    mode: "none" keeps the model on `device`; "model" moves it there for the length of the context; "sequential" keeps
    it on the CPU and moves one block at a time. InputError for nf4 in blocks, which bitsandbytes cannot do.
    """
    if mode == "sequential":
        if storage == "nf4":
            raise InputError("offload sequential cannot move 4-bit blocks: choose offload model, or dtype fp8")
        model.enable_group_offload(
            onload_device=device, offload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
        )

    @contextmanager
    def resident() -> Iterator[None]:
        if mode == "model":
            nn.Module.to(model, device)
        try:
            yield
        finally:
            if mode == "model":
                nn.Module.to(model, "cpu")

    return resident
