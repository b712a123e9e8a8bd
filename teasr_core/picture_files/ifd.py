"""The directories of a TIFF, which EXIF blocks are too, as raw bytes.

No value is interpreted on its way from one file to another, so every entry that could be stored can be stored again,
whatever its type and its content.
Formats: TIFF 6.0, BigTIFF, EXIF 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16
# By TIFF's type number: the letter of `struct` for one number, and how many of them make one value.
_NUMBERS = {1: ("B", 1), 3: ("H", 1), 4: ("I", 1), 5: ("I", 2), 6: ("b", 1), 8: ("h", 1), 9: ("i", 1), 10: ("i", 2)}
_NUMBERS |= {11: ("f", 1), 12: ("d", 1), 13: ("I", 1), 16: ("Q", 1), 17: ("q", 1), 18: ("Q", 1)}
_BYTES = {kind: struct.calcsize(letter) * each for kind, (letter, each) in _NUMBERS.items()} | {ASCII: 1, UNDEFINED: 1}
_RATIONALS = (5, 10)
_BIG_ONLY = (16, 17, 18)  # types that a classic TIFF does not have
_MAX_PAGES = 65536


@dataclass(frozen=True)
class Entry:
    """The value of one tag as stored. kind: TIFF's number of the type. order: "<" or ">", that of `data`."""

    kind: int
    count: int
    data: bytes
    order: str = "<"

    def numbers(self) -> list[float]:
        """The values as numbers; none for text, for raw bytes and for fractions with the denominator 0."""
        if self.kind not in _NUMBERS:
            return []
        letter, each = _NUMBERS[self.kind]
        plain = struct.unpack(f"{self.order}{len(self.data) // struct.calcsize(letter)}{letter}", self.data)
        if each == 1:
            return list(plain)
        return [top / bottom for top, bottom in zip(plain[::2], plain[1::2], strict=True) if bottom]

    def ordered(self, order: str) -> bytes:
        """`data` in another byte order."""
        if order == self.order or self.kind not in _NUMBERS:
            return self.data
        width = struct.calcsize(_NUMBERS[self.kind][0])
        return np.frombuffer(self.data, f">u{width}").byteswap().tobytes()

    def first(self) -> Entry:
        """The same entry with its first value alone."""
        return Entry(self.kind, 1, self.data[: _BYTES[self.kind]], self.order)


def entry_of(kind: int, *numbers: int) -> Entry:
    """An entry of whole numbers; a RATIONAL takes two for each value. Raises struct.error where one does not fit."""
    letter, each = _NUMBERS[kind]
    return Entry(kind, len(numbers) // each, struct.pack(f"<{len(numbers)}{letter}", *numbers))


@dataclass(frozen=True)
class Directory:
    """One directory. tags: all that it names. entries: those whose values were wanted and could be read."""

    tags: tuple[int, ...]
    entries: dict[int, Entry]
    next_offset: int
    is_whole: bool


class TiffReader:
    """The directories of a TIFF file or an EXIF block. Raises ValueError where the header is none."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.length = file.seek(0, 2)
        file.seek(0)
        head = file.read(16)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        if not self.order or len(head) < 8:
            raise ValueError("it does not begin as a TIFF")
        (magic,) = struct.unpack(f"{self.order}H", head[2:4])
        self.is_big = magic == 43
        if magic not in (42, 43) or (self.is_big and len(head) < 16):
            raise ValueError("it does not begin as a TIFF")
        (self.first_offset,) = struct.unpack(
            f"{self.order}{'8xQ' if self.is_big else '4xI'}", head[: 8 + 8 * self.is_big]
        )

    def directory(self, offset: int, wants: Callable[[int], bool] = lambda tag: True) -> Directory:
        """The directory at `offset`. Entries that lie outside the file or have no known type are left out."""
        count_form, row_form, next_form = ("Q", "HHQ8s", "Q") if self.is_big else ("H", "HHI4s", "I")
        (count,) = struct.unpack(f"{self.order}{count_form}", self._read(offset, struct.calcsize(f"<{count_form}")))
        start, width = offset + struct.calcsize(f"<{count_form}"), struct.calcsize(f"<{row_form}")
        rows = min(count, max(0, self.length - start) // width)
        table = self._read(start, rows * width)
        tags, entries, is_whole = [], {}, rows == count
        for tag, kind, number, value in struct.iter_unpack(f"{self.order}{row_form}", table):
            tags.append(tag)
            if not wants(tag) or tag in entries or (number == 0 and kind in _BYTES):
                continue  # an entry without a value tells nothing
            data = self._value(kind, number, value)
            if data is None:
                is_whole = False
            else:
                entries[tag] = Entry(kind, number, data, self.order)
        tail = start + rows * width
        size = struct.calcsize(f"<{next_form}")
        next_offset = 0
        if is_whole and tail + size <= self.length:
            (next_offset,) = struct.unpack(f"{self.order}{next_form}", self._read(tail, size))
        return Directory(tuple(tags), entries, next_offset, is_whole)

    def child_offset(self, entry: Entry) -> int | None:
        """Where the directory lies that a pointer names."""
        numbers = entry.numbers()
        return int(numbers[0]) if numbers and 0 < numbers[0] < self.length else None

    def pages(self, wants: Callable[[int], bool]) -> list[Directory]:
        """The directories of all pages after the first, as far as they can be read."""
        found: list[Directory] = []
        seen, offset = {self.first_offset}, self.directory(self.first_offset, lambda tag: False).next_offset
        while offset and offset not in seen and len(found) < _MAX_PAGES:
            seen.add(offset)
            try:
                found.append(self.directory(offset, wants))
            except ValueError:
                break
            offset = found[-1].next_offset
        return found

    def _value(self, kind: int, count: int, inline: bytes) -> bytes | None:
        size = count * _BYTES.get(kind, 0)
        if kind not in _BYTES or (kind in _BIG_ONLY and not self.is_big):
            return None
        if size <= len(inline):
            return inline[:size]
        (offset,) = struct.unpack(f"{self.order}{'Q' if self.is_big else 'I'}", inline)
        return self._read(offset, size) if offset + size <= self.length else None

    def _read(self, offset: int, size: int) -> bytes:
        self.file.seek(min(offset, self.length))
        data = self.file.read(size)
        if len(data) < size:
            raise ValueError("its directory lies outside the file")
        return data


@dataclass(frozen=True)
class Tree:
    """A directory to be written, and those that it points to, by the tag of the pointer. Empty ones are left out."""

    entries: Mapping[int, Entry] = field(default_factory=dict)
    children: Mapping[int, Tree] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not self.entries and all(child.is_empty() for child in self.children.values())


def encode_tree(tree: Tree, order: str, start: int, is_big: bool = False) -> bytes:
    """The bytes of `tree` for the place `start` in a file: a directory, its values, then the directories below it.

    Raises struct.error where an offset or a type does not fit into a classic TIFF.
    """
    children = {tag: child for tag, child in tree.children.items() if not child.is_empty()}
    count_form, row_form, next_form = ("Q", "HHQ", "Q") if is_big else ("H", "HHI", "I")
    inline = struct.calcsize(f"<{next_form}")
    rows = len(tree.entries) + len(children)
    values_at = start + struct.calcsize(f"<{count_form}") + rows * (struct.calcsize(f"<{row_form}") + inline) + inline
    stored = sum(_padded(len(entry.data)) for entry in tree.entries.values() if len(entry.data) > inline)
    below = b""
    table: dict[int, Entry] = dict(tree.entries)
    for tag, child in sorted(children.items()):
        place = values_at + stored + len(below)
        table[tag] = Entry(LONG, 1, struct.pack(f"{order}I", place), order)
        below += encode_tree(child, order, place, is_big)
    head, values = [struct.pack(f"{order}{count_form}", rows)], bytearray()
    for tag, entry in sorted(table.items()):
        if entry.kind in _BIG_ONLY and not is_big:
            raise struct.error(f"tag {tag} is of a type of BigTIFF")
        data = entry.ordered(order)
        head.append(struct.pack(f"{order}{row_form}", tag, entry.kind, entry.count))
        if len(data) <= inline:
            head.append(data.ljust(inline, b"\0"))
            continue
        head.append(struct.pack(f"{order}{next_form}", values_at + len(values)))
        values += data.ljust(_padded(len(data)), b"\0")
    head.append(struct.pack(f"{order}{next_form}", 0))  # no further page
    return b"".join(head) + bytes(values) + below


def _padded(size: int) -> int:
    return size + size % 2  # values begin at even places
