"""XMP, profiles, segments of JPEG, chunks of WebP and tags of TIFF: kept, or left out with one note."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from helpers.picture_bytes import SRGB, WRITTEN, H, W, encoded, load, pixels, saved, with_chunks
from teasr_core.errors import InputError
from teasr_core.picture_files.containers.png import png_chunk
from teasr_core.picture_files.exif import read_block
from teasr_core.picture_files.fit import fit_picture
from teasr_core.picture_files.ifd import Entry, Tree
from teasr_core.picture_files.read import load_picture
from teasr_core.picture_files.write import save_picture

pytestmark = pytest.mark.filterwarnings("error")

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description dc:title="A" tiff:Orientation="6" '
    b"exif:PixelXDimension='14' hdrgm:Version=\"1.0\"><tiff:ImageWidth>14</tiff:ImageWidth><xmp:Thumbnails><rdf:Alt>"
    b"</rdf:Alt></xmp:Thumbnails><dc:creator>B</dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("source", [".png", ".jpg", ".webp", ".tif", ".raw.png"])
def test_xmp_travels_without_what_is_untrue(tmp_path, source, suffix):
    if source == ".png":
        data = with_chunks(png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP))
    elif source == ".raw.png":
        data = with_chunks(png_chunk(b"tEXt", b"Raw profile type xmp\0\nxmp\n 9\n" + XMP.hex().encode()))
    elif source == ".tif":
        data = encoded("TIFF", tiffinfo={700: XMP})
    else:
        data = encoded({".jpg": "JPEG", ".webp": "WEBP"}[source], xmp=XMP)
    picture = load(tmp_path, data, source)
    assert picture.note is None and b"dc:title" in picture.xmp and b"<dc:creator>B</dc:creator>" in picture.xmp
    for gone in (b"tiff:", b"exif:", b"hdrgm", b"Thumbnails"):
        assert gone not in picture.xmp
    saved(tmp_path, picture, suffix)
    assert load_picture(tmp_path / f"out{suffix}").xmp == picture.xmp
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.info["xmp"] == picture.xmp or suffix == ".png"


def test_xmp_too_long_for_a_jpeg_is_left_out(tmp_path):
    packet = b"<x>" + b"a" * 70_000 + b"</x>"
    picture = load(tmp_path, encoded("WEBP", xmp=packet), ".webp")
    assert "XMP" in fit_picture(picture, "a.jpg").note and fit_picture(picture, "a.jpg").xmp is None
    for suffix in (".png", ".tif", ".webp"):
        saved(tmp_path, picture, suffix)
        assert load_picture(tmp_path / f"out{suffix}").xmp == packet


# JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_may_lack_its_end_but_no_pixels(tmp_path, mode, options):
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 4), dtype=np.uint8)
    image = Image.fromarray(noise[..., :3]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    jpeg = buffer.getvalue()
    whole = load(tmp_path, jpeg, ".jpg")
    assert whole.note is None
    for data in (jpeg[:-2], jpeg[:-1]):
        picture = load(tmp_path, data, ".jpg")
        assert np.array_equal(picture.rgb, whole.rgb)
        assert "end of the JPEG" in picture.note
    scans = [k for k in range(len(jpeg) - 1) if jpeg[k : k + 2] == b"\xff\xda"]
    restarts = [k for k in range(len(jpeg) - 1) if jpeg[k] == 0xFF and 0xD0 <= jpeg[k + 1] <= 0xD7]
    cuts = [len(jpeg) - 2 - n for n in (8, 20, 100, 400)] + [len(jpeg) // 2, len(jpeg) * 9 // 10, *scans[1:]]
    cuts += [cut for place in restarts[-3:] for cut in (place, place + 1, place + 2)]
    for cut in cuts:
        (tmp_path / "cut.jpg").write_bytes(jpeg[:cut])
        with pytest.raises(InputError, match="damaged"):
            load_picture(tmp_path / "cut.jpg")


def test_a_comment_goes_from_jpeg_to_jpeg_and_png(tmp_path):
    picture = load(tmp_path, encoded("JPEG", comment=b"by hand"), ".jpg")
    saved(tmp_path, picture, ".jpg")
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.info["comment"] == b"by hand"
    saved(tmp_path, picture, ".png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.text == {"Comment": "by hand"}


def segment(code: int, data: bytes) -> bytes:
    return bytes((0xFF, code)) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    ("segments", "note"),
    [
        (segment(0xE2, b"ICC_PROFILE\0\1\2" + SRGB), "left out: a damaged colour profile"),
        (segment(0xE2, b"MPF\0II\x2a\0\xff\xff\xff\xff"), None),
        (segment(0xE2, b"MPF\0"), None),
        (segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"), "left out: damaged XMP"),
        (segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60)), "left out: the extension of the XMP"),
        (segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\2ab"), "left out: IPTC data"),
        (segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"), None),
        (segment(0xE0, b"JFXX\0"), None),
        (segment(0xEE, b"Adobe"), None),
        (segment(0xFE, b""), None),
        (b"\xff\xff\xff" + segment(0xE5, b"")[1:], None),
    ],
)  # fmt: skip
def test_odd_segments_of_a_jpeg(tmp_path, segments, note):
    jpeg = encoded("JPEG")
    for place in (2, jpeg.index(b"\xff\xdb")):
        picture = load(tmp_path, jpeg[:place] + segments + jpeg[place:], ".jpg")
        assert picture.note == note
        saved(tmp_path, picture, ".jpg")


def test_a_jpeg_of_two_pictures_is_the_first(tmp_path):
    frames = [Image.fromarray(pixels()), Image.fromarray(pixels()[:4])]
    frames[0].save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=frames[1:])
    data = (tmp_path / "a.mpo").read_bytes()
    picture = load(tmp_path, data, ".jpg")
    assert picture.rgb.shape[-2:] == (H, W) and "further pictures" in picture.note
    saved(tmp_path, picture, ".jpg")
    # The second row of the index, 16 bytes a picture, calls it a preview: nothing is missed.
    offset = data.index(b"MPF\0") + 4
    row = offset + int.from_bytes(data[data.index(b"\x02\xb0", offset) + 8 :][:4], "little") + 16
    assert data[row : row + 4] == bytes(4)
    assert load(tmp_path, data[:row] + b"\x02\0\x01\0" + data[row + 4 :], ".jpg").note is None


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("source", [".jpg", ".png", ".tif"])
def test_a_grey_picture_with_a_colour_profile_becomes_rgb(tmp_path, source, suffix):
    kind = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}[source]
    picture = load(tmp_path, encoded(kind, channels=1, icc_profile=SRGB), source)
    assert picture.is_grey
    saved(tmp_path, picture, suffix)
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.mode == "RGB" and image.info["icc_profile"] == SRGB
        if suffix != ".webp":
            values = np.asarray(image).astype(int)
            assert np.abs(values - values[..., :1]).max() <= 1
    plain = load(tmp_path, encoded(kind, channels=1), source)
    save_picture(plain, tmp_path / "plain.png", overwrite=True)
    with Image.open(tmp_path / "plain.png") as image:
        assert image.mode == "L"


@pytest.mark.parametrize("profile", [b"broken", SRGB, SRGB[:16] + b"CMYK" + SRGB[20:]])
def test_a_cmyk_picture_with_an_unusable_profile(tmp_path, profile):
    buffer = io.BytesIO()
    cmyk = Image.fromarray(pixels()).convert("CMYK")
    cmyk.save(buffer, "JPEG", icc_profile=profile, quality=100)
    picture = load(tmp_path, buffer.getvalue(), ".jpg")
    assert picture.icc is None and "CMYK" in picture.note
    buffer = io.BytesIO()
    cmyk.save(buffer, "JPEG", quality=100)
    assert np.array_equal(load(tmp_path, buffer.getvalue(), ".jpg").rgb, picture.rgb)


def test_a_profile_for_other_pixels_is_left_out(tmp_path):
    profile = SRGB[:16] + b"CMYK" + SRGB[20:]
    picture = load(tmp_path, encoded("PNG", icc_profile=profile), ".png")
    assert picture.icc is None and picture.note == "left out: a colour profile for CMYK pictures"


# WebP


def test_webp_without_its_last_chunks(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    webp = encoded("WEBP", exif=exif, icc_profile=SRGB, lossless=True)
    whole = load(tmp_path, webp, ".webp")
    start = webp.index(b"EXIF")
    for data in (webp[:start], webp[: start + 6], webp[: start + 20]):
        picture = load(tmp_path, data, ".webp")
        assert np.array_equal(picture.rgb, whole.rgb) and picture.icc == SRGB
        saved(tmp_path, picture, ".webp")
    assert "EXIF" in load(tmp_path, webp[: start + 20], ".webp").note
    pixels_at = webp.index(b"VP8L")
    (tmp_path / "cut.webp").write_bytes(webp[: pixels_at + 100])
    with pytest.raises(InputError, match="truncated"):
        load_picture(tmp_path / "cut.webp")


# TIFF


def test_what_a_tiff_says_of_its_old_pixels_is_left_out(tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[37724], info.tagtype[37724] = b"Adobe Photoshop Document Data Block\0" + bytes(80_000), 7
    info[34377], info.tagtype[34377] = b"8BIM\x04\x0c" + bytes(100), 7
    info[33550], info.tagtype[33550] = (10.0, 10.0, 0.0), 12
    info[33922], info.tagtype[33922] = (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), 12
    info[34735], info.tagtype[34735] = (1, 1, 0, 0), 3
    info[65000], info.tagtype[65000] = b"private", 7
    info[315] = "artist"
    picture = load(tmp_path, encoded("TIFF", tiffinfo=info), ".tif")
    assert picture.note == "left out: Photoshop's own data, geotags, private tags (65000)"
    for suffix in WRITTEN:
        data = saved(tmp_path, picture, suffix)
        assert len(data) < 10_000
        tags = read_block(load_picture(tmp_path / f"out{suffix}").exif).tree.entries
        assert tags[315].data == b"artist\0" and not {37724, 34377, 33550, 33922, 34735, 65000} & tags.keys()


def test_previews_are_no_pages(tmp_path):
    big, small = Image.fromarray(pixels()), Image.fromarray(pixels()[:4])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    buffer = io.BytesIO()
    big.save(buffer, "TIFF", save_all=True, append_images=[small], tiffinfo={315: "artist"})
    data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
        image.seek(1)
        is_marked = image.tag_v2.get(254) == 1
    if not is_marked:
        pytest.skip("this Pillow does not mark a page as a preview")
    assert load(tmp_path, data, ".tif").rgb.shape[-2:] == (H, W)


def test_a_big_tiff_goes_in_and_out(tmp_path):
    from teasr_core.picture_files.write_16bit import encode_tiff

    tags = Tree({315: Entry(2, 7, b"artist\0")}, {34665: Tree({36867: Entry(2, 20, b"2020:01:02 03:04:05\0")})})
    data = encode_tiff(pixels(), tags, SRGB, (300.0, 300.0), XMP, longest=10)
    assert data[:4] == b"II\x2b\0"
    picture = load(tmp_path, data, ".tif")
    assert np.array_equal(np.rint(picture.rgb[0].permute(1, 2, 0).numpy() * 255), pixels())
    assert (picture.icc, picture.dpi) == (SRGB, (300.0, 300.0))
    exif = read_block(picture.exif)
    assert exif.tree.entries[315].data == b"artist\0"
    assert exif.tree.children[34665].entries[36867].data.startswith(b"2020")
    saved(tmp_path, picture, ".jpg")


def test_a_picture_above_pillows_limit_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W - 1)
    for kind, suffix in (("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("BMP", ".bmp")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load(tmp_path, encoded(kind), suffix).rgb.shape[-2:] == (H, W)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 2 - 1)
    with pytest.raises(InputError, match="megapixels"):
        load_picture(tmp_path / "in.bmp")
