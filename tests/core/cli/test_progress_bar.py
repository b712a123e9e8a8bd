"""The bar of every long command: the share that is done, the time left, and silence where nobody can see it."""

import io
import re
import sys

import pytest

from teasr_core.cli import progress
from teasr_core.cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, **options):
    """What a bar of ten units writes that is advanced by two, twice."""
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(10.0, **options) as bar:
        for name in ("a.png", "b.png"):
            bar.set_description_str(name, refresh=False)
            bar.update(2.0)
    return "" if stream is None else stream.getvalue()


def test_a_log_gets_whole_lines(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    text = shown(monkeypatch, io.StringIO())
    first, second = (re.escape(name) for name in ("a.png", "b.png"))
    assert re.search(rf"^20 %, {first}, [\d:]+ left\n40 %, {second}, [\d:]+ left\n", text, re.M)
    assert "\r" not in text


def test_a_terminal_gets_one_line_that_is_drawn_again_and_wiped_away(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_DRAWINGS", 0.0)
    text = shown(monkeypatch, Terminal())
    assert "[########            ]  40 %, b.png" in text and "\n" not in text
    assert text.rstrip("\r").split("\r")[-1].strip() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_command_that_is_done_at_once_shows_nothing(monkeypatch, stream):
    assert shown(monkeypatch, stream).strip() == ""


def test_without_stderr_or_when_it_is_not_wanted_nothing_is_written(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert shown(monkeypatch, None) == ""
    assert shown(monkeypatch, io.StringIO(), is_shown=False) == ""
