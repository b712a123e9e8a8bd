"""The progress line: shares and times add up, a terminal is left clean, a log file is not flooded."""

import io

import pytest

from helpers.tiny import model as tiny
from teasr_core.cli.progress import BAR_WIDTH, Progress, clock_time
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


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_the_share_is_that_of_work_steps_and_tiles(clock):
    progress = Progress([100.0, 300.0], steps=4, stream=Terminal(), clock=clock)
    assert progress.fraction == 0 and progress.seconds_left is None
    progress.start("a.png")
    progress.on_tile(1, 2)
    assert progress.fraction == pytest.approx(0.25 * (0.5 / 4))
    progress.on_step(0, None)
    assert progress.fraction == pytest.approx(0.25 * 0.25)
    clock.now = 10.0
    assert progress.seconds_left == pytest.approx(150.0)
    progress.start("b.png")  # whether a.png was restored or refused
    assert progress.fraction == pytest.approx(0.25)
    for step in range(4):
        progress.on_step(step, None)
    assert progress.fraction == pytest.approx(1.0) and progress.seconds_left == pytest.approx(0.0)


def test_the_share_never_falls(clock):
    progress = Progress([5.0, None, 1.0], steps=3, stream=Terminal(), clock=clock)
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


def test_steps_that_are_chosen_for_each_image(clock):
    """What is tried to choose them does not count, and the share does not fall when they are known."""
    progress = Progress([1.0, 1.0], steps=None, stream=Terminal(), clock=clock)
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


def test_several_plans_for_one_image(clock):
    progress = Progress([1.0], steps=3, stream=Terminal(), clock=clock)
    progress.start("a")
    for steps in (1, 2):
        progress.on_plan(manual_plan(steps))
        for step in range(steps):
            progress.on_step(step, None)
        progress.done_steps += steps
        assert progress.fraction == pytest.approx(progress.done_steps / 3)


def test_time_before_the_clock_begins_does_not_count(clock):
    progress = Progress([1.0], steps=2, stream=Terminal(), clock=clock)
    clock.now = 100.0
    progress.begin_clock()
    clock.now = 103.0
    progress.start("a.png")
    progress.on_step(0, None)
    assert progress.seconds_left == pytest.approx(3.0)


def test_a_bar_on_a_terminal(clock):
    terminal = Terminal()
    progress = Progress([1.0, 1.0], steps=2, stream=terminal, clock=clock)
    progress.start("a.png")
    clock.now = 60.0
    progress.on_tile(3, 12)
    half = "-" * (BAR_WIDTH - 1)
    assert terminal.screen() == f"[#{half}]   6 %, image 1 of 2 (a.png), step 1 of 2, tile 4 of 12, 15:00 left"
    drawn = terminal.getvalue()
    clock.now += 0.05
    progress.on_tile(4, 12)  # too soon to draw again
    assert terminal.getvalue() == drawn
    clock.now += 0.1
    progress.start("b")
    assert terminal.screen().endswith("image 2 of 2 (b), step 1 of 2, 1:00 left")  # nothing of a longer line is left
    progress.close()
    assert terminal.screen() == ""
    assert "\n" not in terminal.getvalue()


def test_lines_stand_above_the_bar(clock, capsys):
    terminal = Terminal()
    progress = Progress([1.0], steps=1, stream=terminal, clock=clock)
    progress.start("a.png")
    progress.say("written")
    assert terminal.screen() == ""
    clock.now = 1.0
    progress.on_tile(0, 4)
    assert terminal.screen().startswith("[")
    progress.complain("bad")
    assert terminal.screen() == ""
    assert capsys.readouterr() == ("written\n", "bad\n")


def test_a_bar_never_wraps(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    progress = Progress([1.0, 1.0], steps=1, stream=terminal, clock=clock)
    progress.start("a" * 100)
    assert len(terminal.screen()) == 39


def test_plain_lines_where_there_is_no_terminal(clock):
    log = io.StringIO()
    progress = Progress([1.0] * 4, steps=10, stream=log, clock=clock)
    for name in "abcd":
        progress.start(name)
        for step in range(10):
            clock.now += 2.0
            progress.on_step(step, None)
    lines = log.getvalue().splitlines()
    assert len(lines) == 2  # in 80 seconds
    assert lines[0] == "38 %, image 2 of 4 (b), step 6 of 10, 0:50 left"
    assert "\r" not in log.getvalue()


def test_quiet(clock, capsys):
    for stream in (Terminal(), io.StringIO()):
        progress = Progress([1.0], steps=1, is_shown=False, stream=stream, clock=clock)
        progress.start("a.png")
        clock.now += 100
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
