"""`--grain`: the noise of the input comes back, by seed and whatever the tiles; 0 changes no byte."""

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("tiny_model")
SIGMA = 12.0


@pytest.fixture
def noisy(tmp_path):
    """96 x 80, a soft ramp with white noise, saved in 16 bits' worth of room from black and white."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(90, 160, 96)[None, :, None]
    pixels = ramp + SIGMA * rng.standard_normal((80, 96, 3))
    Image.fromarray(pixels.clip(1, 254).round().astype(np.uint8)).save(tmp_path / "noisy.png")
    return tmp_path / "noisy.png"


@pytest.fixture
def upscale(run, tmp_path):
    """upscale(source, *options) at x2 in fp32: the bytes of the result, and its pixels."""

    def call(source, *options):
        out = tmp_path / "out.png"
        code, _, err = run("upscale", source, "-o", out, "--scale", "2", "--dtype", "fp32", "--overwrite", *options)
        assert (code, err) == (0, "")
        return out.read_bytes(), np.asarray(Image.open(out)).astype(float)

    return call


def test_0_is_the_default_and_changes_no_byte(noisy, upscale):
    assert upscale(noisy)[0] == upscale(noisy, "--grain", "0")[0]


def test_what_is_added_is_seeded_and_proportional(noisy, upscale):
    options = (
        "--color-fix",
        "off",
        "--strength",
        "1",
        "--fidelity",
        "1",
    )  # without noise of its own: seeds differ in the grain
    bare = upscale(noisy, *options)[1]
    full, half = (upscale(noisy, *options, "--grain", amount)[1] - bare for amount in ("1", "0.5"))
    again, other = (upscale(noisy, *options, "--grain", "1", "--seed", seed)[1] - bare for seed in ("0", "1"))
    inside = (bare > 60) & (bare < 195)  # clipping cuts the grain elsewhere
    assert 0.3 * SIGMA < full[inside].std() < 1.15 * SIGMA
    assert half[inside].std() == pytest.approx(full[inside].std() / 2, rel=0.1)
    assert (again == full).all()
    assert abs(np.corrcoef(full[inside], other[inside])[0, 1]) < 0.05


def test_the_grain_does_not_depend_on_the_tiles(noisy, upscale):
    fields = []
    for tiles in (("--tile-px", "192"), ("--tile-px", "64", "--overlap-px", "16")):
        options = ("--color-fix", "off", *tiles)
        fields.append(upscale(noisy, *options, "--grain", "1")[1] - upscale(noisy, *options)[1])
    assert np.corrcoef(*(field[30:130, 30:160].ravel() for field in fields))[0, 1] > 0.8


def test_a_clean_picture_gets_none(tmp_path, upscale):
    y, x = np.mgrid[:80, :96]
    picture = np.stack([90 + x, 200 - y, 60 + x // 2 + y // 2], axis=-1)
    picture[20:40, 20:60] = (200, 40, 90)
    Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "clean.png")
    assert upscale(tmp_path / "clean.png", "--grain", "1")[0] == upscale(tmp_path / "clean.png")[0]


@pytest.mark.parametrize("amount", ["-0.1", "1.1", "nan", "much"])
def test_another_amount_is_one_line(noisy, run, tmp_path, amount):
    code, out, err = run("upscale", noisy, "-o", tmp_path / "x.png", f"--grain={amount}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "grain is" in err
