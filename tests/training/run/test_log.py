"""What a run prints and logs: a terminal that is gone, closed, full or absent ends nothing, nor does a full disk."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from training.run.log import RunLog, print_line
from training.run.stop_request import SIGNALS, StopRequest


@pytest.fixture
def without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


def test_a_stream_without_a_reader_is_silent_from_then_on(without_reader):
    for _ in range(3):
        print_line("a line", without_reader)
    without_reader.write("what Python writes at its end")
    without_reader.flush()  # goes nowhere, without an error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_full_stream():
    with open("/dev/full", "w", encoding="utf-8") as stream:
        print_line("a line", stream)
        print_line("a line", stream)


def test_a_closed_and_an_absent_stream(tmp_path):
    stream = open(tmp_path / "file", "w", encoding="utf-8")  # noqa: SIM115 (closed on purpose)
    stream.close()
    print_line("a line", stream)
    print_line("a line", None)


def test_names_that_a_stream_cannot_hold_are_shown_all_the_same(tmp_path):
    with open(tmp_path / "file", "w", encoding="ascii") as stream:
        print_line("照.png", stream)
    assert (tmp_path / "file").read_text() == "\\u7167.png\n"


def test_a_run_is_logged_whatever_its_terminal_does(tmp_path, monkeypatch, without_reader):
    log = RunLog(tmp_path / "run")
    for stream in (without_reader, None):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        log.note("a note")
        log.write(1, {"loss": 0.5})
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.5]


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.is_made
        os.kill(os.getpid(), number)
        assert request.is_made
    assert signal.getsignal(number) == before


def test_a_closed_terminal_is_among_them_where_there_are_any():
    assert (getattr(signal, "SIGHUP", None) in SIGNALS) == hasattr(signal, "SIGHUP")


def test_a_signal_that_was_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not request.is_made
    finally:
        signal.signal(signal.SIGTERM, before)


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
