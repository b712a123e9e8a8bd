"""Which input becomes which output: a file a file, a folder a folder, with its subfolders where asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..picture_files.find import FolderFiles, list_folder, name_left_out
from ..picture_files.formats import expected_formats
from ..picture_files.write import WRITABLE_EXTENSIONS, check_free, check_output
from ..whole_file import FileNames, folded, nearest_existing


@dataclass(frozen=True)
class Job:
    """One image to restore.

    index: its place among all. name: what it is called, relative to the input folder. is_in_folder: its output's
    folder is ours to make.
    """

    index: int
    source: Path
    target: Path
    name: str
    is_in_folder: bool = True


def plan_jobs(source: Path, target: Path, is_recursive: bool = False, files: FolderFiles | None = None) -> list[Job]:
    """One job for each image; a folder goes to a folder, each image under its own name. Nothing is written.

    files: what `find_files` found with the same arguments; without it, the folder is read here.

    What cannot be written in its own format, such as .bmp, becomes a .png. The order is that of the names, the same on
    every run. InputError for a missing input, a folder without images, an output that cannot be a folder or is the
    input, two images of one output, and an output that is any of the images (`check_originals`).
    """
    if not source.exists():
        raise InputError(f"{source} does not exist: give an image or a folder of images")
    if source.is_file():
        check_originals([source], [target])
        return [Job(0, source, target, source.name, is_in_folder=False)]
    if not source.is_dir():
        raise InputError(f"{source} is a pipe or a device: expected an image or a folder, so save it to a file first")
    files = find_files(source, target, is_recursive) if files is None else files
    images = files.images
    if not images:
        more = "" if is_recursive else ", or --recursive for those in its subfolders"
        raise no_image(source, files, more)
    existing = nearest_existing(target)
    if not existing.is_dir():
        raise InputError(f"{existing} is a file, the input is a folder: give a folder as output")
    if target.resolve() == source.resolve():
        raise InputError(f"{target} is the input folder: give another folder, so that no original is replaced")
    jobs: dict[Path, Job] = {}
    names = FileNames()
    for index, path in enumerate(images):
        inside = path.relative_to(source)
        output = target / (inside if path.suffix.lower() in WRITABLE_EXTENSIONS else inside.with_suffix(".png"))
        if (other := names.add(output)) is not None:
            raise InputError(f"{jobs[other].name} and {inside} would both become {output.name}: rename one")
        jobs[output] = Job(index, path, output, str(inside))
    check_originals(images, jobs)
    return list(jobs.values())


def find_files(source: Path, target: Path, is_recursive: bool = False) -> FolderFiles:
    """The files of the input folder `source`; nothing of `target`, which may lie inside. A single image has none."""
    return list_folder(source, is_recursive, target) if source.is_dir() else FolderFiles([], [])


def no_image(folder: Path, files: FolderFiles, more: str = "") -> InputError:
    """The error for a folder without an image that can be read; it names what the folder holds instead."""
    left_out = name_left_out(files.others, folder)
    found = "" if left_out is None else f" ({left_out})"
    return InputError(f"{folder} holds no image{found}: expected {expected_formats()} files{more}")


def check_originals(sources: Iterable[Path], targets: Iterable[Path]) -> None:
    """Raises InputError when one of `targets` is one of `sources`, by whatever path or link: no flag replaces those."""
    originals: dict[str, list[Path]] = {}
    for source in sources:
        originals.setdefault(folded(source.resolve()), []).append(source)
    for target in targets:
        for original in originals.get(folded(target.resolve()), []):
            if target.resolve() != original.resolve() and not (target.exists() and target.samefile(original)):
                continue
            raise InputError(f"{target} is the input {original}: give another output, so that no original is replaced")


def split_jobs(jobs: Iterable[Job], overwrite: bool, resume: bool) -> tuple[list[Job], list[Job]]:
    """(to do, done already): outputs that exist are passed over with `resume`, else refused unless `overwrite`."""
    to_do, done = [], []
    for job in jobs:
        if resume and os.path.isfile(job.target):
            done.append(job)
            continue
        if job.is_in_folder:
            check_free(job.target, overwrite)
        else:
            check_output(job.target, has_alpha=False, overwrite=overwrite)
        to_do.append(job)
    return to_do, done


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): give a folder that can be written") from None
