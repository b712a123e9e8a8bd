"""How the threads of a command wait for one another. It must be settled before torch is imported."""

from __future__ import annotations

import os

SPINS = "10000"  # about 0.2 ms; libgomp's own default is 300000


def wait_briefly() -> None:
    """Let a thread of libgomp, which PyTorch uses on Linux, sleep soon when it has to wait for another.

    By default it keeps its core busy for several milliseconds, at the end of every operation. Where another program
    uses that core, the thread that is waited for does not get on: a restoration took 8 to 27 times as long, with short
    waits 4 to 5 times (docs/log/speed.md#waiting-on-cores-that-others-use). On an idle machine both take the same.
    libgomp reads the variable when it is loaded (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). What
    the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
