"""A file appears whole or not at all."""

import os
import uuid
from pathlib import Path

from .errors import InputError


def write_whole(data: bytes, path: Path) -> None:
    """A file that appears under its name at once or not at all. InputError, one line, where it cannot be written."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be written ({cause}); expected a writable place with room; free it") from error
    finally:
        temporary.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest one above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
