"""Alpha: split, bled under and resampled without a dark fringe."""

import pytest
import torch

from teasr_core.errors import InputError
from teasr_core.image.alpha import bleed_rgb, resize_alpha, split_alpha
from teasr_core.image.resize import RESAMPLES, resize
from teasr_core.image.target_size import TargetSize


def _disc(height: int, width: int, radius: float, soft: bool) -> torch.Tensor:
    """(1, 1, H, W) alpha of a disc, hard-edged or with a one-pixel ramp."""
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    distance = (y**2 + x**2).sqrt()
    disc = (radius - distance + 0.5).clamp(0, 1) if soft else (distance < radius).float()
    return disc[None, None]


def _on_white(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return rgb * alpha + (1 - alpha)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", [TargetSize(173, 131), TargetSize(21, 15)])
def test_white_disc_over_black_has_no_dark_fringe(soft, size):
    alpha = _disc(47, 61, 15, soft)
    rgb = (alpha > 0).float().expand(1, 3, -1, -1).contiguous()  # white, black where nothing shows
    out_alpha = resize_alpha(alpha, size)
    bled = _on_white(resize(bleed_rgb(rgb, alpha), size), out_alpha)
    assert bled.min() > 0.999
    plain = _on_white(resize(rgb, size), out_alpha)
    assert plain.min() < 0.95  # the test bites: without the bleed there is a fringe


def test_hidden_colour_comes_from_the_nearest_side():
    rgb = torch.zeros(1, 3, 8, 64)
    rgb[:, 0, :, :4], rgb[:, 2, :, 60:] = 1.0, 1.0  # red at the left, blue at the right, nothing between
    alpha = torch.zeros(1, 1, 8, 64)
    alpha[..., :4], alpha[..., 60:] = 1.0, 1.0
    out = bleed_rgb(rgb, alpha)
    assert torch.equal(out[..., :4], rgb[..., :4]) and torch.equal(out[..., 60:], rgb[..., 60:])
    assert (out[0, 0, :, 4:14] > 0.9).all() and (out[0, 2, :, 50:60] > 0.9).all()
    assert torch.allclose(out.sum(dim=1), torch.ones(1, 8, 64), atol=1e-5)  # mixtures of the two, nothing darker


def test_visible_pixels_and_inputs_stay_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, 3, 33, 18, generator=generator)
    alpha = (torch.rand(2, 1, 33, 18, generator=generator) - 0.5).clamp(0, 1)
    rgb_before, alpha_before = rgb.clone(), alpha.clone()
    out = bleed_rgb(rgb, alpha)
    visible = (alpha > 0).expand_as(rgb)
    assert torch.equal(out[visible], rgb[visible])
    assert not torch.equal(out[~visible], rgb[~visible])
    assert torch.equal(rgb, rgb_before) and torch.equal(alpha, alpha_before)
    assert torch.equal(bleed_rgb(rgb[1:], alpha[1:]), out[1:])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (9, 9)])
def test_nothing_or_everything_visible(shape):
    rgb = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1.0, 1e-4):
        assert torch.equal(bleed_rgb(rgb, torch.full((2, 1, *shape), value)), rgb)


def test_faint_alpha_counts_as_visible():
    rgb = torch.zeros(1, 3, 64, 64)
    rgb[..., 5, 5] = 0.8
    alpha = torch.zeros(1, 1, 64, 64)
    alpha[..., 5, 5] = 1 / 65535
    assert torch.allclose(bleed_rgb(rgb, alpha), torch.full((1, 3, 64, 64), 0.8), atol=1e-3)


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("size", [TargetSize(1, 1), TargetSize(97, 41), TargetSize(13, 7), TargetSize(23, 17)])
def test_flat_alpha_is_exact(resample, size):
    for value in (0.0, 1.0):
        out = resize_alpha(torch.full((2, 1, 17, 23), value), size, resample)
        assert out.shape == (2, 1, size.height, size.width)
        assert (out == value).all()


def test_alpha_stays_in_range_and_exact_away_from_edges():
    out = resize_alpha(_disc(48, 64, 16, soft=False), TargetSize(256, 192))
    assert out.min() >= 0.0 and out.max() <= 1.0
    assert (out[..., 80:112, 112:144] == 1.0).all() and (out[..., :20, :20] == 0.0).all()


def test_split_and_refusals():
    rgba = torch.rand(2, 4, 5, 7)
    rgb, alpha = split_alpha(rgba)
    assert torch.equal(torch.cat((rgb, alpha), dim=1), rgba)
    for call in (
        lambda: split_alpha(rgb),
        lambda: bleed_rgb(rgba, alpha),
        lambda: bleed_rgb(rgb, alpha[..., :6]),
        lambda: bleed_rgb(rgb, rgb),
        lambda: resize_alpha(rgb, TargetSize(3, 3)),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
