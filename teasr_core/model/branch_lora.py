"""The LoRA that touches condition tokens only, and the call-scoped hooks that attach it.

Used alike on diffusers' and ComfyUI's transformer: modules are found by path, never by class, because quantised and
GGUF layers are not `nn.Linear`. A hook replaces `.forward` on the instance for the length of one call and is removed
in `finally`: nothing stays on a shared model, and clones of the host's patcher see nothing
(docs/decisions.md#call-scoped-hooks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Linears of a block that an adapter of TEASR's touches; it never touches the text stream or proj_out
# (docs/decisions.md#condition-branch-lora).
BLOCK_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "img_mod.1",
)
# Linears outside the blocks that an imported adapter may touch as well.
OUTER_TARGETS = ("img_in",)
READABLE_TARGETS = (*BLOCK_TARGETS, *OUTER_TARGETS)
# Only the noise tokens are read out, so in the last block the condition tokens act through keys and values alone:
# these would never get a gradient.
DEAD_IN_LAST_BLOCK = ("attn.to_q", "attn.to_out.0", "img_mlp.net.0.proj", "img_mlp.net.2")


def target_paths(num_layers: int, targets: Iterable[str] = BLOCK_TARGETS) -> list[str]:
    """Module paths of every adapted Linear, e.g. `transformer_blocks.0.attn.to_q`."""
    targets = tuple(targets)
    outer = [target for target in targets if target in OUTER_TARGETS]
    return outer + [
        f"transformer_blocks.{i}.{target}"
        for i in range(num_layers)
        for target in targets
        if target not in OUTER_TARGETS and not (i == num_layers - 1 and target in DEAD_IN_LAST_BLOCK)
    ]


def lora_shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, int, int]]:
    """Path -> (rank, in_features, out_features) of `{path}.lora_A.weight` and `{path}.lora_B.weight`."""
    return {
        key.removesuffix(".lora_A.weight"): (
            a.shape[0],
            a.shape[1],
            tensors[key.replace(".lora_A.", ".lora_B.")].shape[0],
        )
        for key, a in tensors.items()
        if key.endswith(".lora_A.weight")
    }


class LoraPair(nn.Module):
    """x -> B(A(x)); alpha/rank is folded into B."""

    def __init__(self, lora_a: nn.Module, lora_b: nn.Module) -> None:
        super().__init__()
        self.lora_A = lora_a
        self.lora_B = lora_b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lora_B(self.lora_A(x))


class BranchLora(nn.Module):
    """All pairs of an adapter, nested like the transformer, so that its state-dict keys are the file's keys.

    Args:
        shapes: path -> (rank, in_features, out_features).
        linear: factory of the two Linears; ComfyUI's loader passes `comfy.ops.manual_cast.Linear`.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int, int]], linear: Callable[..., nn.Module] = nn.Linear, **kwargs: Any
    ) -> None:
        super().__init__()
        self.paths = list(shapes)
        for path, (rank, in_features, out_features) in shapes.items():
            pair = LoraPair(
                linear(in_features, rank, bias=False, **kwargs), linear(rank, out_features, bias=False, **kwargs)
            )
            *parents, leaf = path.split(".")
            node: nn.Module = self
            for name in parents:
                if name not in node._modules:
                    node.add_module(name, nn.Module())
                node = node.get_submodule(name)
            node.add_module(leaf, pair)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], **kwargs: Any) -> BranchLora:
        """From `{path}.lora_A.weight` (r, in) and `{path}.lora_B.weight` (out, r); weights are loaded strictly."""
        lora = cls(lora_shapes(tensors), **kwargs)
        lora.load_state_dict(dict(tensors), strict=True)
        return lora

    def pairs(self) -> Iterator[tuple[str, LoraPair]]:
        for path in self.paths:
            pair = self.get_submodule(path)
            assert isinstance(pair, LoraPair)
            yield path, pair


def branch_linear(
    forward: Callable[..., torch.Tensor], pair: LoraPair, strength: float, num_noise: int
) -> Callable[..., torch.Tensor]:
    """`forward` of a Linear with the adapter's delta added to the condition rows only.

    3-D input (B, N, in): tokens from `num_noise` on. 2-D input (2B, in), the modulation Linear: the second half.
    The delta is computed first because fp8 Linears may change their input in place
    (docs/decisions.md#delta-before-the-layer).
    The body reads only its closure: per-layer counters or strings would make torch.compile trace every layer anew.
    """

    def branch_forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x.ndim == 3:
            delta = pair(x[:, num_noise:])  # (B, N_cond, out)
            out = forward(x, *args, **kwargs)  # (B, N, out)
            out[:, num_noise:].add_(delta, alpha=strength)
        else:
            rows = x.shape[0] // 2
            delta = pair(x[rows:])  # (B, out)
            out = forward(x, *args, **kwargs)  # (2B, out)
            out[rows:].add_(delta, alpha=strength)
        return out

    return branch_forward


@contextmanager
def forward_overrides(overrides: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replace `.forward` on module instances inside the block; restored in reverse order, whatever happens."""
    installed: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in overrides:
            installed.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield
    finally:
        for module, previous in reversed(installed):
            if previous is None:
                del module.__dict__["forward"]
            else:
                module.forward = previous


def branch_overrides(
    transformer: nn.Module, lora: BranchLora, strength: float, num_noise: int
) -> list[tuple[nn.Module, Callable[..., torch.Tensor]]]:
    """Overrides for every adapted Linear; an empty list at strength 0, so that the forward is bit-equal to none."""
    if strength == 0:
        return []
    overrides = []
    for path, pair in lora.pairs():
        module = transformer.get_submodule(path)
        overrides.append((module, branch_linear(module.forward, pair, strength, num_noise)))
    return overrides
