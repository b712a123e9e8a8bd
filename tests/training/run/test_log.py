"""The log of a run on a disk that is full."""

import errno
import json
import os
from pathlib import Path

import pytest

from training.run.log import RunLog


class FullBoard:
    """TensorBoard's writer on a full disk."""

    def add_scalar(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_costs_lines_of_the_log_and_not_the_run(tmp_path, capsys):
    log = RunLog(tmp_path)
    log.write(1, {"loss": 1.0})
    log.path = Path("/dev/full")
    for step in (2, 3):
        log.write(step, {"loss": 1.0})
    log.path = tmp_path / "log.jsonl"
    log.write(4, {"loss": 0.5})
    printed = capsys.readouterr()
    assert printed.err.count("cannot be written (No space left on device)") == len(printed.err.splitlines()) == 1
    assert [line.split()[1] for line in printed.out.splitlines()] == ["1", "2", "3", "4"]
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 4]


def test_a_full_disk_under_tensorboard_does_not_stop_the_run_either(tmp_path, capsys):
    log = RunLog(tmp_path)
    log.board = FullBoard()
    log.write(1, {"loss": 1.0})
    assert "No space left on device" in capsys.readouterr().err
