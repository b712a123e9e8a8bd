"""Which part of the transformer a weight belongs to, and how a plan treats each (docs/decisions.md#memory-by-group).

    image_stream   attention and MLP of the image tokens: nearly all the work of a forward
    text_stream    the same for the few prompt tokens
    modulation     img_mod and txt_mod, which process one or two vectors in each forward
    rest           embeddings and output layers: small, kept as loaded and on the device
In Qwen-Image (20 B) the first three have a third of the weights each, 6.8 B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from teasr_core.errors import ConfigError

BLOCK_GROUPS = ("image_stream", "text_stream", "modulation")
GROUPS = (*BLOCK_GROUPS, "rest")
PRECISIONS = ("bf16", "fp8", "nf4", "file")
PLACEMENTS = ("resident", "streamed", "swept")

BLOCKS = "transformer_blocks."
_IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out", "attn.norm_q", "attn.norm_k", "img_mlp", "img_norm")
_TEXT = (
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.norm_added_q",
    "attn.norm_added_k",
    "txt_mlp",
    "txt_norm",
)
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "image_stream": _IMAGE,
    "text_stream": _TEXT,
    "modulation": ("img_mod", "txt_mod"),
}
_REST = ("img_in", "txt_in", "txt_norm", "time_text_embed", "norm_out", "proj_out")


@dataclass(frozen=True)
class GroupPlan:
    """How the weights of one group are held.

    precision: "bf16" keeps the weight as it was loaded, "fp8" and "nf4" quantise it (see `quantise`), "file" keeps it
        as its file packs it, and as it was loaded where the file does not pack it.
    placement: "resident" on the device; "streamed" from the host block by block; "swept", modulation alone: on the
    device for the sweep before each step (`modulation_sweep`), streamed in forwards outside of a step.
    """

    precision: str = "bf16"
    placement: str = "resident"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS or self.placement not in PLACEMENTS:
            raise ConfigError(
                f"memory plan '{self}': expected one of {', '.join(PRECISIONS)} and one of {', '.join(PLACEMENTS)}, "
                "for example 'fp8 streamed'"
            )

    def __str__(self) -> str:
        return f"{self.precision} {self.placement}"

    @property
    def is_plain(self) -> bool:
        """Whether the layers stay as they were loaded."""
        return self == GroupPlan()

    @classmethod
    def parse(cls, text: str, group: str) -> GroupPlan:
        """Read a config value such as "fp8 streamed". Raises ConfigError, with the key's name, for anything else."""
        words = text.split()
        if len(words) != 2 or words[0] not in PRECISIONS or words[1] not in PLACEMENTS:
            raise ConfigError(
                f"memory.{group} is '{text}': expected 'auto' or a precision ({', '.join(PRECISIONS)}) and a placement "
                f"({', '.join(PLACEMENTS)}), for example 'fp8 streamed'"
            )
        if words[1] == "swept" and group != "modulation":
            raise ConfigError(f"memory.{group} is '{text}': only modulation can be swept, write '{words[0]} streamed'")
        return cls(words[0], words[1])


def group_of(path: str) -> str:
    """The group of a parameter or module path, e.g. `transformer_blocks.7.attn.to_q.weight` -> `image_stream`.

    Raises ValueError for a path that is not of a Qwen-Image transformer: a new layer must be given a group here.
    """
    if path.startswith(BLOCKS):
        inside = path.removeprefix(BLOCKS).partition(".")[2]
        for group, prefixes in _PREFIXES.items():
            if inside.startswith(prefixes):
                return group
    elif path.split(".")[0] in _REST:
        return "rest"
    raise ValueError(f"'{path}' belongs to no memory group: expected a path of QwenImageTransformer2DModel")


def linears_of(transformer: nn.Module, group: str, kind: type[nn.Module]) -> Iterator[list[tuple[str, nn.Module]]]:
    """For each block the (path, module) pairs of `kind` that belong to the group, in module order."""
    blocks = transformer.get_submodule("transformer_blocks")
    for index, block in blocks.named_children():
        paths = [(f"{BLOCKS}{index}.{name}", module) for name, module in block.named_modules() if name]
        yield [(path, module) for path, module in paths if isinstance(module, kind) and group_of(path) == group]
