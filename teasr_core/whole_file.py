"""A file appears under its name whole or not at all; what can be known before; its SHA-256."""

import hashlib
import os
import re
import tempfile
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError, ModelFileError

# Names of Windows' devices, whatever ending they have.
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\.|$)", re.IGNORECASE)
_NOT_ON_WINDOWS = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


@contextmanager
def whole_file(path: Path, use_fsync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file that the block writes there then takes the name `path`.

    When anything fails, the file that had the name stays as it was, and the temporary one is deleted.
    use_fsync: the content is on the disk before the file takes its name, so that a power cut cannot leave half of it.
    """
    temporary = helper_file(path, uuid.uuid4().hex[:8], ".tmp")
    try:
        yield temporary
        if use_fsync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # such as on a read-only file system, where it was never made
            temporary.unlink(missing_ok=True)


def helper_file(path: Path, token: str, ending: str) -> Path:
    """A hidden file beside `path` whose name is not longer, in characters (Windows counts those) and in bytes.

    The name holds `token` (8 characters), and as much of the stem of `path` as fits. Only beside a name of fewer than
    15 characters it is longer.
    """
    fixed = len(f"..{token}{ending}")
    stem = path.stem[: max(0, min(32, len(path.name) - fixed))]
    while stem and len(os.fsencode(stem)) > len(os.fsencode(path.name)) - fixed:
        stem = stem[:-1]
    return path.with_name(f".{stem}{'.' if stem else ''}{token}{ending}")


def write_whole(data: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all. Raises InputError, in one line, where it cannot be written."""
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({cause_of(error)}); make room or give another folder") from error


def check_name(path: Path, system: str = os.name) -> None:
    """Raises InputError, in one line, for a name that no file can have.

    On Windows (`system` "nt") that is also the name of a device. Elsewhere it is one that the file system cannot look
    up, such as one that is too long.
    """
    if system == "nt" and (fault := windows_fault(path.name)):
        raise InputError(f"{path.name} cannot be a file's name on Windows ({fault}); give another")
    for place in (path, nearest_existing(path.parent) / path.name):  # in a folder that is missing nothing is looked up
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # what is wrong with the folder is said elsewhere
        except (OSError, ValueError) as error:
            name = path.name if len(path.name) <= 60 else f"{path.name[:57]}..."
            raise InputError(f"{name} cannot be a file's name ({cause_of(error)}); give a shorter one") from None


def windows_fault(name: str) -> str | None:
    """Why Windows gives no file this name, or another one; None where it does."""
    if _DEVICE.match(name):
        return "it is the name of a device"
    if name.endswith((".", " ")):
        return "a dot or a space at the end is left out there"
    if found := _NOT_ON_WINDOWS.search(name):
        return f"it holds {found[0]!r}"
    return None


def folded(path: Path) -> str:
    """`path` without what some file systems do not distinguish: case (Windows, macOS), Unicode's forms (macOS)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


class FileNames:
    """Output files by name: finds two that the file system would take for one file."""

    def __init__(self) -> None:
        self._known: dict[str, list[Path]] = {}

    def add(self, path: Path) -> Path | None:
        """Add a path; the one before it that is the same file, or None."""
        known = self._known.setdefault(folded(path), [])
        found = next((other for other in known if other == path or are_one_file(other, path)), None)
        known.append(path)
        return found


def are_one_file(a: Path, b: Path) -> bool:
    """Whether the file system there takes `a` and `b`, which differ in case or Unicode form alone, for one file.

    Windows, macOS and exFAT do so. It is tried with empty files in a folder that is made and removed again beside `a`;
    where none can be made, nothing can be overwritten either, and the answer is False.
    """
    try:
        with tempfile.TemporaryDirectory(dir=nearest_existing(a.parent), prefix=".teasr.") as folder:
            for name, other in zip(a.parts, b.parts, strict=True):
                if name != other:
                    (Path(folder) / name).touch()
                    if not (Path(folder) / other).exists():
                        return False
    except (OSError, ValueError):
        return False
    return True


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
