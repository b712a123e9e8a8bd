"""SIGTERM stops a command as Ctrl-C does: between two operations, with time to say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt in this block, once; handlers are put back afterwards.

    A launcher answers Ctrl-C with a SIGTERM of its own, which must not disturb the ending: from the first signal on
    SIGTERM is ignored. A second Ctrl-C still counts. A signal that was ignored before (nohup, a shell's background
    job) stays ignored; outside the main thread, where Python takes no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for number, handler in ((signal.SIGTERM, signal.SIG_IGN), (signal.SIGINT, signal.default_int_handler)):
            if number in before:
                signal.signal(number, handler)
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
