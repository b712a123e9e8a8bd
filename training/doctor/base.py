"""Findings about the base of a distillation: whether it exists, can be read and fits the settings."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teasr_core.errors import TeasrError

from .finding import MISSING, OK, Finding
from .memory_plan import plan_findings

if TYPE_CHECKING:
    from teasr_core.weight_files.base_file import BaseFile
    from teasr_core.weight_files.qwen_file import QwenSource


def base_findings(config: Any) -> Iterator[Finding]:
    """Examine transformer, VAE and prompt; a finding has the text of the error that `distill` would raise."""
    base = yield from _opened(config.base.path)
    if base is not None:
        yield from _settings(config, base)
    for name in ("vae", "prompt"):
        if getattr(config.base, name):
            yield _part(name, Path(getattr(config.base, name)))
    if config.adapter.start:
        yield from _start(config)
    if base is not None:
        yield from plan_findings(config, base)


def _opened(name: str) -> Generator[Finding, None, BaseFile | QwenSource | None]:
    """Open what `base.path` names; None, mostly with a finding, where it cannot be opened here."""
    path, is_builtin = Path(name), name == "builtin"  # `builtin_finding` speaks of the shipped base
    if not is_builtin and not path.exists():
        yield Finding(MISSING, "base.path", f"nothing at {path}", "get it, or correct base.path")
        return None
    try:
        from teasr_core.weight_files.base_file import read_base, shipped_base
        from teasr_core.weight_files.file_kind import detect
        from teasr_core.weight_files.qwen_file import read_qwen

        if is_builtin:
            return shipped_base()
        base = read_qwen(path) if detect(path, "transformer").is_qwen else read_base(path)
    except TeasrError as error:
        if is_builtin:
            yield Finding(MISSING, "base", str(error), "correct the config")
        else:
            yield Finding(MISSING, "base.path", str(error), "get it, or correct base.path")
        return None
    except ImportError:
        if not is_builtin:
            yield Finding(OK, "base.path", f"{path} is there, not read without its packages")
        return None
    yield Finding(OK, "base.path", f"{path} is there")
    return base


def _settings(config: Any, base: BaseFile | QwenSource) -> Iterator[Finding]:
    """A finding for a setting that does not fit the base; none where all settings do."""
    try:
        from teasr_core.weight_files.base_file import BaseFile

        from ..frozen_base.settings import base_dtype, check_dtc

        if isinstance(base, BaseFile):
            check_dtc(base, config)
            base_dtype(config, "fp32")
        else:
            from ..frozen_base.qwen_base import check_settings

            check_settings(Path(config.base.path), config, has_prompt=bool(config.adapter.start))
            base_dtype(config, "bf16")
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
