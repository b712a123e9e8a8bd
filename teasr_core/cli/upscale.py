"""`upscale`: one image or a folder, file properties kept, image by image."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ..errors import InputError, TeasrError
from ..image.region import Region, make_region
from ..image.target_size import TargetSize
from ..picture_files.find import name_left_out, reason_left_out
from ..picture_files.fit import fit_picture
from ..picture_files.picture import Picture
from ..picture_files.read import load_picture
from ..picture_files.write import check_output, save_picture
from ..restore import RestoreOptions
from ..restorer import Restorer
from .claims import claim
from .exit_codes import BAD_INPUT, BUG
from .jobs import Job, check_originals, find_files, make_folder, plan_jobs, split_jobs
from .options import one_line
from .processes import Processes, find_processes
from .progress import Progress, clock_time
from .request import (
    check_options,
    enough_for,
    enough_to_read,
    expected_size,
    load_mask,
    load_model,
    restore_options,
    restore_picture,
    size_note,
    step_plan,
    target_size,
)
from .run_report import STDOUT, ImageRecord, LeftOut, RunReport, check_report, loads, merge, report_name, write_report

# How long a process that was stopped waits for the reports of the others.
PATIENCE_S = 3.0
SECONDS_BETWEEN_LOOKS = 0.5  # at the images that another run is making


def upscale(args: argparse.Namespace) -> int:
    """Check everything that can be checked before the model is loaded, then restore image by image."""
    check_options(args)
    check_report(args.json)
    if args.resume and args.overwrite:
        raise InputError("--resume passes over existing outputs, --overwrite replaces them: give one of the two")
    step_plan(args)
    files = find_files(args.input, args.output, args.recursive)
    jobs = plan_jobs(args.input, args.output, args.recursive, files)
    mask = None
    if args.region is not None:
        check_originals([args.region], [job.target for job in jobs])
        mask = load_mask(args.region)
    processes = find_processes()
    # Every process looks for the outputs of all, so that all refuse alike; none writes before they have met. Where they
    # cannot meet, another may be writing its own already.
    to_do, done = split_jobs(jobs if processes.can_meet else _share(jobs, processes), args.overwrite, args.resume)
    run = UpscaleRun(args, processes, _share(to_do, processes), _share(done, processes), mask)
    if processes.rank == 0:
        run.leave_out(files.others)
    try:
        run.begin()
        run.restore_all()
    except KeyboardInterrupt:
        run.report.is_interrupted = True
    except BaseException as error:
        run.report.error = one_line(error) or type(error).__name__
        run.report.error_code = BAD_INPUT if isinstance(error, TeasrError) else BUG
        raise
    finally:
        report = run.finish()
    return report.exit_code


class UpscaleRun:
    """The images of one process, from the first to the last, and what became of them.

    mask (1, 1, h, w): what of every image is restored; None is all.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        processes: Processes,
        to_do: list[Job],
        done: list[Job],
        mask: torch.Tensor | None = None,
    ) -> None:
        self.args = args
        self.processes = processes
        self.jobs = to_do
        self.mask = mask
        self.plan = step_plan(args)
        self.report = RunReport(len(to_do) + len(done), [_record(job, "skipped") for job in done])
        self.left_out: str | None = None  # names files of the folder that are not read
        self.lines = sys.stderr if args.json == STDOUT else sys.stdout
        sizes = [None if args.quiet else expected_size(job.source, args) for job in to_do]
        work = [None if size is None else float(size.width * size.height) for size in sizes]
        self.progress = Progress(
            work, None if args.step_mode == "auto" else args.steps, not args.quiet, is_drawn=processes.rank == 0
        )
        self.started = time.monotonic()
        self.restorer: Restorer | None = None
        self.has_warned = False

    def begin(self) -> None:
        """Wait until all processes are here: what ends one later, or while it waits, is told to the others."""
        self.processes = self.processes.meet()
        self.processes.wait_for_all()
        self.started = time.monotonic()

    def leave_out(self, files: Sequence[Path]) -> None:
        """Name and count the files of the input folder that are of no kind that is read."""
        self.report.left_out = [LeftOut(str(path), reason_left_out(path)) for path in files]
        self.left_out = name_left_out(files, self.args.input)

    def restore_all(self) -> None:
        """A bad image does not stop the others; the one image that was named is the command's own error.

        Images that another run with --resume is making come last: where that run ends before it has made them, they are
        made here.
        """
        waiting: list[Job] = []
        for job in self.jobs:
            self.progress.start(job.name)
            if not self._restore_or_leave(job):
                waiting.append(job)
        if waiting:
            names = ", ".join(job.name for job in waiting)
            self.progress.say(f"note: another run is making {names}: waiting for it", sys.stderr)
        while waiting := [job for job in waiting if not self._restore_or_leave(job)]:
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def finish(self) -> RunReport:
        """Tell what became of the images: process 0 for all of them where they can meet, else each for its own."""
        self.progress.close()
        self.report.seconds = time.monotonic() - self.started
        report = self._exchange()
        if self.processes.rank > 0 and self.processes.store is not None:
            return self.report
        if self.args.json:
            is_alone = self.processes.count > 1 and self.processes.store is None
            write_report(report, report_name(self.args.json, self.processes.rank if is_alone else None))
        self._summarise(report)
        return report

    def _restore_or_leave(self, job: Job) -> bool:
        """Restore one image. With --resume another run may have made it by now; False where it is making it."""
        if not (self.args.resume and job.is_in_folder):
            self._restore(job)
            return True
        with ExitStack() as claims:
            try:
                make_folder(job.target.parent)
                is_mine = claims.enter_context(claim(job.target))
            except InputError as error:
                self._refuse(job, _record(job, "failed"), error)
                return True
            is_made = job.target.is_file()
            if is_made:
                self.report.images.append(_record(job, "skipped"))
            elif is_mine:
                self._restore(job)
            return is_made or is_mine

    def _restore(self, job: Job) -> None:
        record = _record(job, "failed")
        started = time.monotonic()
        try:
            with enough_to_read(job.source):
                picture, options, region = self._prepare(job, record)
        except TeasrError as error:
            self._refuse(job, record, error)
            return
        restorer = self._load()  # its errors are not the image's: they end the run
        self._warn(size_note(job.source.name, picture, options.size))
        if picture.note is not None:
            self.progress.say(f"note: {one_line(job.name)}: {one_line(picture.note)}", sys.stderr)
        try:
            with enough_for(options.size):
                restored, report = restore_picture(
                    restorer, picture, options, self.plan, self.args, self.progress, region
                )
                self._save(job, restored)
        except TeasrError as error:
            self._refuse(job, record, error)
            return
        record.status = "written"
        record.fill(report, time.monotonic() - started)
        self.report.images.append(record)
        self.progress.say(f"{job.target}: {report.line()}", self.lines)

    def _prepare(self, job: Job, record: ImageRecord) -> tuple[Picture, RestoreOptions, Region | None]:
        """The picture and what to make of which part of it. InputError when it cannot be read, enlarged or saved so."""
        picture = load_picture(job.source, self.args.allow_large_input)
        height, width = picture.rgb.shape[-2:]
        record.size_before = (width, height)
        size = target_size(self.args, width, height)
        has_alpha, pixels = picture.alpha is not None, (size.width, size.height)
        check_output(job.target, has_alpha, self.args.overwrite, pixels, is_folder_ours=job.is_in_folder)
        picture = fit_picture(picture, job.target)
        record.note = picture.note
        region = None if self.mask is None else make_region(self.mask, TargetSize(width, height), size)
        return picture, restore_options(self.args, size), region

    def _load(self) -> Restorer:
        if self.restorer is None:
            self.restorer = load_model(self.args, self.processes.place)
            self.progress.begin_clock()
        return self.restorer

    def _warn(self, note: str | None) -> None:
        if note is not None and not self.has_warned:
            self.has_warned = True
            self.progress.say(note, sys.stderr)

    def _save(self, job: Job, restored: Picture) -> None:
        if job.is_in_folder:
            make_folder(job.target.parent)
        save_picture(restored, job.target, quality=self.args.quality, overwrite=self.args.overwrite)

    def _refuse(self, job: Job, record: ImageRecord, error: TeasrError) -> None:
        record.error = one_line(error)
        self.report.images.append(record)
        if not job.is_in_folder:
            raise error
        self.progress.complain(f"error: {one_line(job.name)}: {record.error}")

    def _exchange(self) -> RunReport:
        """The report of all processes. Each waits for the last, since a launcher ends them all with the first."""
        if self.processes.store is None:
            return self.report
        self.processes.post(self.report.dumps())
        is_complete = not self.report.is_interrupted and self.report.error is None
        try:
            patience = float("inf") if is_complete else PATIENCE_S
            texts = self.processes.collect(patience, lambda: self._tell_waiting(is_complete))
        except KeyboardInterrupt:
            self.report.is_interrupted, texts = True, []
        return merge([loads(text) for text in texts]) if texts else self.report

    def _tell_waiting(self, is_complete: bool) -> None:
        if is_complete and self.processes.rank == 0:
            self.progress.say("process 0 has done its share and waits for the others", sys.stderr)

    def _summarise(self, report: RunReport) -> None:
        """The last words; a single image needs none but after an interruption."""
        written, failed, skipped = (report.count(status) for status in ("written", "failed", "skipped"))
        if report.is_interrupted:
            go_on = "the same command begins anew" if self.args.overwrite else "the same command with --resume goes on"
            done = f"{written + skipped} of {report.expected} images are done, none is half-written"
            self.progress.complain(f"interrupted: {done}; {go_on}")
        elif report.error is not None or not self.args.input.is_dir():
            return
        elif failed:
            if self.left_out is not None:
                self.progress.say(f"note: {self.left_out}", self.lines)
            others = "the others are written" if written + skipped else "none is written"
            self.progress.complain(f"error: {failed} of {report.expected} images failed (named above): {others}")
        else:
            passed = f", {skipped} existed already" if skipped else ""
            took = clock_time(report.seconds)
            left_out = "" if self.left_out is None else f"; {self.left_out}"
            self.progress.say(f"{report.expected} images: {written} written{passed}, {took}{left_out}", self.lines)


def _share(jobs: list[Job], processes: Processes) -> list[Job]:
    return [job for job in jobs if processes.is_mine(job.index)]


def _record(job: Job, status: str) -> ImageRecord:
    return ImageRecord(job.index, str(job.source), str(job.target), status)
