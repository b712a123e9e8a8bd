"""The progress of a run: the shares of images, steps and tiles add up, and a terminal is left clean."""

import io
import os
import struct
from contextlib import suppress

import pytest

from helpers.tiny import model as tiny
from teasr_core.cli import progress as progress_module
from teasr_core.cli.progress import Progress, clock_time
from teasr_core.cli.terminal import LastingStream
from teasr_core.sampling.schedule import manual_plan


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """What is on the last line after all carriage returns."""
        line = ""
        for part in self.getvalue().split("\n")[-1].split("\r"):
            line = part + line[len(part) :]
        return line.rstrip()


@pytest.fixture(autouse=True)
def _drawn_at_once(monkeypatch):
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_DRAWINGS", 0.0)


def test_the_share_is_that_of_work_steps_and_tiles():
    progress = Progress([100.0, 300.0], steps=4, stream=Terminal())
    assert progress.fraction == 0
    progress.start("a.png")
    progress.on_tile(1, 2)
    assert progress.fraction == pytest.approx(0.25 * (0.5 / 4))
    progress.on_step(0, None)
    assert progress.fraction == pytest.approx(0.25 * 0.25)
    progress.start("b.png")  # whether a.png was restored or refused
    assert progress.fraction == pytest.approx(0.25)
    for step in range(4):
        progress.on_step(step, None)
    assert progress.fraction == pytest.approx(1.0)


def test_the_share_never_falls():
    progress = Progress([5.0, None, 1.0], steps=3, stream=Terminal())
    seen = [progress.fraction]
    for name in "abc":
        progress.start(name)
        for step in range(3):
            for tile in range(4):
                progress.on_tile(tile, 4)
                seen.append(progress.fraction)
            progress.on_step(step, None)
            seen.append(progress.fraction)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)


def test_steps_that_are_chosen_for_each_image():
    """What is tried to choose them does not count, and the share does not fall when they are known."""
    progress = Progress([1.0, 1.0], steps=None, stream=Terminal())
    seen = []
    for name, steps in (("a", 2), ("b", 8)):
        progress.start(name)
        for tile in range(4):
            progress.on_tile(tile, 4)
            seen.append(progress.fraction)
        assert "choosing the steps" in progress.text()
        progress.on_plan(manual_plan(steps))
        for step in range(steps):
            seen.append(progress.fraction)
            assert f"step {step + 1} of {steps}" in progress.text()
            progress.on_step(step, None)
    assert seen == sorted(seen)
    assert progress.fraction == pytest.approx(1.0)


def test_several_plans_for_one_image():
    progress = Progress([1.0], steps=3, stream=Terminal())
    progress.start("a")
    for steps in (1, 2):
        progress.on_plan(manual_plan(steps))
        for step in range(steps):
            progress.on_step(step, None)
        progress.done_steps += steps
        assert progress.fraction == pytest.approx(progress.done_steps / 3)


def test_time_before_the_clock_begins_does_not_count():
    progress = Progress([1.0], steps=2, stream=Terminal())
    now = progress.bar.start_t
    progress.bar._time = lambda: now + 100
    progress.begin_clock()
    assert progress.bar.start_t == pytest.approx(now + 100)
    progress.close()


def test_a_bar_on_a_terminal():
    terminal = Terminal()
    progress = Progress([1.0, 1.0], steps=2, stream=terminal)
    progress.start("a.png")
    progress.on_tile(3, 12)
    text = terminal.screen()
    assert text.startswith(f"[#{' ' * 19}]   6 %, image 1 of 2 (a.png), step 1 of 2, tile 4 of 12, ")
    progress.start("b")
    assert "image 2 of 2 (b), step 1 of 2, " in terminal.screen() and "tile" not in terminal.screen()
    progress.close()
    assert terminal.screen() == ""
    assert "\n" not in terminal.getvalue()


def test_lines_stand_above_the_bar(capsys):
    terminal = Terminal()
    progress = Progress([1.0], steps=1, stream=terminal)
    progress.start("a.png")
    progress.say("written")
    assert terminal.screen() == ""
    progress.on_tile(0, 4)
    assert terminal.screen().startswith("[")
    progress.complain("bad")
    assert terminal.screen() == ""
    assert capsys.readouterr() == ("written\n", "bad\n")
    progress.close()


def test_a_bar_never_wraps():
    """On a real terminal 40 columns wide, as the commands write to it."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 40, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        progress = Progress([1.0, 1.0], steps=1, stream=LastingStream(terminal))
        progress.start("a" * 100)
        progress.close()
    drawn = b""
    with suppress(OSError):  # the end of what a terminal was sent
        while part := os.read(ours, 4096):
            drawn += part
    os.close(ours)
    drawn = drawn.decode()
    assert "image 1 o" in drawn and max(map(len, drawn.split("\r"))) < 40


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 0.0)
    log = io.StringIO()
    progress = Progress([1.0] * 4, steps=10, stream=log)
    for name in "abcd":
        progress.start(name)
        for step in range(10):
            progress.on_step(step, None)
    progress.close()
    assert any(line.startswith("38 %, image 2 of 4 (b), step 6 of 10, ") for line in log.getvalue().splitlines())
    assert "\r" not in log.getvalue()


def test_a_log_is_not_flooded():
    log = io.StringIO()
    progress = Progress([1.0], steps=1, stream=log)
    progress.start("a")
    progress.on_tile(1, 2)
    progress.close()
    assert log.getvalue().strip() == ""


def test_quiet(capsys):
    for stream in (Terminal(), io.StringIO()):
        progress = Progress([1.0], steps=1, is_shown=False, stream=stream)
        progress.start("a.png")
        progress.on_tile(0, 2)
        progress.say("written")
        progress.complain("bad")
        progress.close()
        assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "bad\nbad\n")


def test_times():
    assert [clock_time(s) for s in (0, 7.4, 59.6, 754, 3723)] == ["0:00", "0:07", "1:00", "12:34", "1:02:03"]


@pytest.mark.usefixtures("tiny_model")
def test_a_run_reports_every_tile_and_step(tmp_path, run, monkeypatch):
    """Two steps over three tiles of the one image, in their order."""
    seen = []
    for name in ("on_tile", "on_step"):
        original = getattr(Progress, name)

        def record(self, first, second, name=name, original=original):
            seen.append((name, first))
            original(self, first, second)

        monkeypatch.setattr(Progress, name, record)
    source = tiny.write_picture(tmp_path / "in.png", 3, 8, 16)
    options = ("--scale", "2", "--steps", "2", "--tile-px", "16", "--overlap-px", "8", "--dtype", "fp32")
    assert run("upscale", source, "-o", tmp_path / "out.png", *options)[0] == 0
    step = [("on_tile", 0), ("on_tile", 1), ("on_tile", 2)]
    assert seen == [*step, ("on_step", 0), *step, ("on_step", 1)]
