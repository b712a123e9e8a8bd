"""Processes that begin with the trainer imported: forks of one helper, started in milliseconds and as easily killed.

forks = Forks(log)                              # seconds, once
pid = forks.start("module:function", 1, "two")  # in a process of its own, with JSON values
os.kill(pid, signal.SIGKILL)
forks.wait(pid)                                 # its exit code: -9
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
PRELOADED = (
    "accelerate",
    "peft.tuners.lora",
    "training.distill.trainer",
    "training.pretrain.trainer",
    "training.cli.commands",
)


class Forks:
    """The helper process.

    log: file for what it and its children print. modules: what it imports besides, once for all children.
    """

    def __init__(self, log: Path, *modules: str) -> None:
        self.log = log
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        with log.open("w") as output:
            self._helper = subprocess.Popen(
                [sys.executable, "-u", "-m", "helpers.forks", *modules],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                text=True, bufsize=1, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def start(self, function: str, *arguments: Any, env: Mapping[str, str] | None = None) -> int:
        """Process id of a fork that calls `module:function`. It exits with the number returned, 0 for None, or with 1
        after an exception."""
        return self._ask({"call": function, "arguments": arguments, "env": dict(env or {})})

    def wait(self, pid: int) -> int:
        """The exit code of a fork, -N when signal N ended it."""
        return self._ask({"wait": pid})

    def running(self, pid: int) -> bool:
        return bool(self._ask({"running": pid}))

    def close(self) -> None:
        assert self._helper.stdin is not None and self._helper.stdout is not None
        self._helper.kill()
        self._helper.wait()
        self._helper.stdin.close()
        self._helper.stdout.close()

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._helper.stdin is not None and self._helper.stdout is not None
        self._helper.stdin.write(json.dumps(request) + "\n")
        answer = self._helper.stdout.readline()
        assert answer, f"the helper is gone: {self.log.read_text()[-2000:]}"
        return int(answer)


def _serve() -> None:
    """Answer requests, a line each. One thread, and nothing of torch runs here before a fork."""
    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    codes: dict[int, int] = {}  # of forks that have ended
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "call" in request:
            answer = os.fork()
            if answer == 0:
                _child(request)
        elif "wait" in request:
            answer = _code(codes, request["wait"], 0)
        else:
            answer = int(_code(codes, request["running"], os.WNOHANG) is None)
        print(answer, flush=True)


def _code(codes: dict[int, int], pid: int, options: int) -> int | None:
    """The exit code of a fork; None for one that runs, with WNOHANG."""
    if pid not in codes:
        ended, status = os.waitpid(pid, options)
        if not ended:
            return None
        codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]


def _child(request: Mapping[str, Any]) -> None:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # the helper's own output carries its answers
        os.environ.update(request["env"])
        module, function = request["call"].split(":")
        status = getattr(importlib.import_module(module), function)(*request["arguments"]) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
