"""Ctrl-C and SIGTERM as a wish: a trainer finishes its step, saves, and stops."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context in which the signals do nothing but set `is_made`; handlers are put back afterwards."""

    def __init__(self) -> None:
        self.is_made = False

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._make) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _make(self, _number: int, _frame: FrameType | None) -> None:
        self.is_made = True
