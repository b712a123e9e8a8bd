"""Size of a Qwen-Image transformer: one dataclass serves the built-in model, the 20B and every test size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelFileError

PREDICTIONS = ("velocity", "lq_residual")


@dataclass(frozen=True)
class QwenArchitecture:
    """Hyper-parameters of `QwenImageTransformer2DModel`, the same class in diffusers and in ComfyUI.

    Attributes:
        latent_channels: channels C of the codec's latent; a token carries C * patch_size**2 numbers.
        num_layers: transformer blocks.
        num_heads, head_dim: the width D is their product.
        rope_axes: rotary dimensions of (frame, row, column); they add up to head_dim.
        text_width: width of the prompt embedding.
        patch_size: latent pixels per token side.
    """

    latent_channels: int = 16
    num_layers: int = 60
    num_heads: int = 24
    head_dim: int = 128
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    text_width: int = 3584
    patch_size: int = 2

    def __post_init__(self) -> None:
        if sum(self.rope_axes) != self.head_dim or any(axis % 2 for axis in self.rope_axes):
            raise ModelFileError(
                f"rope axes {self.rope_axes} do not fit a head of {self.head_dim}: "
                "they must be even and add up to head_dim"
            )

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def token_channels(self) -> int:
        return self.latent_channels * self.patch_size**2

    @property
    def block_multiple(self) -> int:
        """Latent sides must be multiples of this: an even token grid (SPEC 6), see `docs/tour.md`."""
        return 2 * self.patch_size

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"rope_axes": list(self.rope_axes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> QwenArchitecture:
        """Raises ModelFileError when a key is missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping):
            raise ModelFileError(f"architecture config is {values!r}, expected a JSON object: get the file again")
        if set(values) != names:
            raise ModelFileError(
                f"architecture config has keys {sorted(values)}, expected {sorted(names)}: "
                "the file was made by another version of TEASR"
            )
        return cls(**{**values, "rope_axes": tuple(values["rope_axes"])})


# The architecture of Qwen-Image, Qwen-Image-2512 and Qwen-Image-Edit.
QWEN_IMAGE = QwenArchitecture()
