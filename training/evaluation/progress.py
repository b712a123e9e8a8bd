"""One line on the terminal while an evaluation runs: what it does, how far it is, how long it will still take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

QUIET_SECONDS = 30.0  # between two lines where nobody watches a terminal


class Progress:
    """Work is counted in any unit that is proportional to time; the estimate is the mean rate so far.

    On a terminal one line is overwritten; elsewhere a line is written every `QUIET_SECONDS`.
    """

    def __init__(self, total: float, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done = total, 0.0
        self._stream, self._clock = stream or sys.stderr, clock
        self._start = self._last = clock()
        self._width = 0

    def advance(self, work: float, text: str) -> None:
        """`work` more is done; `text` says what comes to be shown."""
        self.done += work
        now = self._clock()
        line = f"eval {100 * self.done / self.total:.0f} %, {self._left(now)} | {text}"
        if self._stream.isatty():
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
            self._stream.flush()
        elif now - self._last >= QUIET_SECONDS:
            self._last = now
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0

    def _left(self, now: float) -> str:
        seconds = (now - self._start) * (self.total - self.done) / max(self.done, 1e-9)
        return f"ETA {duration(seconds)}"


def duration(seconds: float) -> str:
    """E.g. "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
