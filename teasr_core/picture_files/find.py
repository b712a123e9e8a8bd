"""The image files of a folder, and the files that are left out because nothing here reads their kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..whole_file import cause_of
from .formats import is_readable_name, missing_package

_NAMES_SHOWN = 10


@dataclass(frozen=True)
class FolderFiles:
    """What a folder holds, sorted by path and without hidden files.

    images: files with an ending of a format that is read here. others: all other files, links that lead nowhere, and
    subfolders that cannot be opened.
    """

    images: list[Path]
    others: list[Path]


def list_folder(folder: str | Path, is_recursive: bool = False, leave_out: Path | None = None) -> FolderFiles:
    """The files right in `folder`, with `is_recursive` those of its subfolders too.

    Hidden folders, folders that are links and the folder `leave_out` are not entered; files that are links are files.
    Raises InputError when `folder` is not a folder or cannot be opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images in it; check the path")
    without = None if leave_out is None else leave_out.resolve()
    images: list[Path] = []
    others: list[Path] = []

    def on_error(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"{folder} cannot be opened ({cause_of(error)}); check its permissions") from error
        others.append(Path(error.filename))

    for place, subfolders, names in os.walk(folder, onerror=on_error):
        here = Path(place)
        for name in names:
            path = here / name
            if not name.startswith("."):
                (images if is_readable_name(path) and path.is_file() else others).append(path)
        visible = (name for name in subfolders if is_recursive and not name.startswith("."))
        subfolders[:] = [name for name in visible if without is None or (here / name).resolve() != without]
    return FolderFiles(sorted(images), sorted(others))


def find_images(folder: str | Path) -> list[Path]:
    """The images right in `folder`, as of `list_folder`. The list may be empty."""
    return list_folder(folder).images


def reason_left_out(path: Path) -> str:
    """Why a file of `FolderFiles.others` is left out, and what would help."""
    package = missing_package(path.suffix)
    if package is not None:
        return f"{path.suffix.lower()} files are read after: pip install {package}"
    if is_readable_name(path):
        return "it is no file that can be opened"
    return "files of this kind are not read"


def name_left_out(others: Sequence[Path], folder: Path | None = None) -> str | None:
    """One line that counts and names the files that are left out, of many only the first few; None without any.

    folder: names are relative to it.
    """
    if not others:
        return None
    names = [str(path if folder is None else path.relative_to(folder)) for path in others]
    rest = len(names) - _NAMES_SHOWN
    text = ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    help_texts = dict.fromkeys(reason_left_out(path) for path in others if missing_package(path.suffix))
    count = "1 file that is" if len(names) == 1 else f"{len(names)} files that are"
    return "; ".join([f"left out {count} not of a kind that is read: {text}", *help_texts])
