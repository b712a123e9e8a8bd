"""How far a long command is: a bar on a terminal, now and then a line elsewhere, both drawn by tqdm."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import torch

from ..sampling.schedule import StepPlan
from .terminal import one_line, write_line

SECONDS_BETWEEN_DRAWINGS = 0.1  # on a terminal, where one line is drawn again and again
SECONDS_BETWEEN_LINES = 30.0  # elsewhere, such as in a log file


class WholeLines(io.TextIOBase):
    """What tqdm draws over and over, as lines of a file that is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if line := text.strip():
            write_line(line, self._stream)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(total: float, is_shown: bool = True, stream: TextIO | None = None) -> Any:
    """A tqdm bar for `total` units of work on `stream` (stderr); a unit is anything that is proportional to time.

    `update(work)` advances it, `set_description_str(text, refresh=False)` says what is being done. The time left is
    estimated from the mean rate so far. Nothing is shown before the first interval is over, and nothing is left.
    """
    from tqdm import tqdm

    stream = stream or sys.stderr
    is_terminal = stream is not None and stream.isatty()
    interval = SECONDS_BETWEEN_DRAWINGS if is_terminal else SECONDS_BETWEEN_LINES
    line = "{percentage:3.0f} %, {desc}, {remaining} left"
    return tqdm(
        total=total,
        bar_format="[{bar:20}] " + line if is_terminal else line,
        file=stream if is_terminal or stream is None else WholeLines(stream),
        disable=stream is None or not is_shown,
        mininterval=interval,
        maxinterval=interval,
        delay=interval,
        miniters=0,
        smoothing=0,
        leave=False,
        dynamic_ncols=True,
        ascii=" #",
    )


class Progress:
    """The share of the work that is done, for images that are done one after another.

    Args:
        steps: of an image, of all its plans together; None where each image gets its own number, told to `on_plan`.
        work: for each image something proportional to its time, such as its output's pixels; None where it is not
            known, which counts as the mean of the others.
        is_shown: False shows nothing and lets only errors through. is_drawn: False leaves the bar and its lines away.
        stream: where the bar is drawn; None is stderr.
    `on_step` and `on_tile` are what `Restorer.restore` calls.
    """

    def __init__(
        self,
        work: Sequence[float | None],
        steps: int | None,
        is_shown: bool = True,
        is_drawn: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        known = [amount for amount in work if amount]
        mean = sum(known) / len(known) if known else 1.0
        self.work = [amount or mean for amount in work]
        self.fixed_steps = self.steps = steps
        self.is_shown = is_shown
        self.bar = progress_bar(1.0, is_shown and is_drawn, stream)
        self.index = -1
        self.name = ""
        self.done_work = 0.0
        self.step = self.tile = self.tiles = 0
        self.done_steps = 0  # of this image, by plans before the present one

    def start(self, name: str) -> None:
        """Go on to the next image. Those before it are done, one way or another."""
        if self.index >= 0:
            self.done_work += self.work[self.index]
        self.index += 1
        self.name, self.step, self.tile, self.tiles = name, 0, 0, 0
        self.steps, self.done_steps = self.fixed_steps, 0
        self._show()

    def begin_clock(self) -> None:
        """Do not count what came before, such as loading the model, for the time left."""
        self.bar.unpause()

    def on_plan(self, plan: StepPlan) -> None:
        """Take the image's number of steps, where it was not known before."""
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
        """The share of all the work that is done, 0 to 1."""
        inside = self.step + (self.tile / self.tiles if self.tiles else 0.0)
        share = min(1.0, inside / self.steps) if self.steps else 0.0  # choosing the steps is not counted
        current = share * self.work[self.index] if self.index >= 0 else 0.0
        return (self.done_work + current) / sum(self.work) if self.work else 1.0

    def text(self) -> str:
        """E.g. `image 3 of 10 (b.png), step 2 of 4, tile 12 of 25`."""
        parts = [f"image {self.index + 1} of {len(self.work)} ({self.name})" if len(self.work) > 1 else self.name]
        if self.steps is None:
            parts.append("choosing the steps")
        else:
            parts.append(f"step {min(self.step + 1, self.steps)} of {self.steps}")
        if self.tiles > 1:
            parts.append(f"tile {min(self.tile + 1, self.tiles)} of {self.tiles}")
        return ", ".join(parts)

    def say(self, line: str, stream: TextIO | None = None) -> None:
        """Write a line of its own (on stdout), above the bar; nothing when quiet."""
        if self.is_shown:
            self._print(line, stream or sys.stdout)

    def complain(self, line: str) -> None:
        """Write a line on stderr, quiet or not."""
        self._print(line, sys.stderr)

    def close(self) -> None:
        """Wipe the bar away."""
        self.bar.close()

    def _print(self, line: str, stream: TextIO) -> None:
        self.bar.clear()
        write_line(line, stream)

    def _show(self) -> None:
        self.bar.set_description_str(one_line(self.text()), refresh=False)
        self.bar.update(self.fraction - self.bar.n)


def clock_time(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
