"""The progress bar: the share that is done, the time left, and silence where nobody can see it."""

import io
import re
import sys

import pytest

from training.run import progress
from training.run.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, **options):
    """What a bar of ten units writes that is advanced by two, twice."""
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(10.0, "eval", **options) as bar:
        for name in ("a.png", "b.png"):
            bar.set_postfix_str(name, refresh=False)
            bar.update(2.0)
    return "" if stream is None else stream.getvalue()


def test_a_log_gets_whole_lines(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    lines = [line.strip("\r ") for line in shown(monkeypatch, io.StringIO()).splitlines()]
    found = [line for line in lines if line]
    assert re.fullmatch(r"eval 20 %, [\d:]+ left, a\.png", found[1])
    assert re.fullmatch(r"eval 40 %, [\d:]+ left, b\.png", found[2])


def test_a_terminal_gets_one_line_that_is_drawn_again(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_DRAWINGS", 0.0)
    text = shown(monkeypatch, Terminal())
    assert "[####" in text and "eval 40 %" in text and text.count("\n") == 1


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_command_that_is_done_at_once_shows_nothing(monkeypatch, stream):
    assert shown(monkeypatch, stream) == ""


def test_without_stderr_or_when_it_is_not_wanted_nothing_is_written(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert shown(monkeypatch, None) == ""
    assert shown(monkeypatch, io.StringIO(), is_shown=False) == ""
