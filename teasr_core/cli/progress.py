"""How far a run is: a bar over images, tiles and steps on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import torch

from ..sampling.schedule import StepPlan
from .terminal import write_line

# A terminal is redrawn at most so often, a log file gets a line at most so often.
BAR_SECONDS, LINE_SECONDS = 0.1, 30.0
BAR_WIDTH = 20


class Progress:
    """The share of the work that is done and the time left, for images that are done one after another.

    Args:
        steps: of an image, of all its plans together; None where each image gets its own number, told to `on_plan`.
        work: for each image something proportional to its time, such as its output's pixels; None where it is not
            known, which counts as the mean of the others.
        is_shown: False shows nothing and lets only errors through. is_drawn: False leaves the bar and its lines away.
        stream: where the bar is drawn: stderr. clock: seconds.
    `on_step` and `on_tile` are what `Restorer.restore` calls.
    """

    def __init__(
        self,
        work: Sequence[float | None],
        steps: int | None,
        is_shown: bool = True,
        is_drawn: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        known = [amount for amount in work if amount]
        mean = sum(known) / len(known) if known else 1.0
        self.work = [amount or mean for amount in work]
        self.fixed_steps = self.steps = steps
        self.is_shown = is_shown
        self.stream = stream or sys.stderr
        self.is_bar = is_shown and is_drawn and self.stream.isatty()
        self.is_lines = is_shown and is_drawn and not self.is_bar
        self.clock = clock
        self.started = self.shown_at = clock()
        self.index = -1
        self.name = ""
        self.done_work = 0.0
        self.step = self.tile = self.tiles = 0
        self.done_steps = 0  # of this image, by plans before the present one
        self.width = 0  # of what is drawn now

    def start(self, name: str) -> None:
        """The next image. Those before it are done, one way or another."""
        if self.index >= 0:
            self.done_work += self.work[self.index]
        self.index += 1
        self.name, self.step, self.tile, self.tiles = name, 0, 0, 0
        self.steps, self.done_steps = self.fixed_steps, 0
        self._show()

    def begin_clock(self) -> None:
        """What came before, such as loading the model, does not count for the time left."""
        self.started = self.clock()

    def on_plan(self, plan: StepPlan) -> None:
        """The image's number of steps, where it was not known before."""
        if self.fixed_steps is None:
            self.steps, self.tile = plan.steps, 0
            self._show()

    def on_tile(self, done: int, count: int) -> None:
        self.tile, self.tiles = done, count
        self._show()

    def on_step(self, index: int, _estimate: torch.Tensor) -> None:
        self.step, self.tile = self.done_steps + index + 1, 0
        self._show()

    @property
    def fraction(self) -> float:
        """Of all the work, 0 to 1."""
        inside = self.step + (self.tile / self.tiles if self.tiles else 0.0)
        share = min(1.0, inside / self.steps) if self.steps else 0.0  # choosing the steps is not counted
        current = share * self.work[self.index] if self.index >= 0 else 0.0
        return (self.done_work + current) / sum(self.work) if self.work else 1.0

    @property
    def seconds_left(self) -> float | None:
        """None as long as nothing is done."""
        fraction = self.fraction
        return (self.clock() - self.started) * (1 - fraction) / fraction if fraction > 0 else None

    def text(self) -> str:
        """E.g. ` 31 %, image 3 of 10 (b.png), step 2 of 4, tile 12 of 25, 1:23 left`."""
        parts = [f"{100 * self.fraction:3.0f} %"]
        if len(self.work) > 1:
            parts.append(f"image {self.index + 1} of {len(self.work)} ({self.name})")
        else:
            parts.append(self.name)
        if self.steps is None:
            parts.append("choosing the steps")
        else:
            parts.append(f"step {min(self.step + 1, self.steps)} of {self.steps}")
        if self.tiles > 1:
            parts.append(f"tile {min(self.tile + 1, self.tiles)} of {self.tiles}")
        left = self.seconds_left
        if left is not None:
            parts.append(f"{clock_time(left)} left")
        return ", ".join(parts)

    def say(self, line: str, stream: TextIO | None = None) -> None:
        """A line of its own (on stdout), above the bar; nothing when quiet."""
        if self.is_shown:
            self._print(line, stream or sys.stdout)

    def complain(self, line: str) -> None:
        """A line on stderr, quiet or not."""
        self._print(line, sys.stderr)

    def close(self) -> None:
        """Wipe the bar away."""
        if self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()
            self.width = 0

    def _print(self, line: str, stream: TextIO) -> None:
        self.close()
        write_line(line, stream)

    def _show(self) -> None:
        now = self.clock()
        if self.is_bar and (not self.width or now - self.shown_at >= BAR_SECONDS):
            self._draw()
            self.shown_at = now
        elif self.is_lines and now - self.shown_at >= LINE_SECONDS:
            self._print(self.text().strip(), self.stream)
            self.shown_at = now

    def _draw(self) -> None:
        filled = int(BAR_WIDTH * self.fraction)
        text = f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}] {self.text()}"
        text = text[: max(1, shutil.get_terminal_size().columns - 1)]  # a line that wraps cannot be wiped away
        self.stream.write("\r" + text.ljust(self.width))
        self.stream.flush()
        self.width = len(text)


def clock_time(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
