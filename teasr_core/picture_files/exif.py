"""What EXIF says about a picture, freed of what would no longer be true of the restored one."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from fractions import Fraction

from PIL import TiffTags
from PIL.ExifTags import IFD, Base

from .ifd import ASCII, BYTE, LONG, LONG8, RATIONAL, SHORT, UNDEFINED, Entry, TiffReader, Tree, encode_tree, entry_of

PREFIX = b"Exif\0\0"
# What a resolution may be in dots per inch: a JPEG holds no more, and under 1 there is damage.
MAX_DPI = 2**16 - 1

_POINTERS = {IFD.Exif: (IFD.Interop,), IFD.GPSInfo: ()}
RESOLUTION = (Base.XResolution, Base.YResolution, Base.ResolutionUnit)
# How the pixels of the old file are laid out, compressed and previewed, and editors' padding.
_LAYOUT = frozenset(
    (*range(254, 260), *range(262, 267), 273, *range(277, 282), 284, 285, *range(288, 294), 317, *range(320, 326))
) | frozenset((330, *range(332, 348), *range(512, 522), *range(529, 533), 559, 34675, 59932, 59933))
# Lengths and places in the old picture's pixels, and how far it was compressed.
_OLD_PIXELS = frozenset((37122, 37396, *range(41486, 41489), 41492))
_XMP, _IPTC, _PHOTOSHOP, _TRANSFER = 700, 33723, (34377, 37724, 50255), 301
_GEO = frozenset((33550, 33920, 33922, 34264, *range(34735, 34738), 42112, 42113))
# Tags from 32768 on that EXIF and Windows define. All others are some program's own.
_PUBLIC = (
    range(33432, 33438), range(34665, 34666), range(34850, 34870), range(36864, 37523), range(37888, 37895),
    range(40091, 40096), range(40960, 42241), range(50341, 50342),
)  # fmt: skip

_TEXTS = (BYTE, ASCII, UNDEFINED)  # types of which one value takes many bytes

DAMAGED = "damaged EXIF entries"


@dataclass(frozen=True)
class Exif:
    """The tags of a picture. notes: what was left out, in words. order: the byte order, on which maker notes rely."""

    tree: Tree
    order: str = "<"
    notes: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """A block as JPEG and WebP hold it, from b"Exif\\0\\0" on."""
        head = b"II\x2a\0\x08\0\0\0" if self.order == "<" else b"MM\0\x2a\0\0\0\x08"
        return PREFIX + head + encode_tree(self.tree, self.order, len(head))

    @property
    def orientation(self) -> int:
        """1 to 8; other values are reserved and mean 1."""
        value = self.number(Base.Orientation) or 1
        return int(value) if value in range(1, 9) else 1

    def number(self, tag: int) -> float | None:
        """The first number of a tag of the main directory; None where there is none."""
        entry = self.tree.entries.get(tag)
        numbers = entry.numbers() if entry else []
        return numbers[0] if numbers and math.isfinite(numbers[0]) else None

    def dpi(self, default_unit: int = 0) -> tuple[float, float] | None:
        """(x, y) in dots per inch. default_unit: what a missing unit means (2 inch, 3 cm)."""
        x, y = self.number(Base.XResolution), self.number(Base.YResolution)
        unit = self.number(Base.ResolutionUnit)
        per_inch = {2: 1.0, 3: 2.54}.get(int(default_unit if unit is None else unit))
        return None if per_inch is None or x is None or y is None else plausible_dpi(x * per_inch, y * per_inch)

    def upright(self) -> Exif:
        """The same for the picture after it was turned."""
        main = {tag: entry for tag, entry in self.tree.entries.items() if tag != Base.Orientation}
        tree = replace(self.tree, entries=main)
        if not tree.is_empty():
            tree = replace(tree, entries={**main, Base.Orientation: entry_of(SHORT, 1)})
        return replace(self, tree=tree)

    def of_size(self, width: int, height: int) -> Exif:
        """The same with the size of the pixels, where the old one was told."""
        details = dict(self.tree.children.get(IFD.Exif, Tree()).entries)
        for tag, side in ((Base.ExifImageWidth, width), (Base.ExifImageHeight, height)):
            if tag in details:
                details[tag] = entry_of(LONG, side)
        return self._with_child(IFD.Exif, details)

    def of_resolution(self, dpi: tuple[float, float] | None, is_needed: bool) -> Exif:
        """The same with this resolution, where one was told before or `is_needed`. None takes it away."""
        main = dict(self.tree.entries)
        was_told = not main.keys().isdisjoint(RESOLUTION)
        for tag in RESOLUTION:
            main.pop(tag, None)
        if dpi is not None and (was_told or is_needed):
            main |= resolution_entries(dpi)
        return replace(self, tree=replace(self.tree, entries=main))

    def shortened(self, limit: int) -> Exif | None:
        """The same without the longest entries, so that its block has at most `limit` bytes; None without any left."""
        exif = self
        while (excess := len(exif.encode()) - limit) > 0:
            longest = sorted(((len(entry.data), path, tag) for path, tag, entry in _walk(exif.tree)), reverse=True)
            if not longest:
                return None
            for size, path, tag in longest:
                exif = replace(exif, tree=_without(exif.tree, path, tag))
                excess -= size + 12  # its row in the table
                if excess <= 0:
                    break
        return exif

    def _with_child(self, pointer: int, entries: dict[int, Entry]) -> Exif:
        child = self.tree.children.get(pointer, Tree())
        children = {**self.tree.children, pointer: replace(child, entries=entries)}
        return replace(self, tree=replace(self.tree, children=children))


def read_block(block: bytes) -> Exif | None:
    """The EXIF of a block with or without its prefix. None where it has nothing to tell. Damage is left out."""
    block = block[len(PREFIX) :] if block.startswith(PREFIX) else block
    if not block.strip(b"\0"):
        return None
    try:
        return read_tags(TiffReader(io.BytesIO(block)))
    except ValueError:
        return Exif(Tree(), notes=(DAMAGED,))


def read_tags(reader: TiffReader) -> Exif:
    """The tags of the first directory and of those that EXIF hangs below it; previews and layout are left out.

    Raises ValueError where the directory itself lies outside the file.
    """
    left_out: list[str] = []
    main = reader.directory(reader.first_offset, _is_kept)
    left_out += _kinds(main.tags)
    is_whole, children = main.is_whole, {}
    for pointer, deeper in _POINTERS.items():
        child, is_child_whole = _read_child(reader, main.entries.get(pointer), pointer, deeper)
        children[pointer] = child
        is_whole &= is_child_whole
    entries, is_sound = _sound({tag: entry for tag, entry in main.entries.items() if tag not in _POINTERS})
    is_whole &= is_sound
    notes = (*left_out, *(() if is_whole else (DAMAGED,)))
    return Exif(Tree(entries, children), reader.order, notes)


def plausible_dpi(x: float, y: float) -> tuple[float, float] | None:
    """(x, y), or None where this is no resolution but damage."""
    return (x, y) if all(math.isfinite(value) and 1 <= round(value) <= MAX_DPI for value in (x, y)) else None


def resolution_entries(dpi: tuple[float, float]) -> dict[int, Entry]:
    """The tags that tell a resolution. Raises struct.error where it is absurd."""
    ratios = [Fraction(value).limit_denominator(10000) for value in dpi]
    numbers = [entry_of(RATIONAL, ratio.numerator, ratio.denominator) for ratio in ratios]
    return dict(zip(RESOLUTION, [*numbers, entry_of(SHORT, 2)], strict=True))  # 2: per inch


def _read_child(
    reader: TiffReader, pointer: Entry | None, group: int, deeper: tuple[int, ...] = ()
) -> tuple[Tree, bool]:
    if pointer is None:
        return Tree(), True
    offset = reader.child_offset(pointer)
    try:
        found = None if offset is None else reader.directory(offset, lambda tag: tag not in _OLD_PIXELS | {59932})
    except ValueError:
        found = None
    if found is None:
        return Tree(), False
    entries, is_whole, children = dict(found.entries), found.is_whole, {}
    for tag in deeper:
        children[tag], is_child_whole = _read_child(reader, entries.pop(tag, None), tag)
        is_whole &= is_child_whole
    sound, is_sound = _sound(entries, group)
    return Tree(sound, children), is_whole and is_sound


def _is_kept(tag: int) -> bool:
    if tag in _LAYOUT or tag in _OLD_PIXELS or tag in (_XMP, _IPTC, _TRANSFER):
        return False
    return tag < 32768 or (tag not in _GEO and any(tag in known for known in _PUBLIC))


def _kinds(tags: tuple[int, ...]) -> list[str]:
    """What the tags that are left out hold, as far as somebody might miss it."""
    lost = [tag for tag in tags if not _is_kept(tag) and tag not in _LAYOUT | _OLD_PIXELS | {_XMP}]
    names = {
        "Photoshop's own data": [tag for tag in lost if tag in _PHOTOSHOP],
        "geotags": [tag for tag in lost if tag in _GEO],
        "IPTC data": [tag for tag in lost if tag == _IPTC],
        "the transfer function": [tag for tag in lost if tag == _TRANSFER],
    }
    rest = sorted(set(lost).difference(*names.values()))
    more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""
    names[f"private tags ({', '.join(map(str, rest[:5]))}{more})"] = rest
    return [name for name, group in names.items() if group]


def _sound(entries: dict[int, Entry], group: int | None = None) -> tuple[dict[int, Entry], bool]:
    """The entries that any reader can take, and whether that is all of them.

    Left out are several numbers where the standard has one, and types that EXIF does not have.
    """
    sound = {
        tag: entry
        for tag, entry in entries.items()
        if entry.kind < LONG8 and (entry.count == 1 or entry.kind in _TEXTS or TiffTags.lookup(tag, group).length != 1)
    }
    return sound, len(sound) == len(entries)


def _walk(tree: Tree, path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], int, Entry]]:
    own = [(path, tag, entry) for tag, entry in tree.entries.items()]
    return own + [item for tag, child in tree.children.items() for item in _walk(child, (*path, tag))]


def _without(tree: Tree, path: tuple[int, ...], tag: int) -> Tree:
    if path:
        child = _without(tree.children[path[0]], path[1:], tag)
        return replace(tree, children={**tree.children, path[0]: child})
    return replace(tree, entries={key: entry for key, entry in tree.entries.items() if key != tag})
