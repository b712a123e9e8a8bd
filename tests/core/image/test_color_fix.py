"""Colour fixes and the strength blend: their limits, what they remove and what they leave."""

import itertools
import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from teasr_core.errors import InputError
from teasr_core.image.cielab import lab_to_rgb, rgb_to_lab
from teasr_core.image.color_fix import COLOR_FIXES, apply_strength, fix_color

METHODS = [method for method in COLOR_FIXES if method != "off"]
SHAPES = [(1, 3, 1, 1), (1, 3, 3, 2), (2, 3, 1, 40), (2, 3, 37, 50), (1, 3, 65, 9)]


def _random_image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _photo(height: int = 96, width: int = 121) -> torch.Tensor:
    """A smooth scene with some texture, in 0.25..0.75 so that a cast does not clip."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    scene = torch.stack((0.4 + 0.2 * x, 0.5 + 0.15 * torch.sin(5 * y), 0.45 + 0.2 * x * y))
    return (scene + 0.05 * (_random_image(3, height, width) - 0.5))[None]


@pytest.mark.parametrize("method", COLOR_FIXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_range_and_untouched_inputs(method, shape):
    image, reference = _random_image(*shape), _random_image(*shape, seed=1)
    copies = image.clone(), reference.clone()
    out = fix_color(image, reference, method)
    assert out.shape == shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all() and out.min() >= 0.0 and out.max() <= 1.0
    assert torch.equal(image, copies[0]) and torch.equal(reference, copies[1])


@pytest.mark.parametrize("method", METHODS)
def test_strength_limits_are_exact_and_between_is_linear(method):
    image, reference = _random_image(2, 3, 21, 34), _random_image(2, 3, 21, 34, seed=1) * 0.5
    assert torch.equal(fix_color(image, reference, method, 0.0), image)
    full = fix_color(image, reference, method, 1.0)
    assert not torch.equal(full, image)
    for strength in (0.25, 0.5, 0.9):
        out = fix_color(image, reference, method, strength)
        assert torch.allclose(out, image + strength * (full - image), atol=1e-6)


def test_off_is_the_image_bit_for_bit():
    image = _random_image(1, 3, 5, 4)
    assert torch.equal(fix_color(image, torch.zeros_like(image), "off"), image)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_image_equal_to_reference_is_a_fixed_point(method, shape):
    image = _random_image(*shape)
    assert (fix_color(image, image.clone(), method) - image).abs().max() <= 1e-5


@pytest.mark.parametrize(("method", "tolerance"), [("wavelet", 1e-6), ("adain", 1e-5), ("lab", 0.01)])
def test_constant_cast_is_removed(method, tolerance):
    reference = _photo()
    cast = torch.tensor([0.08, -0.06, 0.04]).view(1, 3, 1, 1)
    restored = reference + cast
    out = fix_color(restored, reference, method)
    assert (out - reference).abs().mean() <= tolerance
    assert (out - reference).mean(dim=(2, 3)).abs().max() <= tolerance


@pytest.mark.parametrize("method", METHODS)
def test_detail_survives(method):
    """What the model adds at high frequency is still there after the fix."""
    reference = _photo()
    checker = (torch.arange(96)[:, None] + torch.arange(121)) % 2 * 0.1 - 0.05
    out = fix_color((reference + checker + 0.05).clamp(0, 1), reference, method)
    added = (out - reference)[0]  # (3, H, W)
    assert (added[:, :, 1:] - added[:, :, :-1]).abs().mean() > 0.06  # 0.1 went in


def test_wavelet_takes_the_low_band_even_of_a_local_tint():
    reference = _photo(160, 160)
    tint = torch.zeros(1, 3, 160, 160)
    tint[:, 0, :, 80:] = 0.1
    out = fix_color(reference + tint, reference, "wavelet")
    assert (out - reference)[0, 0, :, 130:].abs().max() < 5e-3  # three standard deviations from the edge


def test_adain_matches_mean_and_deviation():
    image, reference = _photo() * 0.5 + 0.2, _photo(96, 121).flip(-1) * 0.8
    out = fix_color(image, reference, "adain").double()
    assert torch.allclose(out.mean(dim=(2, 3)), reference.double().mean(dim=(2, 3)), atol=1e-5)
    assert torch.allclose(out.std(dim=(2, 3)), reference.double().std(dim=(2, 3)), atol=1e-5)


def test_lab_matches_mean_and_deviation_in_lab():
    image, reference = _photo() * 0.8 + 0.1, _photo().flip(-1)
    out = rgb_to_lab(fix_color(image, reference, "lab")[0])
    target = rgb_to_lab(reference[0])
    assert torch.allclose(out.mean(dim=(1, 2)), target.mean(dim=(1, 2)), atol=0.02)
    assert torch.allclose(out.std(dim=(1, 2)), target.std(dim=(1, 2)), atol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_flat_references_and_flat_images(method):
    flat = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 12, 9).contiguous()
    textured = _random_image(1, 3, 12, 9)
    to_flat = fix_color(textured, flat, method)
    from_flat = fix_color(flat, textured, method)
    assert torch.isfinite(to_flat).all() and torch.isfinite(from_flat).all()
    if method == "adain":
        assert torch.allclose(to_flat, flat, atol=1e-5)
        assert torch.allclose(from_flat.mean(dim=(2, 3)), textured.mean(dim=(2, 3)), atol=1e-5)
    # Rounding noise on a flat image must not be blown up to the reference's contrast.
    noisy = flat + 1e-6 * (_random_image(1, 3, 12, 9, seed=2) - 0.5)
    assert (fix_color(noisy, textured, method) - from_flat).abs().max() < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_batch_equals_single_and_reference_may_be_one(method):
    image, reference = _random_image(2, 3, 19, 23), _random_image(2, 3, 19, 23, seed=1)
    both = fix_color(image, reference, method)
    assert torch.equal(both[1:], fix_color(image[1:], reference[1:], method))
    shared = fix_color(image, reference[:1], method)
    assert torch.equal(shared[1:], fix_color(image[1:], reference[:1], method))


def test_lab_in_strips_equals_lab_at_once(monkeypatch):
    image, reference = _random_image(1, 3, 50, 31), _random_image(1, 3, 50, 31, seed=1)
    whole = fix_color(image, reference, "lab")
    monkeypatch.setattr("teasr_core.image.color_fix._STRIP_PX", 100)
    assert (fix_color(image, reference, "lab") - whole).abs().max() <= 1e-5


def test_wavelet_in_strips_equals_wavelet_at_once(monkeypatch):
    image, reference = _random_image(1, 3, 700, 31), _random_image(1, 3, 700, 31, seed=1)
    whole = fix_color(image, reference, "wavelet")
    monkeypatch.setattr("teasr_core.image.color_fix._STRIP_PX", 100)  # 248 rows a strip, so the last has 204
    assert torch.equal(fix_color(image, reference, "wavelet"), whole)


def test_lab_round_trip_and_known_values():
    image = _random_image(3, 61, 47)
    image[:, :30] *= 0.02  # the straight parts of both curves
    lab = rgb_to_lab(image)
    assert (lab_to_rgb(lab) - image).abs().max() <= 1e-4
    known = rgb2lab(image.permute(1, 2, 0).double().numpy())
    assert np.abs(lab.permute(1, 2, 0).numpy() - known).max() < 0.01
    grey = rgb_to_lab(torch.full((3, 1, 1), 0.5))
    assert grey[1:].abs().max() < 1e-3
    assert torch.allclose(rgb_to_lab(torch.ones(3, 1, 1)).flatten(), torch.tensor([100.0, 0, 0]), atol=1e-3)


def test_apply_strength_limits_and_monotone():
    resized, restored = _random_image(2, 3, 9, 14), _random_image(2, 3, 9, 14, seed=1)
    assert torch.equal(apply_strength(resized, None, 0.0), resized)
    assert torch.equal(apply_strength(resized, restored, 0.0), resized)
    assert torch.equal(apply_strength(resized, restored, 1.0), restored)
    assert torch.allclose(apply_strength(resized, restored, 0.3), resized + 0.3 * (restored - resized), atol=1e-6)
    moved = [(apply_strength(resized, restored, s / 10) - resized).abs().mean() for s in range(11)]
    assert all(a < b for a, b in itertools.pairwise(moved))


def test_bad_input_is_refused():
    image = _random_image(2, 3, 8, 9)
    for bad in (image[:, :, :7], image[:, :2], image[0], torch.rand(3, 3, 8, 9), image.half()):
        with pytest.raises(InputError, match="expected"):
            fix_color(image, bad, "adain")
        with pytest.raises(InputError, match="expected"):
            fix_color(bad, image, "adain")
    with pytest.raises(InputError, match="hsv"):
        fix_color(image, image, "hsv")
    for strength in (-0.1, 1.1, math.nan, "half", None):
        with pytest.raises(InputError, match="0 to 1"):
            fix_color(image, image, "lab", strength)
        with pytest.raises(InputError, match="0 to 1"):
            apply_strength(image, image, strength)
    with pytest.raises(InputError, match="restored"):
        apply_strength(image, None, 0.5)
    with pytest.raises(InputError, match="restored"):
        apply_strength(image, image[:, :, :7], 0.5)
