"""The finding about memory: how `distill` would hold the base of a config on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teasr_core.errors import TeasrError

from .finding import MISSING, NOTE, OK, Finding
from .machine import GIB, host_memory

if TYPE_CHECKING:
    from teasr_core.weight_files.base_file import BaseFile
    from teasr_core.weight_files.qwen_file import QwenSource

    from ..memory.planner import MemoryPlan

NAME = "memory plan"
PINNED_SHARE = 1.25  # of the host memory of a plan: pinned buffers are rounded up to a power of two


def plan_findings(config: Any, base: BaseFile | QwenSource) -> Iterator[Finding]:
    """The plan of `[memory]`, from the shapes in the base's header."""
    if config.adapter.trainable == "all":  # the planner's budget is that of a LoRA's training
        return
    try:
        import torch

        found, packing = _planned(config, base)
    except ImportError:
        return  # named among the packages
    except TeasrError as error:
        yield Finding(MISSING, NAME, str(error), "correct [memory] or what the sentence names")
        return
    if config.memory.vram_gb:
        room = f"for {config.memory.vram_gb:g} GiB on the GPU"
    elif torch.cuda.is_available():
        room = f"for the {torch.cuda.mem_get_info()[0] / GIB:.1f} GiB that the GPU has free"
    else:
        room = "there is no GPU here, so that nothing limits it"
    text = f"{room}: {packing}{found}; GPU {found.device_gib:.1f} GiB, host {found.host_gib:.1f} GiB"
    host = host_memory()
    if host is not None and PINNED_SHARE * found.host_gib > host.available / GIB:
        text += f", which with room for pinned buffers is more than the {host.available / GIB:.1f} GiB that are free"
        yield Finding(NOTE, NAME, text, "end other programs, or take a base file that is packed smaller")
        return
    yield Finding(OK, NAME, text)


def _planned(config: Any, base: BaseFile | QwenSource) -> tuple[MemoryPlan, str]:
    """The plan, and what it does with a file that packs its weights.

    TeasrError for what the trainer would refuse while it plans.
    """
    from teasr_core.weight_files.base_file import BaseFile

    from ..frozen_base.qwen_base import check_fingerprint, qwen_plan
    from ..frozen_base.settings import memory_plan

    if isinstance(base, BaseFile):
        return memory_plan(config, base.architecture, len(base.prompt_embeds)), ""
    check_fingerprint(base)
    plan = qwen_plan(base, config, _prompt_tokens(config))
    if not base.packings:
        return plan, ""
    kept = [name.replace("_", " ") for name, group in plan.groups.items() if group.precision == "file"]
    if not kept:
        return plan, f"the file's weights ({base.kind.storage}) are unpacked while they are read, then "
    which = "all blocks" if len(kept) == len(plan.groups) else " and ".join(kept)
    return plan, f"{which} as the file packs them ({base.kind.storage}), "


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
