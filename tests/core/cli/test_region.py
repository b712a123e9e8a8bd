"""`upscale --region`: only the white part of a mask is restored; a mask that does not fit is refused by name."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers.tiny import model as tiny

pytestmark = pytest.mark.usefixtures("tiny_model")
OPTIONS = ("--scale", "2", "--tile-px", "32", "--overlap-px", "8", "--dtype", "fp32")


def write_mask(path, height=40, width=60, mode="L"):
    """White in the upper left corner: in grey, in colour, or painted on a transparent layer."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 3, : width // 4] = 255
    rgba = np.stack([np.full_like(mask, 255), np.zeros_like(mask), np.zeros_like(mask), mask], axis=-1)
    image = {"L": mask, "RGB": np.stack([mask, 0 * mask, 0 * mask], axis=-1), "RGBA": rgba}[mode]
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(tiny.pixels(40, 60, 3)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.fixture
def restored(run, picture, tmp_path):
    """restored(name, *options): the pixels of the picture's restoration (80, 120, 3), and the report on it."""

    def call(name, *options):
        report = tmp_path / f"{name}.json"
        out = tmp_path / f"{name}_out.png"
        code, _, err = run("upscale", picture, "-o", out, *OPTIONS, "--json", report, *options)
        assert (code, err) == (0, "")
        return np.asarray(Image.open(out)).astype(int), json.loads(report.read_text())["images"][0]

    return call


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_outside_is_the_plain_resize_and_fewer_tiles_are_computed(restored, tmp_path, mode):
    resized, _ = restored("resized", "--strength", "0")
    whole, all_tiles = restored("whole")
    part, tiles = restored("part", "--region", write_mask(tmp_path / "mask.png", mode=mode))
    assert (part[27:] == resized[27:]).all() and (part[:, 30:] == resized[:, 30:]).all()
    assert (part[:26, :30] != resized[:26, :30]).any()
    assert (whole[27:] != resized[27:]).any()
    assert 0 < tiles["tiles"] < all_tiles["tiles"]


def test_a_mask_of_the_results_size_draws_the_same_region(restored, tmp_path):
    small, large = write_mask(tmp_path / "s.png"), tmp_path / "l.png"
    Image.open(small).resize((120, 80), Image.Resampling.NEAREST).save(large)
    found = [restored(path.stem, "--region", path)[0] for path in (small, large)]
    assert np.abs(found[0] - found[1]).mean() < 2


def test_a_black_mask_is_the_plain_resize(restored, tmp_path):
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "black.png")
    resized, _ = restored("resized", "--strength", "0")
    assert (restored("part", "--region", tmp_path / "black.png")[0] == resized).all()


def test_a_mask_of_another_picture_a_missing_and_a_broken_one_are_refused(run, picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    write_mask(tmp_path / "square.png", 50, 50)
    for name, expected in {
        "square.png": "the region is 50 x 50 pixels, the picture 60 x 40",
        "missing.png": "missing.png does not exist",
        "broken.png": "broken.png is not an image",
    }.items():
        code, out, err = run("upscale", picture, "-o", tmp_path / "out.png", "--region", tmp_path / name, *OPTIONS)
        assert (code, out) == (2, "")
        assert expected in err and err.count("\n") == 1
        assert not (tmp_path / "out.png").exists()


def test_the_mask_is_never_overwritten(run, picture, tmp_path):
    mask = write_mask(tmp_path / "mask.png")
    before = mask.read_bytes()
    code, _, err = run("upscale", picture, "-o", mask, "--region", mask, "--overwrite", *OPTIONS)
    assert code == 2
    assert "is the input" in err
    assert mask.read_bytes() == before


def test_in_a_folder_the_picture_that_does_not_fit_is_named(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (40, 60)), ("b.png", (60, 40))):
        Image.fromarray(tiny.pixels(*size, 3)).save(tmp_path / "in" / name)
    mask = write_mask(tmp_path / "mask.png")
    code, _, err = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--region", mask, *OPTIONS)
    assert code == 3
    assert "b.png: the region is 60 x 40 pixels, the picture 40 x 60" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
