"""What `bench` runs: the config of a distillation, a transformer of any size, the number of timed steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QWEN_IMAGE, QwenArchitecture
from teasr_core.weight_files.base_file import shipped_base

from ..config.distill import DistillConfig, check_distill
from ..config.shared import BUILTIN
from ..config.toml import from_mapping, read_toml
from ..frozen_base.settings import memory_problem
from ..memory.costs import VAE_BASE_DIM, Problem

NAMED = (BUILTIN, "qwen-image")
QWEN_PROMPT_TOKENS = 16  # room for the empty prompt's


@dataclass(frozen=True)
class BenchSettings:
    """The config as `distill` would read it; the files and data that it names are not used.

    Attributes:
        steps: the number of timed steps of each kind.
        use_decode: decode the one-step result and compare pixels; otherwise the data loss compares latents.
        vae_width: `base_dim` of the VAE that decodes 16 channels.
    """

    config: DistillConfig
    architecture: QwenArchitecture
    prediction: str
    prompt_tokens: int
    steps: int = 3
    use_decode: bool = False
    vae_width: int = VAE_BASE_DIM

    @property
    def problem(self) -> Problem:
        """What a step trains, in the terms of the planner."""
        return memory_problem(self.config, self.architecture, self.prompt_tokens)

    @property
    def micro_steps(self) -> int:
        """The micro-steps of a step; `rotate` needs four to train every role."""
        train = self.config.train
        return max(4, train.accumulation) if train.layout == "rotate" else train.accumulation


def bench_settings(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    architecture: str | None = None,
    layers: int | None = None,
    heads: int | None = None,
    width: int | None = None,
    steps: int = 3,
    use_decode: bool = False,
    vae_width: int = VAE_BASE_DIM,
    vram_gb: float | None = None,
) -> BenchSettings:
    """Join a config with the arguments of the command line, which take precedence.

    architecture: one of NAMED; None follows the config's `base.path`: "builtin", or else Qwen-Image. Without a config
    the defaults are those of `distill`, except for rank and crop, which fit the architecture.

    Raises ConfigError for a value out of range and for a size that no transformer can have.
    """
    values = read_toml(path, overrides)
    from_mapping(DistillConfig, values, where="")  # names and types first
    if architecture is None:
        architecture = BUILTIN if values.get("base", {}).get("path", BUILTIN) == BUILTIN else "qwen-image"
    is_builtin = architecture == BUILTIN
    if path is None:
        values.setdefault("adapter", {}).setdefault("rank", 32 if is_builtin else 128)
        values.setdefault("train", {}).setdefault("crop_px", 128 if is_builtin else 512)
    values.setdefault("base", {})["path"] = BUILTIN if is_builtin else architecture
    values.setdefault("loss", {}).setdefault("perceptual_backbone", "random")  # no file is read
    if vram_gb is not None:
        values.setdefault("memory", {})["vram_gb"] = vram_gb
    config = from_mapping(DistillConfig, values, where="")
    check_distill(config)
    for name, value in (("--steps", steps), ("--layers", layers), ("--vae-width", vae_width)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}: expected at least 1")
    if config.adapter.trainable != "lora":
        raise ConfigError('adapter.trainable is "all": bench measures the training of a LoRA, set it to "lora"')
    base = shipped_base() if is_builtin else None
    found = resized(QWEN_IMAGE if base is None else base.architecture, layers, heads, width)
    multiple = 16 if is_builtin else 32  # docs/decisions.md#even-token-grid
    if config.train.crop_px % multiple:
        raise ConfigError(f"train.crop_px is {config.train.crop_px}: {architecture} takes multiples of {multiple}")
    return BenchSettings(
        config,
        found,
        prediction="velocity" if base is None else base.prediction,
        prompt_tokens=QWEN_PROMPT_TOKENS if base is None else len(base.prompt_embeds),
        steps=steps,
        use_decode=use_decode,
        vae_width=vae_width,
    )


def resized(
    architecture: QwenArchitecture, layers: int | None = None, heads: int | None = None, width: int | None = None
) -> QwenArchitecture:
    """Change the number of blocks or heads, or the width (heads * head_dim); None leaves a value as it is.

    A head of another size keeps the published ratio of its rotary dimensions, 1 : 3.5 : 3.5, as nearly as even numbers
    allow. Raises ConfigError for a width that the heads cannot be divided into.
    """
    num_heads = architecture.num_heads if heads is None else heads
    width = width or architecture.width
    if num_heads < 1 or width < 1 or width % num_heads:
        raise ConfigError(f"--width {width} and --heads {num_heads}: expected a width that the heads divide")
    head_dim = width // num_heads
    axes = architecture.rope_axes if head_dim == architecture.head_dim else _rope_axes(head_dim)
    return dataclasses.replace(
        architecture, num_layers=layers or architecture.num_layers, num_heads=num_heads, head_dim=head_dim,
        rope_axes=axes,
    )  # fmt: skip


def _rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Even dimensions of (frame, row, column); row and column have the same."""
    frames = [frame for frame in range(2, head_dim, 2) if head_dim % 2 == 0 and (head_dim - frame) % 4 == 0]
    if not frames:
        raise ConfigError(f"a head of {head_dim}: expected an even number of at least 6, set --width and --heads so")
    frame = min(frames, key=lambda dims: abs(dims - head_dim / 8))
    return frame, (head_dim - frame) // 2, (head_dim - frame) // 2
