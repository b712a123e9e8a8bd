"""What a run prints and logs: a terminal that is gone, closed, full or absent ends nothing, nor does a full disk."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from helpers.tiny.distill_run import log_lines, newest, write_toml
from teasr_core.cli.terminal import STOP_SIGNALS
from training.cli.commands import main
from training.config.shared import RunConfig
from training.run.log import RunLog
from training.run.stop_request import StopRequest
from training.run.trackers import Trackers


def without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


BROKEN = {
    "absent": lambda: None,
    "without a reader": without_reader,
    "full": lambda: open("/dev/full", "w", encoding="utf-8"),  # noqa: SIM115 (the test closes it)
}


@pytest.mark.parametrize("kind", ["absent", "without a reader", "full"])
def test_a_run_goes_on_whatever_its_terminal_does(distillation, tmp_path, monkeypatch, kind):
    if kind == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no device that is always full")
    config = distillation(train={"steps": 2}, run={"log_every": 1})
    toml = str(write_toml(tmp_path / "run.toml", config))
    streams = [BROKEN[kind]() for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(["distill", toml]) == 0
    newest(config, 2)
    assert [line["step"] for line in log_lines(config)] == [1, 2]
    for stream in filter(None, streams):
        stream.close()  # what it still held goes nowhere, without an error


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.is_made
        os.kill(os.getpid(), number)
        assert request.is_made
    assert signal.getsignal(number) == before


def test_a_closed_terminal_is_among_them_where_there_are_any():
    assert (getattr(signal, "SIGHUP", None) in STOP_SIGNALS) == hasattr(signal, "SIGHUP")


def test_a_signal_that_was_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not request.is_made
    finally:
        signal.signal(signal.SIGTERM, before)


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
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path)
    log.trackers = Trackers(RunConfig(output_dir=str(tmp_path)), {}, log.note)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log.trackers.opened["tensorboard"].tracker.add_scalar = full  # of the writer
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    assert capsys.readouterr().err == "tensorboard lacks values of this run (No space left on device)\n"
