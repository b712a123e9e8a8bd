"""The finding about memory: how `distill` would hold the base of a config on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teasr_core.errors import TeasrError

from .finding import MISSING, NOTE, OK, Finding

if TYPE_CHECKING:
    from ..memory.planner import MemoryPlan

NAME = "memory plan"
PINNED_SHARE = 1.25  # of the host memory of a plan: pinned buffers are rounded up to a power of two


def plan_findings(config: Any) -> Iterator[Finding]:
    """The plan of `[memory]`, from the shapes in the base's header; nothing where the base cannot be read.

    `base_findings` has named by then what keeps the base from being read.
    """
    if config.adapter.trainable == "all":  # the planner's budget is that of a LoRA's training
        return
    try:
        import torch

        from ..memory.planner import GIB

        planned = _planned(config)
    except ImportError:
        return  # named among the packages
    except TeasrError as error:
        yield Finding(MISSING, NAME, str(error), "correct [memory] or what the sentence names")
        return
    if planned is None:
        return
    found, packing = planned
    if config.memory.vram_gb:
        room = f"for {config.memory.vram_gb:g} GiB on the GPU"
    elif torch.cuda.is_available():
        room = f"for the {torch.cuda.mem_get_info()[0] / GIB:.1f} GiB that the GPU has free"
    else:
        room = "there is no GPU here, so that nothing limits it"
    text = f"{room}: {packing}{found}; GPU {found.device_gib:.1f} GiB, host {found.host_gib:.1f} GiB"
    free_gib = _free_host_gib()
    if free_gib is not None and PINNED_SHARE * found.host_gib > free_gib:
        text += f", which with room for pinned buffers is more than the {free_gib:.1f} GiB that are free"
        yield Finding(NOTE, NAME, text, "end other programs, or take a base file that is packed smaller")
        return
    yield Finding(OK, NAME, text)


def _planned(config: Any) -> tuple[MemoryPlan, str] | None:
    """The plan, and what it does with a file that packs its weights; None where the base cannot be read.

    TeasrError for what the trainer would refuse while it plans.
    """
    from teasr_core.weight_files.base_file import read_base, shipped_base
    from teasr_core.weight_files.file_kind import Kind, detect
    from teasr_core.weight_files.qwen_file import read_qwen

    from ..frozen_base.qwen_base import check_fingerprint, qwen_plan
    from ..frozen_base.settings import memory_plan

    path = Path(config.base.path)
    source = base = None
    try:
        if config.base.path == "builtin":
            base = shipped_base()
        else:
            kind = detect(path, "transformer")
            is_qwen = kind.kind is Kind.QWEN_TRANSFORMER or kind.layout == "GGUF"
            source, base = (read_qwen(path), None) if is_qwen else (None, read_base(path))
    except TeasrError:
        return None
    if source is None:
        assert base is not None
        return memory_plan(config, base.architecture, len(base.prompt_embeds)), ""
    check_fingerprint(source)
    plan = qwen_plan(source, config, _prompt_tokens(config))
    if not source.packings:
        return plan, ""
    kept = [name.replace("_", " ") for name, group in plan.groups.items() if group.precision == "file"]
    if not kept:
        return plan, f"the file's weights ({source.kind.storage}) are unpacked while they are read, then "
    which = "all blocks" if len(kept) == len(plan.groups) else " and ".join(kept)
    return plan, f"{which} as the file packs them ({source.kind.storage}), "


def _prompt_tokens(config: Any) -> int:
    """The length of the prompt's embedding; what is reckoned with for the empty one where it cannot be read."""
    from ..bench.settings import QWEN_PROMPT_TOKENS
    from ..distill.start import read_start
    from ..frozen_base.prompt_file import read_prompt

    try:
        start = read_start(config).lora.prompt_embeds if config.adapter.start else None
        return len(read_prompt(Path(config.base.prompt)) if start is None else start)
    except (TeasrError, OSError):
        return QWEN_PROMPT_TOKENS


def _free_host_gib() -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available / 2**30
