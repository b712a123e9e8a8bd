"""TIFFs as scanners, cameras and broken downloads leave them: whole ones are read, others named for what they lack."""

import io
import re

import numpy as np
import pytest
from PIL import Image, features

from helpers.picture_bytes import H, W, encoded, pixels
from teasr_core.errors import InputError
from teasr_core.picture_files.ifd import LONG, TiffReader, Tree, encode_tree, entry_of
from teasr_core.picture_files.read import load_picture

COMPRESSIONS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")


def _levels(path) -> np.ndarray:
    return np.asarray((load_picture(path).rgb[0].permute(1, 2, 0) * 255).round(), dtype=np.uint8)


def _strips_first(rows: int) -> bytes:
    """A TIFF that is not compressed, in strips of `rows`, its pixels behind its directory as Pillow writes them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "TIFF", tiffinfo={278: rows}, strip_size=rows * 3 * W)
    return buffer.getvalue()


@pytest.mark.skipif(not features.check("libtiff"), reason="this Pillow has no libtiff")
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_compression_is_read_as_pillow_reads_it(tmp_path, compression, mode):
    buffer = io.BytesIO()
    Image.fromarray(pixels()).convert(mode).save(buffer, "TIFF", compression=compression)
    (tmp_path / "a.tif").write_bytes(buffer.getvalue())
    with Image.open(tmp_path / "a.tif") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(_levels(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("rows", [H, 4, 1])
@pytest.mark.parametrize("missing", [1, 3, 40, 3 * W])
def test_a_tiff_without_its_last_pixels_is_refused(tmp_path, rows, missing):
    data = _strips_first(rows)
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(_levels(tmp_path / "a.tif"), pixels())
    (tmp_path / "a.tif").write_bytes(data[:-missing])
    with pytest.raises(InputError, match="its end is missing"):
        load_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("count", [0, 1, 2**24])
def test_a_wrong_byte_count_of_plain_pixels_changes_nothing(tmp_path, count):
    data = encoded("TIFF")
    entry = re.search(rb"\x17\x01\x04\x00\x01\x00\x00\x00", data)  # StripByteCounts, one LONG
    assert entry is not None
    (tmp_path / "a.tif").write_bytes(data[: entry.end()] + count.to_bytes(4, "little") + data[entry.end() + 4 :])
    assert np.array_equal(_levels(tmp_path / "a.tif"), pixels())


@pytest.mark.skipif(not features.check("libtiff"), reason="this Pillow has no libtiff")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_pixels_are_read_if_they_are_all_there_whatever_byte_count_is_named(tmp_path, compression):
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "TIFF", compression=compression)
    data = bytearray(buffer.getvalue())
    entry = re.search(rb"\x17\x01(\x03|\x04)\x00\x01\x00\x00\x00", data)  # StripByteCounts, one number
    assert entry is not None
    data[entry.start() + 2 : entry.end() + 4] = b"\x04\x00\x01\x00\x00\x00" + (2**24).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(_levels(tmp_path / "a.tif"), pixels())


@pytest.mark.skipif(not features.check("libtiff"), reason="this Pillow has no libtiff")
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_pixels_of_which_some_are_missing_are_refused(tmp_path, compression):
    """The directory stands before the pixels, as Photoshop writes it, so that a cut file keeps it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "TIFF", compression=compression)
    reader = TiffReader(buffer)
    entries = dict(reader.directory(reader.first_offset).entries)
    start, count = (int(entries[tag].numbers()[0]) for tag in (273, 279))
    size = len(encode_tree(Tree(entries | {273: entry_of(LONG, 0)}), "<", 8, False))
    front = encode_tree(Tree(entries | {273: entry_of(LONG, 8 + size)}), "<", 8, False)
    data = b"II*\0\x08\0\0\0" + front + buffer.getvalue()[start : start + count]
    (tmp_path / "a.tif").write_bytes(data)
    load_picture(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(data[: -count // 3])
    with pytest.raises(InputError):
        load_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [
        ("float32", (H, W, 3), "3 x 32-bit floating-point"),
        ("float64", (H, W), "1 x 64-bit floating-point"),
        ("uint16", (H, W, 2), "2 x 16-bit whole"),
    ],
)
def test_a_kind_of_pixels_that_is_not_read_is_not_called_damaged(tmp_path, dtype, shape, text):
    tifffile = pytest.importorskip("tifffile")
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    options = {"planarconfig": "contig"} if len(shape) == 3 else {}
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, dtype), photometric=photometric, **options)
    with pytest.raises(InputError, match=text) as caught:
        load_picture(tmp_path / "a.tif")
    assert "damaged" not in str(caught.value)
    assert "expected 8 or 16-bit" in str(caught.value)
