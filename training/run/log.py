"""One JSON object a line in `log.jsonl`, the same values for the trackers, a short line on the terminal."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from teasr_core.errors import InputError
from teasr_core.whole_file import cause_of

from .trackers import Trackers

TINY = 1e-12  # squared errors below this count as none in the log


def gain_db(before: float, after: float) -> float:
    """By how many dB the mean squared error fell from the LQ image to the result, which compares runs."""
    return 10 * (math.log10(max(before, TINY)) - math.log10(max(after, TINY)))


class Means:
    """Means of values by name, each over the times it was met."""

    def __init__(self) -> None:
        self._met: dict[str, tuple[float, int]] = {}  # sum, count

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            total, count = self._met.get(name, (0.0, 0))
            self._met[name] = (total + value, count + 1)

    def values(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self._met.items()}


class RunLog:
    """The log of a run. A process that is not the first of several passes `is_main=False` and stays silent.

    trackers: of the run, or None. Raises InputError where nothing can be written to `folder`.
    """

    def __init__(self, folder: Path, is_main: bool = True) -> None:
        self.is_main = is_main
        self.path = folder / "log.jsonl"
        self.trackers: Trackers | None = None
        self.has_gaps = False  # lines were lost because the disk was full
        if not is_main:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(
                f"run.output_dir is {folder}, where nothing can be written ({error.strerror}): name another folder"
            ) from None

    @property
    def has_trackers(self) -> bool:
        return self.trackers is not None and bool(self.trackers.opened)

    def write(self, step: int, values: Mapping[str, float], shown: tuple[str, ...] = ()) -> None:
        """Record values of a step; the terminal shows `shown` of them, or all."""
        if not self.is_main:
            return
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}  # losses get small
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 1), "step": step, **rounded}) + "\n")
        except OSError as error:  # a full disk costs lines of the log, not the run
            if not self.has_gaps:
                self.note(f"{self.path} cannot be written ({cause_of(error)}): the log has gaps until there is room")
            self.has_gaps = True
        if self.trackers is not None:
            self.trackers.log(step, values)
        chosen = {k: v for k, v in rounded.items() if not shown or k in shown}
        line = [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items()]
        print(f"step {step}", *line, sep="  ", flush=True)

    def picture(self, name: str, step: int, path: Path) -> None:
        """Show a picture file in the trackers."""
        if self.trackers is not None:
            with Image.open(path) as image:
                self.trackers.image(name, step, np.asarray(image.convert("RGB")))

    def note(self, text: str) -> None:
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.trackers is not None:
            self.trackers.close()
