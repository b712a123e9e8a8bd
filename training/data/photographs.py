"""The files a run learns from: folders, .txt lists and folders of LR/HR pairs; their sizes, and their pixels.

Every picture is read as the command `upscale` reads it. Sizes come from the files' headers before the run begins, so
that files which cannot be used are named at the start.
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teasr_core.errors import InputError
from teasr_core.picture_files.find import find_images, list_folder, name_left_out
from teasr_core.picture_files.formats import expected_formats
from teasr_core.picture_files.read import read_rgb, read_size

LIST_EXTENSION = ".txt"
HR_FOLDER, LR_FOLDER = "test_HR", "test_LR"  # the layout of StableSR's published test sets
TARGET_FOLDER = "test_target"  # beside them: what another restorer made of each LR, of HR's size
_SCAN_THREADS = 8
_NAMES_SHOWN = 10


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures right in `folder` by their names without ending, in the order of the file names.

    Hidden files are left out.
    Raises InputError where there is no such folder, or where two pictures differ in their ending alone.
    """
    files: dict[str, Path] = {}
    for path in find_images(folder):
        other = files.setdefault(path.stem, path)
        if other != path:
            raise InputError(
                f"{folder} holds {other.name} and {path.name}: expected one picture of each name, rename or move one"
            )
    return files


@dataclass(frozen=True)
class PhotoScan:
    """Files sorted by whether a run can use them; `sizes` holds (width, height) of each of `usable`, upright."""

    usable: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    unreadable: tuple[Path, ...]
    too_small: tuple[Path, ...]
    min_px: int

    @property
    def count(self) -> int:
        return len(self.usable) + len(self.unreadable) + len(self.too_small)

    def skipped(self) -> list[str]:
        """One line with count and names for each kind of file that is left out; empty when all can be used."""
        kinds = (("unreadable", self.unreadable), (f"smaller than {self.min_px} px a side", self.too_small))
        return [f"skipped, {kind}: {len(paths)} ({name_some(paths)})" for kind, paths in kinds if paths]


def name_some(paths: Sequence[Path]) -> str:
    """File names with commas between them; of many only the first few."""
    rest = len(paths) - _NAMES_SHOWN
    return ", ".join(path.name for path in paths[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def list_source(entry: str) -> list[Path]:
    """The image files of one entry of `data.folders`: those of a folder by name, those of a .txt list in its order.

    Hidden files of a folder are left out. Raises InputError for an entry that is missing or names no image.
    """
    root = Path(entry)
    if root.suffix.lower() == LIST_EXTENSION and root.is_file():
        found = _read_list(root)
    elif root.is_dir():
        found = find_images(root)
    else:
        raise InputError(f"data.folders names '{entry}': there is no such folder or {LIST_EXTENSION} list")
    if not found:
        left_out = "".join(f"{line}; " for line in left_out_lines(entry))
        raise InputError(
            f"data.folders names '{entry}': no image in it ({left_out}expected {expected_formats()} files)"
        )
    return found


def left_out_lines(entry: str) -> list[str]:
    """One line that counts and names the files of a folder that are of no kind that is read; [] without any."""
    root = Path(entry)
    note = name_left_out(list_folder(root).others, root) if root.is_dir() else None
    return [] if note is None else [note]


def list_pairs(entry: str) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pair the files of `entry`/test_HR and `entry`/test_LR by name: (HR, LR) pairs, and the files without a partner.

    Raises InputError where one of the two folders is missing, holds two files of one name, or no name is in both.
    """
    folders = [Path(entry) / name for name in (HR_FOLDER, LR_FOLDER)]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"data.pairs names '{entry}': it has no folder {folder.name}, expected {HR_FOLDER} and "
                             f"{LR_FOLDER} with files of the same names")  # fmt: skip
    high, low = (images_by_stem(folder) for folder in folders)
    if not high.keys() & low.keys():
        raise InputError(f"data.pairs names '{entry}': no image name is in both {HR_FOLDER} and {LR_FOLDER}")
    unpaired = [files[stem] for files in (high, low) for stem in files if stem not in high.keys() & low.keys()]
    return [(high[stem], low[stem]) for stem in sorted(high.keys() & low.keys())], unpaired


def scan_photographs(paths: Sequence[Path], min_px: int = 1) -> PhotoScan:
    """Sort `paths` by their headers: usable, unreadable, or with a side under `min_px`. Pixels are not decoded.

    A file with a good header may still be damaged further on, which shows when it is read.
    """
    # `read_size` silences Pillow's warnings too, but its threads would restore one another's filters.
    with warnings.catch_warnings(), ThreadPoolExecutor(_SCAN_THREADS) as pool:
        warnings.simplefilter("ignore")
        sizes = list(pool.map(read_size, paths))
    found = list(zip(paths, sizes, strict=True))
    usable = [(path, size) for path, size in found if size and min(size) >= min_px]
    return PhotoScan(
        tuple(path for path, _ in usable),
        tuple(size for _, size in usable),
        tuple(path for path, size in found if size is None),
        tuple(path for path, size in found if size and min(size) < min_px),
        min_px,
    )


class PhotoCache:
    """Decoded photographs (H, W, 3) uint8 RGB; beyond `limit_mb` the least recently used are dropped."""

    def __init__(self, paths: Sequence[Path], limit_mb: int) -> None:
        self.paths = list(paths)
        self.limit = limit_mb * 2**20
        self.size = 0
        self.images: OrderedDict[int, np.ndarray] = OrderedDict()
        self.damaged: set[int] = set()

    def get(self, index: int) -> np.ndarray | None:
        """The photograph, or None when it cannot be read; the first time a note on stderr says why."""
        if index in self.images:
            self.images.move_to_end(index)
            return self.images[index]
        if index in self.damaged:
            return None
        try:
            image = read_rgb(self.paths[index])
        except InputError as error:
            self.damaged.add(index)
            print(f"note: a photograph is left out: {error}", file=sys.stderr, flush=True)
            return None
        self.images[index] = image
        self.size += image.nbytes
        while self.size > self.limit and len(self.images) > 1:
            self.size -= self.images.popitem(last=False)[1].nbytes
        return image


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors put a byte order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.folders names '{path}': it cannot be read ({error}), expected a list in UTF-8"
        ) from None
    entries = [line.strip() for line in lines]
    return [path.parent / entry for entry in entries if entry and not entry.startswith("#")]
