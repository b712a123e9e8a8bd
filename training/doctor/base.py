"""Findings about the base of a distillation: whether it exists, can be read and fits the settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from teasr_core.errors import TeasrError

from .finding import MISSING, OK, Finding
from .memory_plan import plan_findings


def base_findings(config: Any) -> Iterator[Finding]:
    """Examine transformer, VAE and prompt; a finding has the text of the error that `distill` would raise."""
    base = config.base
    if base.path == "builtin":
        yield from _settings(config)
    elif not Path(base.path).exists():
        yield Finding(MISSING, "base.path", f"nothing at {base.path}", "get it, or correct base.path")
    else:
        yield from _transformer(config)
    for name in ("vae", "prompt"):
        if getattr(base, name):
            yield _part(name, Path(getattr(base, name)))
    if config.adapter.start:
        yield from _start(config)
    yield from plan_findings(config)


def _transformer(config: Any) -> Iterator[Finding]:
    path = Path(config.base.path)
    try:
        from teasr_core.weight_files.base_file import read_base
        from teasr_core.weight_files.file_kind import Kind, detect
        from teasr_core.weight_files.qwen_file import read_qwen

        found = detect(path, "transformer")
        is_qwen = found.kind is Kind.QWEN_TRANSFORMER or found.layout == "GGUF"
        _ = read_qwen(path) if is_qwen else read_base(path)
    except TeasrError as error:
        yield Finding(MISSING, "base.path", str(error), "get it, or correct base.path")
        return
    except ImportError:
        yield Finding(OK, "base.path", f"{path} is there, not read without its packages")
        return
    yield Finding(OK, "base.path", f"{path} is there")
    yield from _settings(config, is_qwen)


def _settings(config: Any, is_qwen: bool = False) -> Iterator[Finding]:
    """A finding for a setting that does not fit the base; none where all settings do."""
    try:
        from teasr_core.weight_files.base_file import read_base, shipped_base

        from ..frozen_base.settings import base_dtype, check_dtc

        path = config.base.path
        if is_qwen:
            from ..frozen_base.qwen_base import check_settings

            check_settings(Path(path), config, has_prompt=bool(config.adapter.start))
        else:
            check_dtc(shipped_base() if path == "builtin" else read_base(Path(path)), config)
        base_dtype(config, "bf16" if is_qwen else "fp32")
    except ImportError:
        return  # named among the packages
    except TeasrError as error:
        yield Finding(MISSING, "base", str(error), "correct the config")


def _start(config: Any) -> Iterator[Finding]:
    """Examine `adapter.start` with the checks of `distill`; a run that has a checkpoint does not read it again."""
    try:
        from ..distill.start import read_start
        from ..run.checkpoint import list_checkpoints

        if list_checkpoints(Path(config.run.output_dir)):
            return
        start = read_start(config)
    except ImportError:
        return  # named among the packages
    except TeasrError as error:
        yield Finding(MISSING, "adapter.start", str(error), "correct the config")
        return
    yield Finding(OK, "adapter.start", f"{start.lora.name}: rank {start.lora.rank}, {start.lora.step} steps, it fits")


def _part(name: str, path: Path) -> Finding:
    """Examine `base.vae` or `base.prompt`."""
    fix = "python -m training cache-prompt" if name == "prompt" else "get it, or correct base.vae"
    if not path.exists():
        return Finding(MISSING, f"base.{name}", f"nothing at {path}", fix)
    try:
        if name == "prompt":
            from ..frozen_base.prompt_file import read_prompt

            read_prompt(path)
    except TeasrError as error:
        return Finding(MISSING, "base.prompt", str(error), fix)
    except ImportError:
        pass  # named among the packages
    return Finding(OK, f"base.{name}", f"{path} is there")
