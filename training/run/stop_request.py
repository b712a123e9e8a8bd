"""Ctrl-C, SIGTERM and a terminal that is closed: a trainer finishes its step, saves, and stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from teasr_core.cli.terminal import STOP_SIGNALS


class StopRequest:
    """A context in which the signals do nothing but set `is_made`; handlers are put back afterwards.

    A signal that was ignored before stays ignored (nohup, a shell's background job). Outside the main thread, where
    Python takes no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.is_made = False

    def __enter__(self) -> StopRequest:
        is_main = threading.current_thread() is threading.main_thread()
        heeded = [n for n in STOP_SIGNALS if is_main and signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._make) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _make(self, _number: int, _frame: FrameType | None) -> None:
        self.is_made = True
