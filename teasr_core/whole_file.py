"""A file appears under its name whole or not at all; its SHA-256; the nearest folder that exists already."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, ModelFileError


@contextmanager
def whole_file(path: Path, use_fsync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file that the block writes there then takes the name `path`.

    When anything fails, the file that had the name stays as it was, and the temporary one is deleted.
    use_fsync: the content is on the disk before the file takes its name, so that a power cut cannot leave half of it.
    """
    temporary = path.with_name(f".{path.stem[:32]}.{uuid.uuid4().hex}.tmp")  # a long name would be refused if it grew
    try:
        yield temporary
        if use_fsync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(data: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all. Raises InputError, in one line, where it cannot be written."""
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({cause_of(error)}); make room or give another folder") from error


def cause_of(error: Exception) -> str:
    """What went wrong, in one line: the text of the operating system where it gave one, else that of the error."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. ModelFileError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}): check the path") from None
    return digest.hexdigest()
