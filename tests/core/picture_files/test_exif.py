"""EXIF never stops a picture; what can be kept is kept to the byte, what would be untrue is left out."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers.picture_bytes import WRITTEN, H, W, encoded, load, pixels, saved, with_chunks
from teasr_core.picture_files.containers.png import png_chunk
from teasr_core.picture_files.exif import PREFIX, read_block
from teasr_core.picture_files.fit import fit_picture
from teasr_core.picture_files.ifd import Entry, Tree, encode_tree
from teasr_core.picture_files.read import load_picture

pytestmark = pytest.mark.filterwarnings("error")
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def random_exif(rng: np.random.Generator) -> bytes:
    """A block with up to 12 entries in each directory: known and other tags, random types and counts."""
    order = str(rng.choice(["<", ">"]))
    known = [270, 271, 274, 282, 283, 296, 305, 306, 315, 33432, 37500, 37510, 37724, 33550, 40092, 700, 34377, 256]

    def entries(tags):
        found = {}
        for _ in range(rng.integers(0, 13)):
            kind, count = int(rng.integers(1, 14)), int(rng.choice([1, 1, 1, 2, 3, 4, 7, 60]))
            tag = int(rng.choice(tags)) if rng.random() < 0.7 else int(rng.integers(1, 65536))
            found[tag] = Entry(kind, count, rng.bytes(count * TYPE_SIZES[kind]), order)
        return found

    gps = Tree(entries(range(32)))
    details = Tree(
        entries([36864, 37121, 37386, 37396, 40962, 40963, 41486, 41492, 42034, 37500]), {40965: Tree(entries([1, 2]))}
    )
    tree = Tree(entries(known), {34665: details, 34853: gps})
    block = (b"II\x2a\0\x08\0\0\0" if order == "<" else b"MM\0\x2a\0\0\0\x08") + encode_tree(tree, order, 8)
    if rng.random() < 0.3:  # cut short, or with bytes that are not as they were
        block = block[: int(rng.integers(0, len(block)))]
    if rng.random() < 0.3:
        spoilt = bytearray(block)
        for _ in range(min(len(block), 8)):
            spoilt[int(rng.integers(0, len(block)))] = int(rng.integers(0, 256))
        block = bytes(spoilt)
    return block


def with_exif(block: bytes, kind: str) -> bytes:
    if kind == ".jpg":
        jpeg = encoded("JPEG")
        return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + PREFIX + block + jpeg[2:]
    if kind == ".png":
        return with_chunks(png_chunk(b"eXIf", block))
    if kind == ".raw.png":
        digits = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
        return with_chunks(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits)))
    return encoded("WEBP", exif=PREFIX + block)


@pytest.mark.parametrize("part", range(10))
def test_no_exif_block_stops_a_picture(tmp_path, part):
    """1000 random blocks, each in one format, restored to another: no error, no warning, and pixels as without them."""
    kinds = (".jpg", ".png", ".raw.png", ".webp")
    plain = {kind: load(tmp_path, with_exif(b"", kind), kind).rgb for kind in kinds}
    for seed in range(100 * part, 100 * part + 100):
        rng = np.random.default_rng(seed)
        block, kind, suffix = random_exif(rng), kinds[seed % 4], WRITTEN[seed // 4 % 4]
        picture = load(tmp_path, with_exif(block, kind), kind)
        turned = picture.rgb.shape != plain[kind].shape
        assert sorted(picture.rgb.flatten().tolist()) == sorted(plain[kind].flatten().tolist())
        assert turned or picture.rgb.shape[-2:] == (H, W)
        saved(tmp_path, picture, suffix)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_tags_of_a_tiff_at_random(tmp_path, suffix):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        plain = encoded("TIFF")
        start = struct.unpack("<I", plain[4:8])[0]
        count = struct.unpack("<H", plain[start : start + 2])[0]
        rows = [plain[start + 2 + 12 * k :][:12] for k in range(count)]
        tags = sorted({*rng.integers(300, 65536, 20).tolist(), 33432, 34665, 37724, 282} - {317, 320, *range(320, 350)})
        for tag in tags:
            rows.append(struct.pack("<HHI4s", tag, int(rng.integers(0, 20)), int(rng.integers(0, 9)), rng.bytes(4)))
        table = struct.pack("<H", len(rows)) + b"".join(sorted(rows, key=lambda row: row[:2][::-1])) + rng.bytes(4)
        data = plain + b"\0" * (len(plain) % 2)
        data = data[:4] + struct.pack("<I", len(data)) + data[8:] + table
        picture = load(tmp_path, data, ".tif")
        assert np.array_equal(np.rint(picture.rgb[0].permute(1, 2, 0).numpy() * 255), pixels())
        saved(tmp_path, picture, suffix)


ODD = {
    "altitude below the sea": (34853, 6, Entry(10, 1, struct.pack("<ii", -123, 10))),
    "altitude reference of 256": (34853, 5, Entry(3, 1, struct.pack("<H", 256))),
    "longitude as text": (34853, 4, Entry(2, 5, b"east\0")),
    "resolution as text": (None, 282, Entry(2, 4, b"300\0")),
    "signed resolution": (None, 282, Entry(10, 1, struct.pack("<ii", -72, 1))),
    "software as a fraction": (None, 305, Entry(5, 1, struct.pack("<II", 1, 2))),
    "text of raw bytes": (None, 270, Entry(2, 4, b"\xff\xfe\0\x80")),
    "a maker note": (34665, 37500, Entry(7, 300, bytes(range(100)) * 3)),
}


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("name", ODD)
def test_odd_exif_is_kept_to_the_byte(tmp_path, name, suffix):
    pointer, tag, entry = ODD[name]
    tree = Tree({271: Entry(2, 6, b"maker\0")}, {pointer: Tree({tag: entry})}) if pointer else Tree({tag: entry})
    block = b"II\x2a\0\x08\0\0\0" + encode_tree(tree, "<", 8)
    picture = load(tmp_path, with_exif(block, ".jpg"), ".jpg")
    assert picture.note is None
    saved(tmp_path, picture, suffix)
    back = read_block(load_picture(tmp_path / f"out{suffix}").exif or b"")
    if tag == 282:  # no resolution can be made of it, so none is told
        assert back is None or tag not in back.tree.entries
        return
    found = (back.tree.children[pointer] if pointer else back.tree).entries[tag]
    assert (found.kind, found.count, found.data) == (entry.kind, entry.count, entry.data)


def test_exif_too_long_for_a_jpeg_loses_its_longest_entries(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif.get_ifd(0x8769)[0x927C] = bytes(range(256)) * 280
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    picture = load(tmp_path, encoded("PNG", exif=exif), ".png")
    assert "EXIF" in fit_picture(picture, "a.jpg").note
    assert fit_picture(picture, "a.webp").note is None
    saved(tmp_path, picture, ".jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        read = image.getexif()
        assert read[0x010F] == "maker" and read.get_ifd(0x8769) == {0x9003: "2020:01:02 03:04:05"}
    saved(tmp_path, picture, ".tif")
    with Image.open(tmp_path / "out.tif") as image:
        assert len(image.getexif().get_ifd(0x8769)[0x927C]) == 256 * 280


def test_sizes_resolution_and_orientation_are_true_afterwards(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 150.0, 2
    exif.get_ifd(0x8769).update({0xA002: W, 0xA003: H, 0xA20E: 5.0, 0xA20F: 5.0, 0xA210: 3, 0x9214: (1, 2)})
    picture = load(tmp_path, encoded("PNG", exif=exif), ".png")
    assert picture.rgb.shape[-2:] == (W, H) and picture.dpi == (150.0, 300.0)
    for suffix in WRITTEN:
        saved(tmp_path, picture, suffix)
        tags = read_block(load_picture(tmp_path / f"out{suffix}").exif)
        assert tags.orientation == 1 and tags.dpi(2) in ((150.0, 300.0), None)
        details = {tag: entry.numbers() for tag, entry in tags.tree.children[0x8769].entries.items()}
        assert details == {0xA002: [H], 0xA003: [W]}
