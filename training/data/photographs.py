"""Which files a run learns from: folders, .txt lists and folders of LR/HR pairs; their sizes, and their pixels.

Sizes come from the files' headers before the run begins, so that what cannot be used is named at the start.
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from teasr_core.errors import InputError
from teasr_core.image.levels import to_levels
from teasr_core.picture_files.find import load_picture

PHOTO_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
LIST_EXTENSION = ".txt"
HR_FOLDER, LR_FOLDER = "test_HR", "test_LR"  # the layout of StableSR's published test sets
_SCAN_THREADS = 8
_NAMES_SHOWN = 10
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class PhotoScan:
    """Files sorted by what can be done with them; `sizes` are (width, height) of `usable`, in the file's own order."""

    usable: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    unreadable: tuple[Path, ...]
    too_small: tuple[Path, ...]
    min_px: int

    @property
    def count(self) -> int:
        return len(self.usable) + len(self.unreadable) + len(self.too_small)

    def skipped(self) -> list[str]:
        """One line for each kind of file that is passed over, with the count and the names; empty when all are good."""
        kinds = (("unreadable", self.unreadable), (f"smaller than {self.min_px} px a side", self.too_small))
        return [f"skipped, {kind}: {len(paths)} ({name_some(paths)})" for kind, paths in kinds if paths]


def name_some(paths: Sequence[Path]) -> str:
    """File names with commas, the first few of many."""
    rest = len(paths) - _NAMES_SHOWN
    return ", ".join(path.name for path in paths[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def list_source(entry: str) -> list[Path]:
    """The image files of one entry of `data.folders`: a folder's sorted by name, a .txt list's in its own order.

    InputError for an entry that is missing or names no image.
    """
    root = Path(entry)
    if root.suffix.lower() == LIST_EXTENSION and root.is_file():
        found = _read_list(root)
    elif root.is_dir():
        found = _images_in(root)
    else:
        raise InputError(f"data.folders names '{entry}': there is no such folder or {LIST_EXTENSION} list")
    if not found:
        raise InputError(f"data.folders names '{entry}': no image in it ({', '.join(sorted(PHOTO_EXTENSIONS))})")
    return found


def _images_in(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name; folders within it are not searched."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_EXTENSIONS)


def list_pairs(entry: str) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """((HR, LR) files of the same name in `entry`/test_HR and `entry`/test_LR, files that have no partner).

    InputError where one of the two folders is missing, holds two files of one name, or no name is in both.
    """
    folders = [Path(entry) / name for name in (HR_FOLDER, LR_FOLDER)]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"data.pairs names '{entry}': it has no folder {folder.name}, expected {HR_FOLDER} and "
                             f"{LR_FOLDER} with files of the same names")  # fmt: skip
    high, low = (_by_stem(folder) for folder in folders)
    if not high.keys() & low.keys():
        raise InputError(f"data.pairs names '{entry}': no image name is in both {HR_FOLDER} and {LR_FOLDER}")
    lonely = [files[stem] for files in (high, low) for stem in files if stem not in high.keys() & low.keys()]
    return [(high[stem], low[stem]) for stem in sorted(high.keys() & low.keys())], lonely


def scan_photographs(paths: Sequence[Path], min_px: int = 1) -> PhotoScan:
    """Sort `paths` by their headers: usable, unreadable, or with a side under `min_px`. Pixels are not decoded.

    A file with a good header may still be damaged further on; that shows when it is drawn.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(_SCAN_THREADS) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about odd metadata and very large pictures
        sizes = list(pool.map(_size, paths))
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
    """Decoded photographs (H, W, 3) uint8 RGB, the least recently used dropped beyond `limit_mb`."""

    def __init__(self, paths: Sequence[Path], limit_mb: int) -> None:
        self.paths = list(paths)
        self.limit = limit_mb * 2**20
        self.size = 0
        self.images: OrderedDict[int, np.ndarray] = OrderedDict()
        self.damaged: set[int] = set()

    def get(self, index: int) -> np.ndarray | None:
        """The photograph, or None when the file cannot be read as one: noted on stderr the first time."""
        if index in self.images:
            self.images.move_to_end(index)
            return self.images[index]
        if index in self.damaged:
            return None
        image = _decode(self.paths[index])
        if image is None:
            self.damaged.add(index)
            print(f"note: {self.paths[index]} is damaged: passed over", file=sys.stderr, flush=True)
            return None
        self.images[index] = image
        self.size += image.nbytes
        while self.size > self.limit and len(self.images) > 1:
            self.size -= self.images.popitem(last=False)[1].nbytes
        return image


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in _images_in(folder):
        if files.setdefault(path.stem, path) != path:
            raise InputError(f"{folder} holds {files[path.stem].name} and {path.name}: expected one file of a name")
    return files


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.folders names '{path}': it cannot be read ({error}), expected a list in UTF-8"
        ) from None
    entries = [line.strip() for line in lines]
    return [path.parent / entry for entry in entries if entry and not entry.startswith("#")]


def _size(path: Path) -> tuple[int, int] | None:
    """(width, height), or None for a file that neither Pillow nor OpenCV can open."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow's readers raise many types on damaged bytes
        image = _decode(path)  # a kind that OpenCV alone knows, such as a 16-bit colour TIFF
        return None if image is None else (image.shape[1], image.shape[0])


def _decode(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB, upright, or None. OpenCV fills what a truncated JPEG lacks with grey: that is None too."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None or not _is_whole(path):
        return None
    return np.ascontiguousarray(bgr[:, :, ::-1])


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        is_jpeg = file.read(2) == b"\xff\xd8"
        file.seek(max(0, path.stat().st_size - 16))
        if not is_jpeg or file.read().rstrip(b"\0").endswith(_JPEG_END):
            return True
    try:  # something follows the picture, or its end marker alone is missing: Pillow says whether pixels are
        with Image.open(path) as image:
            image.load()
    except Image.DecompressionBombError:
        return True  # too large for Pillow's taste, not damaged
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8, upright; 16 bit is rounded to 8, alpha dropped. Errors as `load_picture`."""
    return np.ascontiguousarray(to_levels(load_picture(path).rgb[0]).permute(1, 2, 0).numpy())
