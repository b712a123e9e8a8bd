"""PNG's chunks: damaged, long or strange ones never stop a picture whose pixels can be decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from helpers.picture_bytes import SRGB, WRITTEN, H, W, bad_crc, chunks_of, encoded, load, pixels, saved, with_chunks
from teasr_core.errors import InputError
from teasr_core.picture_files.containers.png import png_chunk
from teasr_core.picture_files.fit import fit_picture
from teasr_core.picture_files.read import load_picture
from teasr_core.picture_files.write import save_picture

pytestmark = pytest.mark.filterwarnings("error")


def test_a_long_workflow_stays_readable(tmp_path):
    text = b"{" + b"workflow " * 400_000 + b"}"
    for chunk in (
        png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(text)),
        png_chunk(b"iTXt", b"workflow\0\1\0en\0Ablauf\0" + zlib.compress(text)),
        png_chunk(b"tEXt", b"workflow\0" + text),
    ):
        picture = load(tmp_path, with_chunks(chunk), ".png")
        assert picture.note is None
        saved(tmp_path, picture, ".png")
        with Image.open(tmp_path / "out.png") as image:
            assert image.text["workflow"].encode() == text
        fitted = fit_picture(picture, "a.jpg")
        assert fitted.note == "left out: PNG text (workflow)" and fitted.text == ()


def test_short_texts_of_every_kind_travel_unchanged(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "{}")
    info.add_text("workflow", "w" * 3000, zip=True)
    info.add_itxt("Title", "照片", "zh", "标题")
    picture = load(tmp_path, encoded("PNG", pnginfo=info), ".png")
    saved(tmp_path, picture, ".png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.text == {"prompt": "{}", "workflow": "w" * 3000, "Title": "照片"}
    after = with_chunks(png_chunk(b"tEXt", b"late\0text"), before=b"IEND")
    assert load(tmp_path, after, ".png").text == ((b"tEXt", b"late\0text"),)


def test_a_bomb_of_text_is_left_out(tmp_path):
    bomb = zlib.compress(bytes(70 * 2**20), 9)
    picture = load(tmp_path, with_chunks(png_chunk(b"zTXt", b"bomb\0\0" + bomb)), ".png")
    assert picture.text == () and "bomb" in picture.note
    many = [png_chunk(b"tEXt", b"long%d\0" % k + b"a" * 2**24) for k in range(5)]
    picture = load(tmp_path, with_chunks(*many), ".png")
    assert len(picture.text) == 3 and "over 63 MiB" in picture.note
    saved(tmp_path, picture, ".png")


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_profile_above_a_mebibyte_travels(tmp_path, suffix):
    profile = struct.pack(">I", len(SRGB) + 1_500_000) + SRGB[4:] + bytes(1_500_000)
    chunk = png_chunk(b"iCCP", b"long\0\0" + zlib.compress(profile))
    for name, data in ((".png", with_chunks(chunk)), (".jpg", encoded("JPEG", icc_profile=profile))):
        picture = load(tmp_path, data, name)
        assert picture.icc == profile and picture.note is None
        save_picture(picture, tmp_path / f"out{suffix}", overwrite=True)
        again = load_picture(tmp_path / f"out{suffix}")
        assert again.icc == profile and again.note is None


def test_a_profile_that_no_jpeg_can_hold_is_refused(tmp_path):
    profile = struct.pack(">I", 17 * 2**20) + SRGB[4:] + bytes(17 * 2**20 - len(SRGB))
    picture = load(tmp_path, with_chunks(png_chunk(b"iCCP", b"long\0\0" + zlib.compress(profile))), ".png")
    with pytest.raises(InputError, match="colour profile has"):
        fit_picture(picture, "a.jpg")
    assert fit_picture(picture, "a.webp").icc == profile


DAMAGED = {
    "text, checksum": bad_crc(b"tEXt", b"Title\0text"),
    "profile, checksum": bad_crc(b"iCCP", b"p\0\0" + zlib.compress(SRGB)),
    "profile, not compressed": png_chunk(b"iCCP", b"p\0\0" + SRGB[:200]),
    "EXIF, checksum": bad_crc(b"eXIf", b"II\x2a\0\x08\0\0\0\0\0\0\0\0\0"),
    "EXIF, no header": png_chunk(b"eXIf", b"no EXIF at all"),
    "gamma, checksum": bad_crc(b"gAMA", struct.pack(">I", 100000)),
    "gamma, length": png_chunk(b"gAMA", b"\0\1"),
    "zTXt, not compressed": png_chunk(b"zTXt", b"Title\0\0plain"),
    "zTXt, unknown method": png_chunk(b"zTXt", b"Title\0\7" + zlib.compress(b"a")),
    "iTXt, too short": png_chunk(b"iTXt", b"Title\0"),
    "text, no keyword": png_chunk(b"tEXt", b"\0text"),
    "raw profile, no digits": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyzt\n"),
    "raw profile, odd digits": png_chunk(b"zTXt", b"Raw profile type icc\0\0" + zlib.compress(b"\nicc\n 2\nabc\n")),
    "raw profile, not compressed": png_chunk(b"zTXt", b"Raw profile type xmp\0\0abc"),
    "IPTC": png_chunk(b"tEXt", b"Raw profile type iptc\0\niptc\n 2\nabcd\n"),
    "transparency, checksum": bad_crc(b"tRNS", bytes(6)),
    "XMP, not compressed": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0abc"),
    "XMP, not UTF-8": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x>\xff</x>"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_chunk_is_left_out_with_one_note(tmp_path, name):
    for data in (with_chunks(DAMAGED[name]), with_chunks(DAMAGED[name], before=b"IEND")):
        picture = load(tmp_path, data, ".png")
        assert np.array_equal(np.rint(picture.rgb[0].permute(1, 2, 0).numpy() * 255), pixels())
        assert picture.alpha is None
        assert picture.note.startswith("left out: ") and "\n" not in picture.note
        for suffix in WRITTEN:
            saved(tmp_path, picture, suffix)


def test_a_png_may_lack_its_end_but_no_pixels(tmp_path):
    png = encoded("PNG")
    end = png.index(b"IEND") - 4
    for data in (png[:end], png[: end + 5], png[: end - 4], png[:end] + b"\0\0\0\5tEX", png[:end] + b"\xff" * 40):
        picture = load(tmp_path, data, ".png")
        assert np.array_equal(np.rint(picture.rgb[0].permute(1, 2, 0).numpy() * 255), pixels())
        assert "end" in picture.note
    for cut in (end - 30, end - 60, 60):
        (tmp_path / "cut.png").write_bytes(png[:cut])
        with pytest.raises(InputError, match="damaged"):
            load_picture(tmp_path / "cut.png")


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_chunks_on_colour_are_copied_or_named(tmp_path, suffix):
    gamma, pq = struct.pack(">I", 100000), b"\x09\x10\0\1"
    srgb = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    cases = [
        ([(b"cICP", pq)], "cICP"),
        ([(b"gAMA", gamma)], "gAMA"),
        ([(b"gAMA", gamma), (b"cHRM", srgb)], "gAMA"),
        ([(b"cHRM", struct.pack(">8I", *[20000] * 8))], "cHRM"),
        ([(b"cICP", pq), (b"mDCV", bytes(24)), (b"cLLI", bytes(8))], "cICP"),
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", srgb)], None),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))], None),
        ([(b"iCCP", b"p\0\0" + zlib.compress(SRGB)), (b"gAMA", gamma)], None),
    ]
    for chunks, name in cases:
        data = with_chunks(*(png_chunk(*chunk) for chunk in chunks))
        picture = load(tmp_path, data, ".png")
        written = chunks_of(saved(tmp_path, picture, ".png"))
        kept = {chunk for chunk in chunks if chunk[0] != b"iCCP"}
        assert kept == {
            chunk for chunk in written if chunk[0] in (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"mDCV", b"cLLI")
        }
        note = fit_picture(picture, f"a{suffix}").note
        assert note is None if name is None else note.startswith(f"left out: {name}")
        saved(tmp_path, picture, suffix)


def test_a_palette_with_transparency_and_metadata(tmp_path):
    palette = Image.fromarray(pixels()).quantize(16)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(range(0, 160, 10)))
    png = buffer.getvalue()
    place = png.index(b"IDAT") - 4
    data = png[:place] + bad_crc(b"tEXt", b"a\0b") + png_chunk(b"gAMA", struct.pack(">I", 100000)) + png[place:]
    picture = load(tmp_path, data, ".png")
    wanted = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    assert np.array_equal(np.rint(picture.alpha[0, 0].numpy() * 255), wanted[..., 3])
    assert "damaged PNG chunks (tEXt)" in picture.note
    # More transparencies than colours: the surplus means nothing.
    few = Image.fromarray(pixels()).quantize(4)
    buffer = io.BytesIO()
    few.save(buffer, "PNG")
    png = buffer.getvalue()
    place = png.index(b"IDAT") - 4
    data = png[:place] + png_chunk(b"tRNS", bytes(256)) + png[place:]
    assert load(tmp_path, data, ".png").alpha is not None


def test_an_animated_png_of_one_frame_is_a_picture(tmp_path):
    control = png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, W, H, 0, 0, 1, 1, 0, 0))
    one = with_chunks(png_chunk(b"acTL", struct.pack(">II", 1, 0)), control)
    assert load(tmp_path, one, ".png").note is None
    broken = with_chunks(bad_crc(b"acTL", struct.pack(">II", 7, 0)))
    assert "acTL" in load(tmp_path, broken, ".png").note
    hidden = with_chunks(png_chunk(b"acTL", struct.pack(">II", 1, 0)))  # a first picture that is no frame
    with pytest.raises(InputError, match="2 frames"):
        load(tmp_path, hidden, ".png")
