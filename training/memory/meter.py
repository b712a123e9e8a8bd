"""Peak bytes of tensors by named phase: the accelerator's own counter, or the CPU allocator's events.

On the CPU the events come from torch.profiler's trace (profile_memory), the one public place that has them: every
block that is handed out or taken back, with its address. Views count once, temporaries within an operation count.
Not counted anywhere: workspaces that libraries keep for themselves, and what the allocator holds in reserve.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Phase = Callable[[str], AbstractContextManager[object]]  # phase("flow") is entered around that part of the work
OUTSIDE = "other"  # what runs in no phase

_MARK = "phase: "
_MEMORY = "[memory]"


def no_phase(_name: str) -> AbstractContextManager[object]:
    """A `Phase` that measures nothing."""
    return nullcontext()


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes on top of those alive at the start. phases: the most that was alive in each; the innermost counts.

    end: what is alive at the end, negative when more was freed than made (on the CPU, blocks that were there before the
    start are not known, so that freeing them does not count).
    """

    phases: dict[str, int]
    end: int

    @property
    def peak(self) -> int:
        return max(self.phases.values(), default=0)


def measure_memory(work: Callable[[Phase], object], device: torch.device) -> MemoryFigures:
    """Run `work` once and say what it took on the device: CUDA (ROCm) or the CPU. Phases may nest and repeat."""
    return _on_cpu(work) if device.type == "cpu" else _on_accelerator(work, device)


def _on_accelerator(work: Callable[[Phase], object], device: torch.device) -> MemoryFigures:
    torch.accelerator.synchronize(device)
    start = torch.accelerator.memory_allocated(device)
    phases: dict[str, int] = {}
    open_phases = [OUTSIDE]

    def close_stretch() -> None:
        """Credit the peak since the last call to the innermost phase that was open."""
        name = open_phases[-1]
        phases[name] = max(phases.get(name, 0), torch.accelerator.max_memory_allocated(device) - start)
        torch.accelerator.reset_peak_memory_stats(device)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        close_stretch()
        open_phases.append(name)
        try:
            yield
        finally:
            close_stretch()
            open_phases.pop()

    torch.accelerator.reset_peak_memory_stats(device)
    work(phase)
    close_stretch()
    return MemoryFigures(phases, torch.accelerator.memory_allocated(device) - start)


def _on_cpu(work: Callable[[Phase], object]) -> MemoryFigures:
    # `acc_events` would build a Python object of every operation, which takes ten times the run itself.
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it keeps the events of one cycle: there is but one
        profiler.start()
    try:
        work(lambda name: record_function(_MARK + name))
    finally:
        profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    return _figures(events)


def _figures(events: list[dict[str, Any]]) -> MemoryFigures:
    """Walk phase borders and memory events in the order of time."""
    points: list[tuple[float, int, str, dict[str, Any]]] = []
    for event in events:
        name = str(event.get("name", ""))
        if name == _MEMORY and event["args"]["Device Type"] == 0:  # the CPU
            points.append((event["ts"], event["args"]["Ev Idx"], _MEMORY, event["args"]))
        elif name.startswith(_MARK) and event.get("cat") == "user_annotation":
            index, label = event["args"]["Ev Idx"], name.removeprefix(_MARK)
            points.append((event["ts"], index, "open", {"phase": label}))
            points.append((event["ts"] + event["dur"], index, "close", {}))
    alive: dict[int, int] = {}
    phases: dict[str, int] = {}
    open_phases, total = [OUTSIDE], 0
    for _, _, kind, values in sorted(points, key=lambda point: point[:2]):
        if kind == "open":
            open_phases.append(values["phase"])
        elif kind == "close":
            open_phases.pop()
        else:
            # By address: a block of an earlier trace that was freed in between would be taken back a second time.
            size, address = int(values["Bytes"]), int(values["Addr"])
            total -= alive.pop(address, 0)
            if size > 0:
                alive[address] = size
                total += size
        phases[open_phases[-1]] = max(phases.get(open_phases[-1], 0), total)
    return MemoryFigures(phases, total)
