"""Which picture formats are read, by what, and what to do with a file of another kind."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

JPEG_EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".jpe")
_ALWAYS_READ = {
    "PNG": (".png",),
    "JPEG": JPEG_EXTENSIONS,
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}


@dataclass(frozen=True)
class OptionalFormat:
    """A format that Pillow reads only where a package is installed.

    name: what people call it. pillow_name: the name of the opener. package: what `pip install` needs.
    """

    name: str
    pillow_name: str
    extensions: tuple[str, ...]
    package: str


HEIC = OptionalFormat("HEIC", "HEIF", (".heic", ".heif", ".hif"), "pillow-heif")
AVIF = OptionalFormat("AVIF", "AVIF", (".avif",), "'pillow>=11.3'")
JPEG_XL = OptionalFormat("JPEG XL", "JXL", (".jxl",), "pillow-jxl-plugin")
OPTIONAL = (HEIC, AVIF, JPEG_XL)

_JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))


@functools.cache
def is_installed(kind: OptionalFormat) -> bool:
    """Whether `kind` can be read here. The first call registers its opener with Pillow."""
    try:
        if kind is HEIC:
            from pillow_heif import register_heif_opener

            register_heif_opener()
        elif kind is JPEG_XL:
            import pillow_jxl  # noqa: F401  (it registers itself)
        else:
            return bool(features.check("avif"))
    except Exception:  # the package is absent, or does not fit this Pillow: many types
        return False
    return True


def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here, for `Image.open(formats=...)`."""
    return (*_ALWAYS_READ, *(kind.pillow_name for kind in OPTIONAL if is_installed(kind)))


def readable_extensions() -> tuple[str, ...]:
    """The lower-case endings of the files that are read here."""
    always = [extension for extensions in _ALWAYS_READ.values() for extension in extensions]
    optional = [extension for kind in OPTIONAL if is_installed(kind) for extension in kind.extensions]
    return (*always, *optional)


def is_readable_name(path: Path) -> bool:
    """Whether the ending of `path` is one of a format that is read here."""
    return path.suffix.lower() in readable_extensions()


def expected_formats() -> str:
    """The formats that are read here, for a message: "PNG, JPEG, WebP, TIFF, BMP or AVIF"."""
    names = ["PNG", "JPEG", "WebP", "TIFF", "BMP", *(kind.name for kind in OPTIONAL if is_installed(kind))]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def missing_package(extension: str) -> str | None:
    """What `pip install` needs before files with this ending can be read; None where nothing would help."""
    found = next((kind for kind in OPTIONAL if extension.lower() in kind.extensions), None)
    return None if found is None or is_installed(found) else found.package


def explain_unknown(path: Path) -> str:
    """Why no opener knows the file at `path`, and what to do: the rest of a sentence that begins with its name."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return f"is an empty file; expected {expected_formats()}; export or copy it again"
    kind = _optional_kind(start)
    if kind is not None and not is_installed(kind):
        return f"is a {kind.name} picture, which needs a package to be read: pip install {kind.package}"
    if kind is not None:
        return f"is a {kind.name} file that holds no readable picture; expected a whole one; export or copy it again"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "is a GIF; expected a still picture; save the frame that you want as PNG first"
    name = _other_format(path)
    if name is not None:
        return f"is a {name} file; expected {expected_formats()}; convert it to PNG first"
    return f"is not an image of a known kind; expected {expected_formats()}; convert it first"


def _optional_kind(start: bytes) -> OptionalFormat | None:
    if start.startswith(_JXL_STARTS):
        return JPEG_XL
    if start[4:8] != b"ftyp":
        return None
    # A box of ISO 14496-12: its length, "ftyp", the major brand, a version, then the compatible brands.
    length = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[8:12], *(start[k : k + 4] for k in range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return AVIF
    return HEIC if brands & _HEIC_BRANDS else None


def _other_format(path: Path) -> str | None:
    """The name of a format that Pillow knows and we do not read, such as "Adobe Photoshop"."""
    try:
        with Image.open(path) as image:
            return image.format_description or image.format
    except Exception:  # many types: the file is of no format that Pillow knows, or is damaged
        return None
