"""Peak bytes of tensors in each named phase, by the accelerator's counter or by the events of the CPU allocator.

On the CPU the events come from the trace of torch.profiler (profile_memory), the only public source of them: every
block that is allocated or freed, with its address. Views are not counted twice, temporaries within an operation are
counted. Workspaces that libraries keep for themselves and the reserve of the allocator are never counted.
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

Phase = Callable[[str], AbstractContextManager[object]]  # phase("flow") is a context around that part of the work
OUTSIDE = "other"  # the name of all that runs outside of the phases

_MARK = "phase: "
_MEMORY = "[memory]"


def no_phase(_name: str) -> AbstractContextManager[object]:
    """A `Phase` that measures nothing."""
    return nullcontext()


@dataclass(frozen=True)
class MemoryReport:
    """Bytes in addition to those at the start. phases: the peak in each; of nested phases the innermost counts.

    end: the bytes at the end, negative when more was freed than allocated. On the CPU, freeing a block that was there
    before the start does not count, because its size is not known.
    """

    phases: dict[str, int]
    end: int

    @property
    def peak(self) -> int:
        return max(self.phases.values(), default=0)


def measure_memory(work: Callable[[Phase], object], device: torch.device) -> MemoryReport:
    """Run `work` once and measure the memory it takes on the device, CUDA (ROCm) or CPU. Phases may nest and repeat."""
    return _on_cpu(work) if device.type == "cpu" else _on_accelerator(work, device)


def _on_accelerator(work: Callable[[Phase], object], device: torch.device) -> MemoryReport:
    torch.accelerator.synchronize(device)
    start = torch.accelerator.memory_allocated(device)
    phases: dict[str, int] = {}
    open_phases = [OUTSIDE]

    def close_stretch() -> None:
        """Count the peak since the last call for the innermost open phase."""
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
    return MemoryReport(phases, torch.accelerator.memory_allocated(device) - start)


def _on_cpu(work: Callable[[Phase], object]) -> MemoryReport:
    # `acc_events` would build a Python object for every operation, which takes ten times as long as the run itself.
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the events of only one cycle are kept: there is only one
        profiler.start()
    try:
        work(lambda name: record_function(_MARK + name))
    finally:
        profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    return _report(events)


def _report(events: list[dict[str, Any]]) -> MemoryReport:
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
            # By address, because a block that was freed before the trace began may be reported as freed once more.
            size, address = int(values["Bytes"]), int(values["Addr"])
            total -= alive.pop(address, 0)
            if size > 0:
                alive[address] = size
                total += size
        phases[open_phases[-1]] = max(phases.get(open_phases[-1], 0), total)
    return MemoryReport(phases, total)
