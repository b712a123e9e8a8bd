"""HEIC, AVIF and JPEG XL: read where the package is installed, named with it where not; GIF and other kinds."""

import sys

import numpy as np
import pytest
from PIL import Image

from teasr_core.errors import InputError
from teasr_core.picture_files import formats
from teasr_core.picture_files.find import list_folder, name_left_out
from teasr_core.picture_files.formats import AVIF, HEIC, JPEG_XL, OPTIONAL, is_installed, readable_extensions
from teasr_core.picture_files.read import load_picture, read_size
from teasr_core.picture_files.write import save_picture

IDS = [kind.name for kind in OPTIONAL]


def _ramp(width=48, height=32):
    """Red rises to the right, green downwards."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return np.stack(np.broadcast_arrays(across[None], down[:, None], 40.0), axis=2).astype(np.uint8)


def _write(path, kind, **options):
    if not is_installed(kind):
        pytest.skip(f"{kind.package} is not installed")
    options = {"quality": 95} | options
    Image.fromarray(_ramp()).save(path, kind.pillow_name, **options)
    return path


@pytest.fixture
def without_packages(monkeypatch):
    """As on a machine where no package for HEIC and JPEG XL is installed, and Pillow cannot read AVIF."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.setattr(formats.features, "check", lambda name: False)
    is_installed.cache_clear()
    yield
    is_installed.cache_clear()


@pytest.mark.parametrize("kind", OPTIONAL, ids=IDS)
def test_the_pixels_are_read(tmp_path, kind):
    path = _write(tmp_path / f"a{kind.extensions[0]}", kind)
    picture = load_picture(path)
    assert picture.rgb.shape == (1, 3, 32, 48) and read_size(path) == (48, 32)
    found = picture.rgb[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - _ramp()).mean() < 4
    assert path.suffix in readable_extensions()


@pytest.mark.parametrize("kind", [HEIC, AVIF], ids=["HEIC", "AVIF"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photograph_is_upright_once(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    exif[271] = "Camera"
    path = _write(tmp_path / f"a{kind.extensions[0]}", kind, exif=exif.tobytes())
    expected = np.rot90(_ramp(), {3: 2, 6: -1, 8: 1}[orientation])
    picture = load_picture(path)
    assert read_size(path) == (expected.shape[1], expected.shape[0]) == tuple(picture.rgb.shape[:1:-1])
    assert np.abs(picture.rgb[0].permute(1, 2, 0).numpy() * 255 - expected).mean() < 4
    save_picture(picture, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.getexif()[274] == 1 and image.getexif()[271] == "Camera"


def test_jpeg_xl_has_an_orientation_of_its_own(tmp_path):
    """The EXIF orientation counts only where the file is a JPEG that was recompressed without loss."""
    exif = Image.Exif()
    exif[274] = 6
    path = _write(tmp_path / "own.jxl", JPEG_XL, exif=exif.tobytes())
    assert read_size(path) == (48, 32) and load_picture(path).rgb.shape[-2:] == (32, 48)
    Image.fromarray(_ramp()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        image.save(tmp_path / "recompressed.jxl", "JXL", lossless_jpeg=True, exif=exif.tobytes())
    turned = load_picture(tmp_path / "recompressed.jxl")
    assert read_size(tmp_path / "recompressed.jxl") == (32, 48) and turned.rgb.shape[-2:] == (48, 32)
    assert (turned.rgb - load_picture(tmp_path / "a.jpg").rgb).abs().max() < 1e-6


@pytest.mark.parametrize("kind", OPTIONAL, ids=IDS)
def test_without_the_package_the_message_names_it(tmp_path, kind, request):
    path = _write(tmp_path / f"a{kind.extensions[0]}", kind)
    renamed = tmp_path / "renamed.jpg"
    renamed.write_bytes(path.read_bytes())
    request.getfixturevalue("without_packages")
    for file in (path, renamed):
        with pytest.raises(InputError, match="pip install") as caught:
            load_picture(file)
        assert kind.name in str(caught.value) and kind.package in str(caught.value)
        assert read_size(file) is None
    files = list_folder(tmp_path)
    assert [file.name for file in files.others] == [path.name]
    assert kind.package in name_left_out(files.others, tmp_path)


@pytest.mark.parametrize("kind", OPTIONAL, ids=IDS)
@pytest.mark.parametrize("length", [20, 200])
def test_a_file_that_was_cut_is_one_clear_error(tmp_path, kind, length):
    path = _write(tmp_path / f"a{kind.extensions[0]}", kind)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError) as caught:
        load_picture(path)
    assert "\n" not in str(caught.value) and "convert it first" not in str(caught.value)


@pytest.mark.parametrize("primary", [0, 1])
def test_of_several_pictures_in_a_heic_file_the_primary_one_is_read(tmp_path, primary):
    pillow_heif = pytest.importorskip("pillow_heif")
    album = pillow_heif.from_pillow(Image.new("RGB", (48, 32), (200, 0, 0)))
    album.add_from_pillow(Image.new("RGB", (32, 32), (0, 0, 200)))
    album.save(tmp_path / "a.heic", primary_index=primary)
    picture = load_picture(tmp_path / "a.heic")
    assert picture.rgb.shape[-2:] == ((32, 32) if primary else (32, 48))
    assert bool((picture.rgb[0, 2] > picture.rgb[0, 0]).all()) == bool(primary)
    assert "the further pictures of the file" in (picture.note or "")
    assert read_size(tmp_path / "a.heic") == ((32, 32) if primary else (48, 32))


def test_other_kinds_are_named(tmp_path):
    Image.fromarray(_ramp()).save(tmp_path / "a.gif")
    Image.fromarray(_ramp()).save(tmp_path / "a.jp2")
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    for name, text in (("a.gif", "is a GIF; .* save the frame"), ("a.jp2", "JPEG 2000"), ("a.png", "is a GIF")):
        with pytest.raises(InputError, match=text):
            load_picture(tmp_path / name)


def test_jfif_is_jpeg(tmp_path):
    Image.fromarray(_ramp()).save(tmp_path / "a.jfif", "JPEG", quality=95)
    picture = load_picture(list_folder(tmp_path).images[0])
    save_picture(picture, tmp_path / "b.jfif")
    with Image.open(tmp_path / "b.jfif") as image:
        assert image.format == "JPEG" and image.size == (48, 32)


def test_a_very_large_picture_is_read_on_request(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(_ramp()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # 48 x 32 is more than twice as many
    with pytest.raises(InputError, match="--allow-large-input"):
        load_picture(path)
    assert read_size(path) is None
    assert load_picture(path, allow_large=True).rgb.shape == (1, 3, 32, 48)
    assert read_size(path, allow_large=True) == (48, 32)
    assert Image.MAX_IMAGE_PIXELS == 700


def test_what_is_left_out_is_sorted_and_counted(tmp_path):
    for k in range(12):
        (tmp_path / f"{k:02}.txt").write_text("caption")
    Image.fromarray(_ramp()).save(tmp_path / "a.png")
    (tmp_path / ".hidden.txt").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.GIF").write_bytes(b"")
    assert name_left_out(list_folder(tmp_path / "sub").images) is None
    files = list_folder(tmp_path, is_recursive=True)
    assert [path.name for path in files.images] == ["a.png"] and len(files.others) == 13
    assert name_left_out(files.others, tmp_path).startswith("left out 13 files that are not of a kind that is read: 00")
    assert name_left_out(files.others, tmp_path).endswith("09.txt and 3 more")


def test_links(tmp_path):
    """A linked file is a file; a linked folder is not entered, so that no circle of links is walked."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(_ramp()).save(tmp_path / "elsewhere.png")
    try:
        (tmp_path / "in" / "linked.png").symlink_to(tmp_path / "elsewhere.png")
        (tmp_path / "in" / "broken.png").symlink_to(tmp_path / "nothing.png")
        (tmp_path / "in" / "sub" / "circle").symlink_to(tmp_path / "in", target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make links")
    files = list_folder(tmp_path / "in", is_recursive=True)
    assert [path.name for path in files.images] == ["linked.png"]
    assert [path.name for path in files.others] == ["broken.png"]
