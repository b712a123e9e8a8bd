"""Items within a budget of time: each in a process of its own, saved when it is done, done items not run again.

The file holds {"machine", "is_tiny", "items": {name: {"state", "seconds", "figures" or "reason"}}}. A state is "done",
"skipped" (this machine cannot do it), "failed" or "late" (stopped by its timeout). When the command is run again, done
items stay as they are, and the others are tried after those that were never tried: an item that fails each time
does not keep the rest from running. What no time was left for is in no file and named at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teasr_core.errors import InputError
from teasr_core.whole_file import write_whole

from .items import TIMEOUT_FACTOR, Item

ROOT = Path(__file__).parents[2]
LEAST_TIMEOUT = 120.0  # seconds; starting a process with torch takes many on a cold disk
TINY_TIMEOUT = 600.0  # of any item at tiny size: a busy CPU may take minutes to start a process
MACHINE_SECONDS = 20.0


@dataclass
class Session:
    """The results of this machine so far, in `path`. deadline: of `time.monotonic`, in seconds."""

    path: Path
    device: str
    is_tiny: bool
    deadline: float
    command_of: Callable[[Item, str, bool], Sequence[str]]
    note: Callable[[str], None] = print
    machine: dict[str, Any] = field(default_factory=dict)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)

    def open(self) -> None:
        """Look at the machine and read the file. InputError where the file is of another machine or size."""
        item = Item("machine", "the machine", "", "machine", MACHINE_SECONDS, 0)
        found = self._run(item, max(1.0, self._left()))
        if found["state"] != "done":
            raise InputError(f"the device {self.device} cannot be used ({found['reason']}): give --device")
        self.machine = found["figures"]
        if not self.path.is_file():
            return
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            name, is_tiny, items = saved["machine"]["name"], saved["is_tiny"], dict(saved["items"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self.path} holds no results of this command: give another --out") from None
        if (name, is_tiny) != (self.machine["name"], self.is_tiny):
            size = "tiny" if is_tiny else "full"
            raise InputError(
                f"{self.path} holds results of '{name}' at {size} size, this is '{self.machine['name']}'"
                f"{' at tiny size' if self.is_tiny else ''}: give another --out"
            )
        self.items = items

    def run(self, items: Sequence[Item]) -> dict[str, str]:
        """Run what is not done and fits, in this order. Returns why each of the others was left out, by name."""
        left_out: dict[str, str] = {}
        for item in sorted(items, key=lambda item: self._state(item) not in ("", "done")):
            if self._state(item) == "done":
                self.note(f"{item.name}: done before")
                continue
            estimate = item.seconds(self.machine["tflops"], self.is_tiny)
            refusal = "" if self.is_tiny else item.refusal(self.machine["free_gib"], self.machine["host_gib"])
            if refusal:
                left_out[item.name] = refusal
            elif estimate > self._left():
                left_out[item.name] = f"takes about {estimate:.0f} s, {max(0.0, self._left()):.0f} s are left"
            else:
                self.note(f"{item.name}: {item.title}, about {estimate:.0f} s")
                enough, left = max(LEAST_TIMEOUT, TIMEOUT_FACTOR * estimate), self._left()
                enough = TINY_TIMEOUT if self.is_tiny else enough
                found = self._run(item, min(enough, left))
                if found["state"] == "late" and left < enough:
                    found["reason"] += f", all that was left: give it more with --minutes and --only {item.name}"
                self.items[item.name] = found
                self._save()
            if item.name in left_out:
                self.note(f"{item.name}: left out, it {left_out[item.name]}")
        return left_out

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _state(self, item: Item) -> str:
        """That of an earlier run or of this one; empty for an item that was never tried."""
        return str(self.items.get(item.name, {}).get("state", ""))

    def _run(self, item: Item, timeout: float) -> dict[str, Any]:
        started = time.monotonic()
        command = self.command_of(item, self.device, self.is_tiny)
        try:
            done = run_limited(command, timeout)
        except subprocess.TimeoutExpired:  # the process is killed by then
            return self._told(item, started, {"state": "late", "reason": f"stopped after {timeout:.0f} s"})
        except OSError as error:
            return self._told(item, started, {"state": "failed", "reason": f"{command[0]} does not start ({error})"})
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        figures: Mapping[str, Any] = json.loads(lines[-1]) if lines and not done.returncode else {}
        if not figures:
            return self._told(item, started, {"state": "failed", "reason": failure(done)})
        if "skipped" in figures:
            return self._told(item, started, {"state": "skipped", "reason": figures["skipped"]})
        return self._told(item, started, {"state": "done", "figures": figures})

    def _told(self, item: Item, started: float, result: dict[str, Any]) -> dict[str, Any]:
        seconds = time.monotonic() - started
        reason = f", {result['reason']}" if "reason" in result else ""
        self.note(f"{item.name}: {result['state']} in {seconds:.0f} s{reason}")
        return result | {"seconds": round(seconds, 1)}

    def _save(self) -> None:
        values = {"machine": self.machine, "is_tiny": self.is_tiny, "items": self.items}
        write_whole((json.dumps(values, indent=1) + "\n").encode(), self.path)


def run_limited(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a process with its output captured. It and all that it started are killed after `timeout` seconds, or when
    this process is interrupted: a child that lived on would keep the card's memory and the pipes. TimeoutExpired.
    """
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:  # Windows
                process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """What a process that failed said last, in one line."""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}; signal 9 is what a machine sends whose memory has run out"
    lines = done.stderr.strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {done.returncode}"


def command_of(item: Item, device: str, is_tiny: bool, comfyui: Path, comfyui_python: str) -> list[str]:
    """The process of an item: this Python, or ComfyUI's for the item that measures its nodes."""
    tiny = ["--tiny"] if is_tiny else []
    if item.work == "comfyui":
        script = Path(__file__).with_name("comfyui.py")
        return [comfyui_python, str(script), "--comfyui", str(comfyui), "--device", device, *tiny]
    options = ["--options", json.dumps(dict(item.options))]
    return [sys.executable, "-m", "benchmarks.gpu_check.work", item.work, "--device", device, *tiny, *options]
