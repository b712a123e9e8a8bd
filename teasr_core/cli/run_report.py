"""`--json`: what became of every image, for a script to read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..memory import peak_memory_mb
from ..report import Report
from ..whole_file import check_folder, check_name, write_whole
from .exit_codes import BAD_INPUT, DONE, INTERRUPTED, SOME_FAILED
from .terminal import write_text

FORMAT = 1
STDOUT = "-"


@dataclass
class ImageRecord:
    """One image. status: "written", "skipped" (its output was there, `--resume`) or "failed" with an error.

    Sizes are (width, height) in pixels. seconds: per phase, and "total" with reading and saving. peak_memory_mib: the
    process's highest so far. reason: why this number of steps, where the pack chose it. note: what of the file's
    metadata was left out, and what else its owner was told.
    """

    index: int
    input: str
    output: str
    status: str
    size_before: tuple[int, int] | None = None
    size_after: tuple[int, int] | None = None
    tiles: int | None = None
    steps: int | None = None
    dtype: str | None = None
    reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    error: str | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields of the report; `note` only where there is one."""
        hidden = ("index",) if self.note else ("index", "note")
        return {key: value for key, value in asdict(self).items() if key not in hidden}

    def fill(self, report: Report, seconds: float) -> None:
        """What the restoration says of itself; `seconds`: all that the image took."""
        if report.size is not None:
            self.size_after = (report.size.width, report.size.height)
        self.tiles, self.steps, self.dtype = report.tiles, report.steps, report.dtype
        self.reason = report.reason or None
        self.seconds = {name: round(value, 4) for name, value in {**report.seconds, "total": seconds}.items()}
        self.peak_memory_mib = round(peak_memory_mb(), 1)


@dataclass
class LeftOut:
    """A file of the input folder that is of no kind that is read."""

    input: str
    reason: str


@dataclass
class RunReport:
    """A whole run. expected: images it was to go through. error: what ended it, where something did.

    left_out: the other files of the input folder, which process 0 alone tells.
    """

    expected: int
    images: list[ImageRecord] = field(default_factory=list)
    seconds: float = 0.0
    is_interrupted: bool = False
    error: str | None = None
    error_code: int = BAD_INPUT
    left_out: list[LeftOut] = field(default_factory=list)

    def count(self, status: str) -> int:
        return sum(image.status == status for image in self.images)

    @property
    def exit_code(self) -> int:
        if self.is_interrupted:
            return INTERRUPTED
        if self.error is not None:
            return self.error_code
        return SOME_FAILED if self.count("failed") else DONE

    def as_json(self) -> dict[str, Any]:
        """Statuses counted in `totals`; `not_reached`: images that the run ended before."""
        counts = {status: self.count(status) for status in ("written", "skipped", "failed")}
        peaks = [image.peak_memory_mib for image in self.images if image.peak_memory_mib is not None]
        images = sorted(self.images, key=lambda image: image.index)
        return {
            "format": FORMAT,
            "images": [image.as_json() for image in images],
            "left_out": {"count": len(self.left_out), "files": [asdict(file) for file in self.left_out]},
            "totals": {
                "images": self.expected,
                **counts,
                "not_reached": self.expected - sum(counts.values()),
                "seconds": round(self.seconds, 4),
                "peak_memory_mib": max(peaks, default=None),
            },
            "interrupted": self.is_interrupted,
            "error": self.error,
            "exit_code": self.exit_code,
        }

    def dumps(self) -> str:
        """One line, from which `loads` makes the same report: what processes tell each other."""
        return json.dumps(asdict(self))


def loads(text: str) -> RunReport:
    fields = json.loads(text)
    images = [ImageRecord(**image) for image in fields["images"]]
    left_out = [LeftOut(**file) for file in fields["left_out"]]
    return RunReport(**(fields | {"images": images, "left_out": left_out}))


def merge(reports: Sequence[RunReport]) -> RunReport:
    """One report of the shares of several processes, which ran side by side: the longest time counts."""
    errors = [report for report in reports if report.error is not None]
    return RunReport(
        expected=sum(report.expected for report in reports),
        images=[image for report in reports for image in report.images],
        seconds=max(report.seconds for report in reports),
        is_interrupted=any(report.is_interrupted for report in reports),
        error=errors[0].error if errors else None,
        error_code=errors[0].error_code if errors else BAD_INPUT,
        left_out=[file for report in reports for file in report.left_out],
    )


def check_report(name: str | None) -> None:
    """InputError unless a report can be written there; an older one is replaced, another kind of file never."""
    if name is None or name == STDOUT:
        return
    path = Path(name)
    if path.suffix.lower() != ".json":
        raise InputError(f"--json is '{name}': expected a name that ends in .json, or - for stdout")
    if not path.parent.is_dir() or os.path.isdir(path):
        raise InputError(f"--json is '{name}': expected a file in a folder that exists")
    check_name(path)
    check_folder(path.parent)


def report_name(name: str, rank: int | None) -> str:
    """`report.json`, or `report.rank1.json` of process 1 where the processes cannot put theirs together."""
    if name == STDOUT or rank is None:
        return name
    path = Path(name)
    return str(path.with_name(f"{path.stem}.rank{rank}{path.suffix}"))


def write_report(report: RunReport, name: str) -> None:
    """Whole or not at all; `-` is stdout. In ASCII, since a file's name need not be text in any encoding."""
    text = json.dumps(report.as_json(), indent=2)
    if name == STDOUT:
        write_text(text)
        return
    write_whole(f"{text}\n".encode("ascii"), Path(name))
