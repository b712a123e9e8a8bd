"""Grain by probability: measured strength, correlation and whiteness; none from a clean picture; the bits of 0."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from teasr_core.errors import InputError
from teasr_core.image import flat_areas
from teasr_core.image.grain import add_grain, grain_source, measure_grain
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize

# R, G and B of a noise that is neither grey nor independent.
MIX = torch.tensor([[0.04, 0.01, 0.0], [0.01, 0.03, 0.0], [0.0, 0.02, 0.05]], dtype=torch.float64)
COVARIANCE = MIX @ MIX.T


def noise(height=192, width=192, mix=MIX, seed=0):
    white = torch.randn(3, height * width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (mix @ white).reshape(1, 3, height, width).float()


def flat(height=192, width=192):
    return torch.tensor([0.5, 0.4, 0.6]).reshape(1, 3, 1, 1).expand(1, 3, height, width).contiguous()


def shaded(height=192, width=192):
    """Smooth shading, as of skin."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([0.4 + 0.3 * x * y, 0.5 - 0.2 * (x - 0.5) ** 2, 0.3 + 0.3 * y])[None]


def drawing():
    """Lines, text and flat colours on white, with soft edges."""
    image = Image.new("RGB", (256, 192), "white")
    draw = ImageDraw.Draw(image)
    for k in range(12):
        draw.line((10 * k, 5, 250 - 7 * k, 180), fill=(20 * k, 40, 255 - 20 * k), width=1 + k % 3)
        draw.text((15 * k, 12 * k), "grain 0123", fill=(10, 10, 10))
        draw.ellipse((20 * k, 90, 20 * k + 30, 130), fill=(100 + 10 * k, 90, 60))
    return to_unit(np.asarray(image.resize((384, 288), Image.Resampling.BICUBIC)))


def to_unit(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def rounded(image):
    return (image.clamp(0, 1) * 255).round() / 255


def checkerboard(height=192, width=192):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (0.3 + 0.4 * ((x + y) % 2)).expand(1, 3, height, width).contiguous()


def waves(height=192, width=192):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (0.5 + 0.3 * torch.sin(0.8 * x) * torch.sin(0.7 * y)).expand(1, 3, height, width).contiguous()


def sigma(covariance):
    return covariance.diag().sqrt()


def correlation(covariance):
    spread = sigma(covariance)
    return covariance / spread[:, None] / spread[None]


def empirical(image):
    """The covariance of the pixels about their mean."""
    values = image.double().flatten(2)[0]
    values = values - values.mean(dim=1, keepdim=True)
    return values @ values.T / values.shape[1]


# Measured


@pytest.mark.parametrize("picture", [flat, shaded])
@pytest.mark.parametrize("seed", range(3))
def test_strength_and_correlation_of_the_noise_are_measured(picture, seed):
    found = measure_grain(rounded(picture() + noise(seed=seed)))
    assert torch.allclose(sigma(found), sigma(COVARIANCE), rtol=0.05)
    assert torch.allclose(correlation(found), correlation(COVARIANCE), atol=0.1)


@pytest.mark.parametrize("strength", [0.01, 0.02, 0.05, 0.1])
def test_the_measure_is_proportional(strength):
    found = measure_grain(rounded(flat() + noise(mix=strength * torch.eye(3, dtype=torch.float64))))
    assert torch.allclose(sigma(found), torch.full((3,), strength, dtype=torch.float64), rtol=0.06)


def test_edges_and_texture_in_most_of_the_picture_do_not_move_it():
    """A third of the picture is smooth; the rest are drawn lines and waves."""
    picture = shaded(288, 384)
    picture[..., 96:192, :] = drawing()[..., 96:192, :].clamp(0.1, 0.9)
    picture[..., 192:, :] = waves(96, 384)
    found = measure_grain(rounded(picture + noise(288, 384)))
    assert torch.allclose(sigma(found), sigma(COVARIANCE), rtol=0.08)


@pytest.mark.parametrize("scale", [1.5, 2.0, 2.37, 3.0, 4.0, 6.0])
def test_the_noise_of_an_enlarged_picture_is_found(scale):
    """TEASRColorFix knows the enlarged picture alone."""
    small = shaded() + noise()
    size = TargetSize(round(192 * scale), round(192 * scale))
    found = measure_grain(resize(small.clamp(0, 1), size))
    assert torch.allclose(sigma(found), sigma(COVARIANCE), rtol=0.2)
    assert torch.allclose(correlation(found), correlation(COVARIANCE), atol=0.12)


CLEAN = {
    "one colour": flat,
    "shading": shaded,
    "shading in 8 bits": lambda: rounded(shaded()),
    "a drawing": drawing,
    "a checkerboard": checkerboard,
    "waves": waves,
    "waves in 8 bits": lambda: rounded(waves()),
    "black": lambda: torch.zeros(1, 3, 64, 64),
    "a tiny picture": lambda: torch.rand(1, 3, 15, 40),
}


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_clean_picture_has_none(name, scale):
    picture = CLEAN[name]()
    height, width = picture.shape[-2:]
    picture = resize(picture, TargetSize(scale * width, scale * height)) if scale > 1 else picture
    if name != "a tiny picture" or scale == 1:
        assert not measure_grain(picture).any()


def test_black_bars_do_not_hide_the_noise_of_the_picture():
    picture = torch.zeros(1, 3, 320, 192)
    picture[..., 64:256, :] = rounded(shaded() + noise())
    assert torch.allclose(sigma(measure_grain(picture)), sigma(COVARIANCE), rtol=0.05)


# Given back


def test_what_is_added_has_the_strength_the_colour_and_no_pattern():
    source = rounded(flat() + noise())
    smooth = flat(256, 320)
    grain = add_grain(smooth, shaded(256, 320), source, 1.0, seed=5) - smooth
    found = empirical(grain)
    assert torch.allclose(sigma(found), sigma(COVARIANCE), rtol=0.05)
    assert torch.allclose(correlation(found), correlation(COVARIANCE), atol=0.06)
    assert float(grain.mean(dim=(2, 3)).abs().max()) < 1e-3
    for shift in ((1, 0), (0, 1), (1, 1), (7, 3)):  # as fine as a pixel
        assert float((grain * grain.roll(shift, (2, 3))).mean() / grain.square().mean()) == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize("amount", [0.25, 0.5, 1.0])
def test_the_amount_is_a_share_of_the_standard_deviation(amount):
    source, smooth = rounded(flat() + noise()), flat(256, 256)
    found = empirical(add_grain(smooth, shaded(256, 256), source, amount, seed=1))
    assert torch.allclose(sigma(found), amount * sigma(COVARIANCE), rtol=0.06)


def test_a_picture_that_kept_its_grain_gets_no_more_of_it():
    source = rounded(flat() + noise())
    half = flat() + noise(mix=MIX / 2, seed=9)
    for kept, expected in ((half, 1.0), (source, 1.0)):
        found = empirical(add_grain(kept, shaded(), source, 1.0, seed=2))
        assert torch.allclose(sigma(found), expected * sigma(COVARIANCE), rtol=0.12)


def test_the_same_seed_gives_the_same_grain_and_another_another():
    source, smooth = rounded(flat() + noise()), flat()
    first, again, other = (add_grain(smooth, shaded(), source, 1.0, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    between = ((first - smooth) * (other - smooth)).mean() / (first - smooth).square().mean()
    assert float(between) == pytest.approx(0, abs=0.02)
    assert torch.isfinite(add_grain(smooth, shaded(), source, 1.0, 2**64 - 1)).all()


def test_the_field_does_not_depend_on_the_strips(monkeypatch):
    source, smooth, reference = rounded(flat() + noise()), flat(450, 64), shaded(450, 64)
    whole = add_grain(smooth, reference, source, 1.0, 3)
    monkeypatch.setattr(flat_areas, "_STRIP_PX", 1)
    assert torch.equal(add_grain(smooth, reference, source, 1.0, 3), whole)


def test_0_returns_the_picture_itself_and_a_clean_source_leaves_its_bits():
    picture = torch.rand(2, 3, 40, 50)
    assert add_grain(picture, picture, picture, 0.0, 1) is picture
    assert torch.equal(add_grain(picture, picture, drawing(), 1.0, 1), picture)


def test_flat_colour_gets_none():
    """Bars, clipped sky and drawn backgrounds: the same places that the colour fix keeps."""
    reference = shaded()
    reference[..., :96, :] = 0.5
    out = add_grain(flat(), reference, rounded(flat() + noise()), 1.0, 1)
    assert torch.equal(out[..., :64, :], flat()[..., :64, :])
    assert float((out - flat())[..., 130:, :].std()) > 0.03


def test_each_image_of_a_batch_has_its_own_grain_and_equals_itself_alone():
    sources = torch.cat([rounded(flat() + noise()), drawing()[..., :192, :192]])
    smooth = flat().expand(2, -1, -1, -1).contiguous()
    together = add_grain(smooth, shaded(), sources, 1.0, 1)
    assert torch.equal(together[1], smooth[1])
    assert torch.equal(together[:1], add_grain(smooth[:1], shaded(), sources[:1], 1.0, 1))


def test_the_result_stays_in_0_to_1():
    loud = noise(mix=0.3 * torch.eye(3, dtype=torch.float64))
    out = add_grain(flat(), shaded(), (flat() + loud).clamp(0.001, 0.999), 1.0, 1)
    assert float(out.min()) >= 0 and float(out.max()) <= 1


def test_a_picture_made_smaller_is_measured_after_the_resize():
    large, small = torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 20, 20)
    assert grain_source(large, small) is small
    assert grain_source(small, large) is small
    assert grain_source(None, large) is large


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan")])
def test_another_amount_is_refused(amount):
    with pytest.raises(InputError, match="grain is"):
        add_grain(flat(), flat(), flat(), amount, 1)
