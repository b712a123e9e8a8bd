"""Which plan fits a card: `plan` tries a table of plans, the fastest first, and takes the first that fits.

The memory is computed from shapes (`costs`) before anything is loaded. For what shapes do not tell there is an
allowance: the CUDA context, workspaces of cuBLAS and cuDNN, and the fragmentation of the allocator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from teasr_core.errors import ConfigError, InputError

from . import costs
from .checkpointing import Checkpointing
from .config import AUTO, MemoryConfig
from .costs import OPTIMISERS, Problem
from .groups import BLOCK_GROUPS, GroupPlan

GIB = 2**30
CONTEXT_GIB = 0.8  # allowance, not measured
FRAGMENTATION = 0.04  # allowance, share of everything else


@dataclass(frozen=True)
class Line:
    """One row of the budget, in bytes. is_peak: of all rows with it, only the largest counts."""

    name: str
    how: str
    device: int
    host: int = 0
    is_peak: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """How everything is held and how much memory that takes. `apply.prepare` applies groups and checkpointing.

    optimiser: a key of `costs.OPTIMISERS`; decode_dtype: "fp32" or "bf16", the VAE's.
    """

    groups: Mapping[str, GroupPlan]
    checkpointing: Checkpointing
    optimiser: str
    decode_dtype: str
    lines: tuple[Line, ...] = ()

    @property
    def device_gib(self) -> float:
        """The peak on the device."""
        together = sum(line.device for line in self.lines if not line.is_peak)
        return (together + max((line.device for line in self.lines if line.is_peak), default=0)) / GIB

    @property
    def host_gib(self) -> float:
        return sum(line.host for line in self.lines) / GIB

    def __str__(self) -> str:
        groups = ", ".join(f"{group.replace('_', ' ')} {self.groups[group]}" for group in BLOCK_GROUPS)
        return (
            f"{groups}, checkpointing {self.checkpointing}, optimiser {self.optimiser}, decode in {self.decode_dtype}"
        )

    def format_table(self) -> str:
        """The budget as text with one line for each part, for the log before anything is loaded."""
        rows = [("", "", "GPU GiB", "host GiB")]
        for line in self.lines:
            host = f"{line.host / GIB:.2f}" if line.host else ""
            rows.append((line.name + (" *" if line.is_peak else ""), line.how, f"{line.device / GIB:.2f}", host))
        rows.append(("peak", "", f"{self.device_gib:.2f}", f"{self.host_gib:.2f}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        text = [
            f"{name:<{widths[0]}}  {how:<{widths[1]}}  {device:>{widths[2]}}  {host:>{widths[3]}}".rstrip()
            for name, how, device, host in rows
        ]
        return "\n".join([*text, "* one after the other: the largest counts"])


Ladder = tuple[tuple[tuple[GroupPlan, GroupPlan, GroupPlan], str, str], ...]

_RESIDENT, _FP8 = GroupPlan(), GroupPlan("fp8")
_STREAMED, _SWEPT = GroupPlan("fp8", "streamed"), GroupPlan("bf16", "swept")
# From the fastest to the smallest: (image stream, text stream, modulation), optimiser, dtype of the decode
LADDER: Ladder = (
    ((_RESIDENT, _RESIDENT, _RESIDENT), "adamw", "fp32"),  # 80 GB
    ((_RESIDENT, _FP8, _FP8), "adamw-8bit", "bf16"),  # 48 GB
    ((_FP8, _FP8, _SWEPT), "adamw-cpu bf16", "bf16"),  # 24 GB
    ((_FP8, _STREAMED, _SWEPT), "adamw-cpu bf16", "bf16"),  # 16 GB
    ((GroupPlan("nf4"), _STREAMED, _SWEPT), "adamw-cpu bf16", "bf16"),
)
_FILE = GroupPlan("file")
_FILE_STREAMED, _FILE_SWEPT = GroupPlan("file", "streamed"), GroupPlan("file", "swept")
# The same for a base that is kept as its file packs it: nothing is quantised anew
FILE_LADDER: Ladder = (
    ((_FILE, _FILE, _FILE), "adamw", "fp32"),
    ((_FILE, _FILE, _FILE), "adamw-8bit", "bf16"),
    ((_FILE, _FILE, _FILE_SWEPT), "adamw-cpu bf16", "bf16"),
    ((_FILE, _FILE_STREAMED, _FILE_SWEPT), "adamw-cpu bf16", "bf16"),
    ((_FILE_STREAMED, _FILE_STREAMED, _FILE_SWEPT), "adamw-cpu bf16", "bf16"),
)
# Within one row: from no recomputation to the least memory
CHECKPOINTINGS = tuple(
    Checkpointing(mode, every) for mode, every in (("none", 1), ("every", 3), ("every", 2), ("all", 1), ("offload", 1))
)


def plan(
    problem: Problem, budget_gb: float | str = AUTO, optimiser: str = AUTO, config: MemoryConfig | None = None
) -> MemoryPlan:
    """Choose the fastest plan that fits in `budget_gb`.

    Args:
        budget_gb: GiB, or "auto": what is free on the current CUDA device; without one there is no limit.
        optimiser: a key of `costs.OPTIMISERS`, or "auto".
        config: what the user has fixed.

    Raises InputError, which names the smallest plan and its memory, when nothing fits; ConfigError for an unknown name.
    """
    config = config or MemoryConfig()
    config.check()
    if optimiser not in (AUTO, *OPTIMISERS):
        raise ConfigError(f"optimiser is '{optimiser}': expected auto, {', '.join(OPTIMISERS)}")
    if problem.perceptual not in costs.LPIPS_PEAK:
        raise ConfigError(f"perceptual is '{problem.perceptual}': expected {', '.join(costs.LPIPS_PEAK)}")
    if problem.layout == "batched" and "swept" in config.modulation:
        raise ConfigError("memory.modulation is swept: the batched layout has no sweep, use sequential, or streamed")
    budget = _budget_gib(budget_gb)
    ladder = FILE_LADDER if problem.file is not None and problem.file.is_kept else LADDER
    candidates = [budgeted(candidate, problem) for candidate in _candidates(config, problem.layout, optimiser, ladder)]
    for candidate in candidates:
        if candidate.device_gib <= budget:
            return candidate
    raise InputError(_refusal(candidates, budget, problem))


def budgeted(candidate: MemoryPlan, problem: Problem) -> MemoryPlan:
    """The same plan with the lines of its budget."""
    architecture, groups = problem.architecture, dict(candidate.groups)
    lines = []
    for group, group_plan in {**groups, "rest": GroupPlan()}.items():
        device, host = costs.weight_bytes(architecture, group, group_plan, problem.file)
        lines.append(Line(group.replace("_", " "), str(group_plan), device, host))
    rows, ring = costs.sweep_bytes(problem, groups["modulation"])
    optimiser, lora = OPTIMISERS[candidate.optimiser], costs.lora_parameters(architecture, problem.rank)
    held, held_host = costs.activation_bytes(problem, candidate.checkpointing, optimiser.weight)
    decode, decode_weights = costs.decode_bytes(problem, candidate.decode_dtype)
    working = costs.working_bytes(problem, candidate.checkpointing, optimiser.weight)
    lines += [
        Line("modulation rows", "of a step", rows),
        Line("LoRA + optimiser", candidate.optimiser, int(lora * optimiser.device), int(lora * optimiser.host)),
        Line("activations", f"checkpointing {candidate.checkpointing}", held, held_host),
        Line("VAE + LPIPS weights", candidate.decode_dtype, decode_weights),
        Line("transformer at work", "one block's backward, or a score for Delta", working, is_peak=True),
        Line("decode + LPIPS", f"{candidate.decode_dtype}, one up-block at a time", decode, is_peak=True),
    ]
    if ring:
        lines.append(Line("sweep", "two blocks of modulation", ring, is_peak=True))
    scratch = costs.scratch_bytes(architecture, groups)
    fragments = int(FRAGMENTATION * replace(candidate, lines=tuple(lines)).device_gib * GIB)
    lines.append(Line("overhead", "unpacking; allowance for CUDA", scratch + fragments + int(CONTEXT_GIB * GIB)))
    return replace(candidate, lines=tuple(lines))


def _candidates(config: MemoryConfig, layout: str, optimiser: str, ladder: Ladder) -> Iterator[MemoryPlan]:
    """Each plan of the ladder once, with the fixed parts of `config`. The batched layout streams, it has no sweep."""
    seen = []
    for plans, rung_optimiser, decode_dtype in ladder:
        for checkpointing in [config.fixed_checkpointing] if config.fixed_checkpointing else CHECKPOINTINGS:
            groups = dict(zip(BLOCK_GROUPS, plans, strict=True)) | config.groups
            if layout == "batched" and groups["modulation"].placement == "swept":
                groups["modulation"] = GroupPlan(groups["modulation"].precision, "streamed")
            chosen = rung_optimiser if optimiser == AUTO else optimiser
            candidate = MemoryPlan(groups, checkpointing, chosen, decode_dtype)
            if candidate not in seen:
                seen.append(candidate)
                yield candidate


def _budget_gib(budget_gb: float | str) -> float:
    if budget_gb != AUTO:
        return float(budget_gb)
    if not torch.cuda.is_available():
        return float("inf")
    free, _ = torch.cuda.mem_get_info()
    return free / GIB


def _refusal(candidates: Sequence[MemoryPlan], budget: float, problem: Problem) -> str:
    smallest = min(candidates, key=lambda candidate: candidate.device_gib)
    return (
        f"{budget:.1f} GiB of GPU memory at {problem.resolution_px} px, batch {problem.batch}, rank {problem.rank}: "
        f"the smallest plan needs {smallest.device_gib:.1f} GiB ({smallest}); "
        "use a larger card, a smaller crop, batch or rank, leave more of [memory] to auto, or set optim.kind to "
        "adamw-cpu and adapter.dtype to bf16"
    )
