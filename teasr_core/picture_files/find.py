"""The image files of a folder."""

from pathlib import Path

from ..errors import InputError
from .read import KNOWN_EXTENSIONS


def find_images(folder: str | Path) -> list[Path]:
    """Return the files directly in `folder` whose ending is in KNOWN_EXTENSIONS, sorted by name, without hidden ones.

    The list may be empty. Raises InputError when `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images in it; check the path")
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in KNOWN_EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
