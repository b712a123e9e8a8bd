"""How far a long command is: the share of its work that is done and the time left, on stderr."""

from __future__ import annotations

import sys

from tqdm import tqdm

SECONDS_BETWEEN_DRAWINGS = 0.1  # on a terminal, where one line is drawn again and again
SECONDS_BETWEEN_LINES = 30.0  # elsewhere, such as in a log file


def progress_bar(total: float, name: str, is_shown: bool = True) -> tqdm:
    """A bar for `total` units of work; a unit is anything that is proportional to time.

    `update(work)` advances it, `set_postfix_str(text, refresh=False)` says what is being done. The time left is
    estimated from the mean rate so far. Nothing is shown before the first interval is over.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    interval = SECONDS_BETWEEN_DRAWINGS if is_terminal else SECONDS_BETWEEN_LINES
    line = "{desc} {percentage:.0f} %, {remaining} left{postfix}"
    return tqdm(
        total=total,
        desc=name,
        bar_format="[{bar:20}] " + line if is_terminal else line + "\n",
        file=sys.stderr,
        disable=sys.stderr is None or not is_shown,
        mininterval=interval,
        maxinterval=interval,
        delay=interval,
        miniters=0,
        smoothing=0,
        dynamic_ncols=True,
        ascii=True,
    )
