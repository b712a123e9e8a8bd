"""Several processes, each with its share of the images and its own device; they meet before the work and after it.

`accelerate launch`, `torchrun` and the like start N times the same command with RANK, WORLD_SIZE and LOCAL_RANK set.
Image k is process k mod N's. Nothing is shared but the reports: through torch's key-value store where MASTER_ADDR and
MASTER_PORT name one. No process begins before all have found their outputs free, and none ends, which would make a
launcher stop the others, before all have done their work.
"""

from __future__ import annotations

import base64
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from ..errors import InputError

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS = 0.1
LEAVE_SECONDS = 3.0
MEETING_MINUTES = 10  # to start all of them


@dataclass(frozen=True)
class Processes:
    """This process among `count`.

    local_rank: its place on this machine. can_meet: whether there is a meeting place. store: None before they `meet`.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    can_meet: bool = False
    store: Store | None = None

    def is_mine(self, index: int) -> bool:
        """Whether image `index` of all is in the share of this process."""
        return index % self.count == self.rank

    def meet(self) -> Processes:
        """Itself with the store of all, where they can meet. InputError where the others are not found."""
        return replace(self, store=_meet(self.rank, self.count)) if self.can_meet else self

    def wait_for_all(self, patience_s: float = 60 * MEETING_MINUTES) -> None:
        """Come back when every process has come here. InputError where one does not in time."""
        if self.store is None:
            return
        keys = [f"teasr/here/{k}" for k in range(self.count)]
        try:
            self.store.set(keys[self.rank], "")
            _wait(self.store, keys, patience_s)
            missing = [k for k, key in enumerate(keys) if not self.store.check([key])]
        except RuntimeError:  # whoever holds the store has ended: process 0, or the launcher
            missing = [0]
        if missing:
            raise InputError(
                f"process {self.rank} of {self.count} finds no process {missing[0]}: see why that one ended, and start "
                "all of them with the same command"
            )

    def place(self, device: torch.device) -> torch.device:
        """The accelerator of this process where only its kind was named; a numbered device and the CPU stay."""
        if self.count == 1 or device.type == "cpu" or device.index is not None:
            return device
        mine = own_device(device.type, self.local_rank, torch.accelerator.device_count())
        torch.accelerator.set_device_index(mine.index)
        return mine

    def post(self, text: str) -> None:
        """Leave this process's report for the others. Not more than once."""
        if self.store is not None:
            try:
                self.store.set(_key(self.rank), _pack(text))
            except RuntimeError:  # whoever holds the store is gone: there is nobody left to read it
                return

    def collect(self, patience_s: float, on_wait: Callable[[], None]) -> list[str]:
        """The reports posted by all, by rank; of fewer where they do not come in time or their store is gone.

        on_wait: called once if they are not all there. Waits in short sleeps, so that Ctrl-C works.
        """
        if self.store is None:
            return []
        keys = [_key(k) for k in range(self.count)]
        try:
            if not self.store.check(keys):
                on_wait()
                _wait(self.store, keys, patience_s)
            reports = [_unpack(self.store.get(key)) for key in keys if self.store.check([key])]
            self.store.set(f"{_key(self.rank)}/read", "")
            if self.rank == 0:  # it may hold the store: the last to leave
                _wait(self.store, [f"{key}/read" for key in keys], min(patience_s, LEAVE_SECONDS))
        except RuntimeError:
            return []
        return reports


def find_processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """One process, unless RANK and WORLD_SIZE say otherwise. InputError for values that contradict each other."""
    count = _whole(environment, "WORLD_SIZE", 1)
    if count == 1:
        return Processes()
    rank = _whole(environment, "RANK", -1)
    local_rank = _whole(environment, "LOCAL_RANK", rank)
    if not (0 <= rank < count and local_rank >= 0):
        raise InputError(
            f"RANK is {environment.get('RANK', 'missing')} of WORLD_SIZE {count}: expected 0 to {count - 1}; let a "
            "launcher such as `accelerate launch` set them, or unset both"
        )
    can_meet = "MASTER_ADDR" in environment and "MASTER_PORT" in environment and torch.distributed.is_available()
    return Processes(rank, count, local_rank, can_meet)


def own_device(kind: str, local_rank: int, found: int) -> torch.device:
    """Device `local_rank` of `found`. InputError when there are fewer devices than processes."""
    if local_rank >= found:
        raise InputError(
            f"process {local_rank} on this machine finds {found} {kind}: start one process for each, or name the "
            f"device to share, such as --device {kind}:0"
        )
    return torch.device(kind, local_rank)


def _meet(rank: int, count: int) -> Store:
    try:
        handshake = torch.distributed.rendezvous("env://", rank, count, timeout=timedelta(minutes=MEETING_MINUTES))
        store, _, _ = next(iter(handshake))
    except (RuntimeError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise InputError(
            f"process {rank} of {count} finds no other at MASTER_ADDR and MASTER_PORT ({cause}): start all of them, "
            "or unset the two"
        ) from None
    return store


def _wait(store: Store, keys: list[str], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not store.check(keys) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def _pack(text: str) -> str:
    """A store takes 8 MiB a value: compressed, the report of some hundred thousand images."""
    return base64.b64encode(zlib.compress(text.encode())).decode()


def _unpack(value: bytes) -> str:
    return zlib.decompress(base64.b64decode(value)).decode()


def _key(rank: int) -> str:
    return f"teasr/report/{rank}"


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    try:
        value = int(text) if text else default
    except ValueError:
        value = -1
    if name == "WORLD_SIZE" and value < 1:
        raise InputError(f"WORLD_SIZE is '{text}': expected a whole number from 1")
    return value
