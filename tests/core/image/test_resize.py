"""Sizes, resize, padding and crop: exact, unshifted, and refusing what they cannot do."""

import math
import random

import numpy as np
import pytest
import torch
from skimage.registration import phase_cross_correlation

from teasr_core.errors import InputError
from teasr_core.image import resize, target_size
from teasr_core.image.resize import Padding
from teasr_core.image.target_size import TargetSize


def _random_image(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def _smooth_image(height: int, width: int) -> torch.Tensor:
    """Three soft blobs away from the border: a picture whose place is well defined."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.zeros(height, width)
    for cy, cx, spread in ((0.4, 0.35, 0.07), (0.6, 0.6, 0.08), (0.35, 0.7, 0.05)):
        image += torch.exp(-(((y / height - cy) ** 2 + (x / width - cx) ** 2) / (2 * spread**2)))
    return (image / image.max()).expand(1, 3, -1, -1).contiguous()


def _centre(plane: torch.Tensor) -> tuple[float, float]:
    """Centre of mass as fractions of height and width."""
    height, width = plane.shape
    weight = plane.double() / plane.double().sum()
    rows = (weight.sum(1) * (torch.arange(height) + 0.5)).sum() / height
    columns = (weight.sum(0) * (torch.arange(width) + 0.5)).sum() / width
    return float(rows), float(columns)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((203, 101), 1, (203, 101)), ((5, 3), 0.5, (3, 2)), ((1, 1), 0.25, (1, 1)), ((3, 7), 8, (24, 56))],
)
def test_factor_rounds_half_up_and_keeps_a_pixel(size, scale, expected):
    assert target_size.size_by_factor(*size, scale) == TargetSize(*expected)


def test_edge_modes_hit_the_named_edge():
    rng = random.Random(1)
    for _ in range(200):
        width, height = rng.randint(1, 3000), rng.randint(1, 3000)
        short, long = min(width, height), max(width, height)
        px = rng.randint(math.ceil(short / 4), short * 8)
        by_short = target_size.size_by_shortest(width, height, px)
        assert min(by_short.width, by_short.height) == px
        assert abs(max(by_short.width, by_short.height) - long * px / short) <= 0.5
        px = rng.randint(math.ceil(long / 4), long * 8)
        by_long = target_size.size_by_longest(width, height, px)
        assert max(by_long.width, by_long.height) == px


def test_megapixels_and_exact():
    assert target_size.size_by_megapixels(1024, 1024, 4) == TargetSize(2048, 2048)
    assert target_size.size_by_megapixels(2048, 512, 1) == TargetSize(2048, 512)
    assert target_size.size_exact(100, 50, 101, 399) == TargetSize(101, 399)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1, 0, 0.249, 8.001, "much", None])
def test_bad_factor_is_refused(scale):
    with pytest.raises(InputError, match="scale"):
        target_size.size_by_factor(64, 64, scale)


@pytest.mark.parametrize(
    "call",
    [
        lambda: target_size.size_exact(100, 100, 24, 100),
        lambda: target_size.size_exact(100, 100, 100, 801),
        lambda: target_size.size_exact(100, 100, 100.5, 100),
        lambda: target_size.size_exact(100, 0, 100, 100),
        lambda: target_size.size_by_shortest(100, 200, 24),
        lambda: target_size.size_by_longest(100, 200, 1601),
        lambda: target_size.size_by_megapixels(64, 64, math.nan),
        lambda: target_size.size_by_megapixels(64, 64, 0),
        lambda: target_size.size_by_megapixels(64, 64, 4),
        lambda: target_size.cap_megapixels(TargetSize(64, 64), math.nan),
        lambda: target_size.cap_megapixels(TargetSize(64, 64), -1),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_cap_holds_keeps_aspect_and_never_upsizes():
    rng = random.Random(2)
    for _ in range(200):
        size = TargetSize(rng.randint(1, 9000), rng.randint(1, 9000))
        cap = rng.choice([0.01, 0.5, 1, 4, 16])
        capped = target_size.cap_megapixels(size, cap)
        pixels = capped.width * capped.height
        assert pixels <= cap * target_size.PIXELS_PER_MEGAPIXEL
        assert 1 <= capped.width <= size.width and 1 <= capped.height <= size.height
        if size.width * size.height <= cap * target_size.PIXELS_PER_MEGAPIXEL:
            assert capped == size
        elif min(capped.width, capped.height) > 50:
            assert capped.width / capped.height == pytest.approx(size.width / size.height, rel=0.04)
            assert pixels > 0.9 * cap * target_size.PIXELS_PER_MEGAPIXEL
    assert target_size.cap_megapixels(TargetSize(9000, 9000), 0) == TargetSize(9000, 9000)
    assert target_size.cap_megapixels(TargetSize(1, 10**8), 1) == TargetSize(1, 1024 * 1024)


@pytest.mark.parametrize(
    ("mode", "numbers", "expected"),
    [
        ("factor", (2.0,), (46, 34)),
        ("shortest", (40,), (54, 40)),
        ("longest", (40,), (40, 30)),
        ("exact", (31, 50), (31, 50)),
        ("megapixels", (0.01,), (119, 88)),
    ],
)
def test_a_size_request_knows_every_mode_and_keeps_its_cap(mode, numbers, expected):
    assert target_size.SizeRequest(mode, numbers).target(23, 17) == TargetSize(*expected)
    capped = target_size.SizeRequest(mode, numbers, max_megapixels=0.0005).target(23, 17)
    assert capped == target_size.cap_megapixels(TargetSize(*expected), 0.0005) != TargetSize(*expected)


def test_a_size_request_of_another_mode_is_refused():
    with pytest.raises(InputError, match="size is 'widest': expected factor, shortest, longest, exact, megapixels"):
        target_size.SizeRequest("widest", (40,))


def test_more_than_the_trained_factor_is_noticed_on_either_side():
    assert not target_size.exceeds_training(10, 20, TargetSize(40, 80))
    assert target_size.exceeds_training(10, 20, TargetSize(41, 20))
    assert target_size.exceeds_training(10, 20, TargetSize(10, 81))


def test_200_random_resizes_have_the_exact_size_range_and_untouched_input():
    rng = random.Random(3)
    for _ in range(200):
        image = _random_image(2, 3, rng.choice([1, 2, 3, 17, 40, 51]), rng.choice([1, 2, 5, 23, 38, 63]))
        before = image.clone()
        size = TargetSize(rng.randint(1, 80), rng.randint(1, 80))
        out = resize.resize(image, size, rng.choice(resize.RESAMPLES))
        assert out.shape == (2, 3, size.height, size.width)
        assert out.dtype == torch.float32
        assert out.min() >= 0.0 and out.max() <= 1.0
        assert torch.equal(image, before)


def test_same_size_gives_the_same_values_in_a_new_tensor():
    image = _random_image(2, 3, 7, 5)
    out = resize.resize(image, TargetSize(5, 7))
    assert torch.equal(out, image)
    out.zero_()
    assert image.max() > 0


def test_resize_is_finer_than_8_bits():
    ramp = torch.linspace(0.5, 0.502, 64).expand(1, 3, 8, 64)
    out = resize.resize(ramp, TargetSize(128, 8))
    assert len(out[0, 0, 4].unique()) > 100


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("resample", resize.RESAMPLES)
def test_constant_in_constant_out(value, resample):
    for height, width in ((1, 1), (1, 9), (31, 17)):
        image = torch.full((1, 3, height, width), value)
        out = resize.resize(image, TargetSize(53, 29), resample)
        assert (out - value).abs().max() < 1e-6


def test_no_shift_on_20_odd_sizes():
    rng = random.Random(4)
    for _ in range(20):
        height, width = rng.randrange(61, 130, 2), rng.randrange(61, 130, 2)
        image = _smooth_image(height, width)
        up_size = TargetSize(rng.randrange(151, 400, 2), rng.randrange(151, 400, 2))
        up = resize.resize(image, up_size)
        centre_in, centre_up = _centre(image[0, 0]), _centre(up[0, 0])
        assert abs(centre_up[0] - centre_in[0]) * up_size.height < 0.1
        assert abs(centre_up[1] - centre_in[1]) * up_size.width < 0.1
        back = resize.resize(up, TargetSize(width, height))
        shift, *_ = phase_cross_correlation(
            image[0, 0].numpy(), back[0, 0].numpy(), upsample_factor=50, normalization=None
        )
        assert np.abs(shift).max() < 0.1


def test_the_shift_test_bites():
    image = _smooth_image(91, 77)
    moved = torch.roll(image, 1, dims=-1)
    assert abs(_centre(moved[0, 0])[1] - _centre(image[0, 0])[1]) * 77 > 0.5


@pytest.mark.parametrize("multiple", [16, 32])
def test_pad_then_crop_is_the_identity(multiple):
    rng = random.Random(5)
    sizes = [(1, 1), (1, 33), (16, 32), (15, 17), (64, 1)] + [
        (rng.randint(1, 99), rng.randint(1, 99)) for _ in range(60)
    ]
    for height, width in sizes:
        image = _random_image(2, 3, height, width)
        padded, padding = resize.pad_to_multiple(image, multiple)
        assert padded.shape == (2, 3, height + padding.bottom, width + padding.right)
        assert padded.shape[2] % multiple == 0 and padded.shape[3] % multiple == 0
        assert 0 <= padding.right < multiple and 0 <= padding.bottom < multiple
        assert torch.equal(resize.crop_to(padded, TargetSize(width, height)), image)


def test_padding_is_mirrored_or_replicated():
    image = _random_image(1, 3, 10, 14)
    padded, padding = resize.pad_to_multiple(image, 16)
    assert padding == Padding(right=2, bottom=6)
    assert torch.equal(padded[0, :, :10, 14:], image[0, :, :, [12, 11]])
    assert torch.equal(padded[0, :, 10:, :14], image[0, :, [8, 7, 6, 5, 4, 3]])
    short = _random_image(1, 3, 8, 5)  # pads 8 and 11: neither side is longer than its pad
    padded, _ = resize.pad_to_multiple(short, 16)
    assert torch.equal(padded[0, :, 8:, :5], short[0, :, 7:8].expand(-1, 8, -1))
    assert torch.equal(padded[0, :, :, 5:], padded[0, :, :, 4:5].expand(-1, -1, 11))


def test_wrong_tensors_are_refused():
    image = _random_image(1, 3, 8, 8)
    size = TargetSize(4, 4)
    for bad in (image[0], image.double(), image.half(), image[:, :, :0], image.numpy(), None):
        with pytest.raises(InputError, match="expected"):
            resize.resize(bad, size)
    with pytest.raises(InputError, match="nearest"):
        resize.resize(image, size, "nearest")
    with pytest.raises(InputError, match="cannot crop 8 x 8 to 9 x 8"):
        resize.crop_to(image, TargetSize(9, 8))
    with pytest.raises(InputError, match="multiple"):
        resize.pad_to_multiple(image, 0)
