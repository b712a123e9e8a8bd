"""A file appears under its name whole or not at all; what can be known before; its SHA-256."""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        with suppress(OSError):  # such as on a read-only file system, where it was never made
            temporary.unlink(missing_ok=True)


def write_whole(data: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all. Raises InputError, in one line, where it cannot be written."""
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({cause_of(error)}); make room or give another folder") from error


def check_name(path: Path) -> None:
    """Raises InputError, in one line, for a name that the file system cannot look up, such as one that is too long."""
    for place in (path, nearest_existing(path.parent) / path.name):  # in a folder that is missing nothing is looked up
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # what is wrong with the folder is said elsewhere
        except (OSError, ValueError) as error:
            name = path.name if len(path.name) <= 60 else f"{path.name[:57]}..."
            raise InputError(f"{name} cannot be a file's name ({cause_of(error)}); give a shorter one") from None


def check_folder(folder: Path) -> None:
    """Raises InputError, in one line, where no file can be made in `folder`, or in the nearest one that exists.

    A file is made and removed again, because permissions alone tell little about network drives, access lists and
    read-only mounts. Nothing is left.
    """
    nearest = nearest_existing(folder)
    try:
        with tempfile.TemporaryFile(dir=nearest, prefix=".teasr."):
            pass
    except OSError as error:
        raise InputError(
            f"{nearest} cannot be written ({cause_of(error)}); expected a folder for the output; give another"
        ) from None


def cause_of(error: Exception) -> str:
    """What went wrong, in one line: the text of the operating system where it gave one, else that of the error."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.exists(parent))


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
