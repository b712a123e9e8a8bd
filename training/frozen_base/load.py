"""The frozen base of a distillation, whichever kind its config names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from teasr_core.weight_files import base_file
from teasr_core.weight_files.file_kind import detect

from ..config.distill import DistillConfig
from ..config.shared import BUILTIN
from .settings import TrainingBase
from .teasr_base import _teasr_base


def load_training_base(
    config: DistillConfig, device: torch.device, note: Callable[[str], None], prompt: torch.Tensor | None = None
) -> TrainingBase:
    """The base that the config names; `note` is told the memory plan before any weight is read.

    prompt: (T, text_width), to train with in place of the base's own or of `base.prompt`.

    Raises ModelFileError for a damaged file or one of another kind, InputError when no plan fits the card,
    ConfigError for a setting that does not go with the base.
    """
    if config.base.path == BUILTIN:
        return _teasr_base(base_file.shipped_base(), config, device, note, prompt)
    path = Path(config.base.path)
    if detect(path, "transformer").is_qwen:
        from .qwen_base import load_qwen_base

        return load_qwen_base(path, config, device, note, prompt)
    return _teasr_base(base_file.read_base(path), config, device, note, prompt)
