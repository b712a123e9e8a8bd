"""Size of a Qwen-Image transformer: one dataclass serves the built-in model, the 20B and every test size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelFileError

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

    Raises ModelFileError where one is no whole number above 0, or the rotary dimensions do not fit.
    """

    latent_channels: int = 16
    num_layers: int = 60
    num_heads: int = 24
    head_dim: int = 128
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    text_width: int = 3584
    patch_size: int = 2

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if name != "rope_axes" and not _is_size(value)]
        if not isinstance(self.rope_axes, tuple) or len(self.rope_axes) != 3 or not all(map(_is_size, self.rope_axes)):
            wrong.append("rope_axes")
        if wrong:
            expected = "a whole number" if wrong[0] != "rope_axes" else "three whole numbers"
            raise ModelFileError(
                f"{wrong[0]} is {getattr(self, wrong[0])!r}: expected {expected} above 0, get the file again"
            )
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
        """Latent sides must be multiples of this: an even token grid (docs/decisions.md#even-token-grid)."""
        return 2 * self.patch_size

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"rope_axes": list(self.rope_axes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> QwenArchitecture:
        """Raises ModelFileError when a key is missing or unknown, or a value impossible."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping):
            raise ModelFileError(f"architecture config is {values!r}, expected a JSON object: get the file again")
        if set(values) != names:
            raise ModelFileError(
                f"architecture config has keys {sorted(values)}, expected {sorted(names)}: "
                "the file was made by another version of TEASR"
            )
        axes = values["rope_axes"]
        return cls(**{**values, "rope_axes": tuple(axes) if isinstance(axes, list) else axes})


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# The architecture of Qwen-Image, Qwen-Image-2512 and Qwen-Image-Edit.
QWEN_IMAGE = QwenArchitecture()
