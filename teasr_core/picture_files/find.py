"""Image files for the command line: the front door to reading, writing and listing them."""

from pathlib import Path

from ..errors import InputError
from .picture import Picture
from .read import KNOWN_EXTENSIONS, load_picture, read_size
from .write import WRITABLE_EXTENSIONS, check_output, check_profile, save_picture

__all__ = [
    "KNOWN_EXTENSIONS",
    "WRITABLE_EXTENSIONS",
    "Picture",
    "check_output",
    "check_profile",
    "find_images",
    "load_picture",
    "read_size",
    "save_picture",
]


def find_images(folder: str | Path) -> list[Path]:
    """The files right in `folder` whose ending is in KNOWN_EXTENSIONS, sorted by name; hidden files are left out.

    The list may be empty. Raises InputError when `folder` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images in it; check the path")
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in KNOWN_EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
