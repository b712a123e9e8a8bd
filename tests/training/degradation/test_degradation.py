"""The degradation against its definition: drawn parameters by frequency, pixel operations by algebra and moments."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from teasr_core.errors import ConfigError, InputError
from training.degradation.degrade import HEAVY, LIGHT, PRESETS, degrade, sample_plan
from training.degradation.kernels import BLUR_KINDS, KernelSpec, make_kernel
from training.degradation.ops import add_gaussian_noise, add_poisson_noise, jpeg, poisson_draws

DRAWS = 4000


def textured(height, width, seed=0):
    """(H, W, 3) float32 in [0, 1]: coloured noise with structure at several sizes."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), sigma) for sigma in (1, 3, 9)]
    picture = sum(layer / layer.std() for layer in layers)
    return np.clip(0.5 + 0.12 * picture, 0, 1).astype(np.float32)


def psnr(a, b):
    return -10 * math.log10(float(np.mean((a.astype(np.float64) - b) ** 2)))


def assert_frequency(hits, total, probability):
    """Within 4.5 standard deviations of a binomial."""
    assert abs(hits - total * probability) <= 4.5 * math.sqrt(total * probability * (1 - probability)) + 1e-9


def assert_uniform(values, low, high):
    values = np.asarray(values, dtype=float)
    assert low <= values.min() and values.max() <= high
    spread = (high - low) / math.sqrt(12)
    assert abs(values.mean() - (low + high) / 2) <= 4.5 * spread / math.sqrt(len(values))
    assert abs(values.std() / spread - 1) < 0.1


@pytest.fixture(scope="module", params=["light", "heavy"])
def drawn(request):
    preset, rng = PRESETS[request.param], np.random.default_rng(7)
    return preset, [sample_plan(preset, rng) for _ in range(DRAWS)]


def test_the_same_seed_gives_the_same_picture_and_another_seed_does_not():
    hq = textured(64, 48)
    first, again, other = (degrade(hq, LIGHT, 2, np.random.default_rng([5, seed])) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_input_is_left_as_it_was():
    hq = textured(48, 48)
    before = hq.copy()
    for seed in range(20):
        degrade(hq, HEAVY, 1, np.random.default_rng(seed))
    assert np.array_equal(hq, before)


@pytest.mark.parametrize("scale", [1, 2, 4, 3, 1.5])
@pytest.mark.parametrize("size", [(64, 64), (61, 47), (5, 90)])
def test_size_range_and_levels(scale, size):
    hq = textured(*size)
    for seed in range(4):
        lq = degrade(hq, HEAVY, scale, np.random.default_rng(seed))
        assert lq.shape == (round(size[0] / scale), round(size[1] / scale), 3)
        assert lq.dtype == np.float32
        assert lq.min() >= 0 and lq.max() <= 1
        assert np.abs(lq * 255 - np.rint(lq * 255)).max() < 1e-4


def test_a_view_gives_what_its_copy_gives():
    view = textured(70, 60)[3:67, 5:53][::-1, ::-1].transpose(1, 0, 2)
    lq = [degrade(hq, LIGHT, 2, np.random.default_rng(3)) for hq in (view, np.ascontiguousarray(view))]
    assert np.array_equal(*lq)


def test_kernel_kinds_have_the_defined_frequencies(drawn):
    preset, plans = drawn
    second = [plan.second.blur for plan in plans if plan.second.blur]
    assert_frequency(len(second), DRAWS, preset.second_blur_prob)
    blurs = (([p.first.blur for p in plans], preset.sinc_prob), (second, preset.sinc_prob2))
    for specs, sinc_prob in blurs:
        assert_frequency(sum(spec.kind == "sinc" for spec in specs), len(specs), sinc_prob)
        bells = [spec for spec in specs if spec.kind != "sinc"]
        for kind, probability in zip(preset.kernel_list, preset.kernel_prob, strict=True):
            assert_frequency(sum(spec.kind == kind for spec in bells), len(bells), probability)
        for size in preset.blur_kernel_sizes:
            assert_frequency(sum(spec.size == size for spec in specs), len(specs), 1 / 8)


def test_kernel_parameters_are_in_their_ranges(drawn):
    preset, plans = drawn
    bells = [plan.first.blur for plan in plans if plan.first.blur.kind != "sinc"]
    assert_uniform([spec.sigma_x for spec in bells], *preset.blur_sigma)
    iso = [spec for spec in bells if spec.kind in ("iso", "generalized_iso", "plateau_iso")]
    assert all(spec.sigma_x == spec.sigma_y for spec in iso)
    aniso = [spec for spec in bells if spec.kind == "aniso"]
    assert_uniform([spec.sigma_y for spec in aniso], *preset.blur_sigma)
    assert_uniform([spec.theta for spec in aniso], -math.pi, math.pi)
    assert all(spec.beta == 1 for spec in bells if spec.kind in ("iso", "aniso"))
    generalised = [spec.beta for spec in bells if spec.kind.startswith("generalized")]
    assert_frequency(sum(beta < 1 for beta in generalised), len(generalised), 0.5)
    assert_uniform([beta for beta in generalised if beta < 1], preset.betag_range[0], 1)
    assert_uniform([beta for beta in generalised if beta >= 1], 1, preset.betag_range[1])
    assert_uniform([spec.beta for spec in bells if spec.kind.startswith("plateau")], *preset.betap_range)
    second = [plan.second.blur for plan in plans if plan.second.blur and plan.second.blur.kind != "sinc"]
    assert_uniform([spec.sigma_x for spec in second], *preset.blur_sigma2)


def test_sinc_cut_offs(drawn):
    _, plans = drawn
    first = [plan.first.blur for plan in plans if plan.first.blur.kind == "sinc"]
    assert_uniform([spec.cutoff for spec in first if spec.size < 13], math.pi / 3, math.pi)
    assert_uniform([spec.cutoff for spec in first if spec.size >= 13], math.pi / 5, math.pi)
    final = [plan.final_sinc for plan in plans if plan.final_sinc]
    assert_frequency(len(final), DRAWS, 0.8)
    assert_uniform([spec.cutoff for spec in final], math.pi / 3, math.pi)


def test_resize_noise_and_jpeg_have_the_defined_frequencies_and_ranges(drawn):
    p, plans = drawn
    stages = (
        ([x.first for x in plans], p.resize_prob, p.resize_range, p.gaussian_noise_prob, p.noise_range,
         p.poisson_scale_range, p.gray_noise_prob, p.jpeg_range),
        ([x.second for x in plans], p.resize_prob2, p.resize_range2, p.gaussian_noise_prob2, p.noise_range2,
         p.poisson_scale_range2, p.gray_noise_prob2, p.jpeg_range2),
    )  # fmt: skip
    for stage, resize_prob, resize_range, gaussian_prob, noise, poisson, grey, quality in stages:
        factors = np.array([one.resize_factor for one in stage])
        for found, probability in zip((factors > 1, factors < 1, factors == 1), resize_prob, strict=True):
            assert_frequency(int(found.sum()), DRAWS, probability)
        assert_uniform(factors[factors > 1], 1, resize_range[1])
        assert_uniform(factors[factors < 1], resize_range[0], 1)
        for mode in ("area", "bilinear", "bicubic"):
            assert_frequency(sum(one.resize_mode == mode for one in stage), DRAWS, 1 / 3)
        gaussian = [one.noise_strength for one in stage if one.noise_kind == "gaussian"]
        assert_frequency(len(gaussian), DRAWS, gaussian_prob)
        assert_uniform(gaussian, *noise)
        assert_uniform([one.noise_strength for one in stage if one.noise_kind == "poisson"], *poisson)
        assert_frequency(sum(one.use_grey_noise for one in stage), DRAWS, grey)
        assert_uniform([one.jpeg_quality for one in stage], *quality)
    assert_frequency(sum(plan.use_jpeg_last for plan in plans), DRAWS, 0.5)


def test_presets_hold_the_published_values():
    assert (LIGHT.resize_range, HEAVY.resize_range) == ((0.3, 1.5), (0.15, 1.5))
    assert (LIGHT.noise_range, HEAVY.noise_range) == ((1, 15), (1, 30))
    assert (LIGHT.poisson_scale_range, HEAVY.poisson_scale_range) == ((0.05, 2), (0.05, 3))
    assert (LIGHT.jpeg_range, HEAVY.jpeg_range) == ((60, 95), (30, 95))
    assert (LIGHT.second_blur_prob, HEAVY.second_blur_prob) == (0.5, 0.8)
    assert (LIGHT.resize_range2, HEAVY.resize_range2) == ((0.6, 1.2), (0.3, 1.2))
    assert (LIGHT.noise_range2, HEAVY.noise_range2) == ((1, 12), (1, 25))
    assert (LIGHT.poisson_scale_range2, HEAVY.poisson_scale_range2) == ((0.05, 1), (0.05, 2.5))
    assert (LIGHT.jpeg_range2, HEAVY.jpeg_range2) == ((60, 100), (30, 95))
    assert LIGHT.kernel_prob == HEAVY.kernel_prob == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@pytest.mark.parametrize("kind", [*BLUR_KINDS, "sinc"])
def test_kernels_sum_to_one_and_are_symmetric(kind):
    for size in (7, 13, 21):
        kernel = make_kernel(KernelSpec(kind, size, 2.4, 0.7, 0.6, 0.8, cutoff=1.3))
        assert kernel.shape == (size, size) and kernel.dtype == np.float32
        assert abs(float(kernel.sum(dtype=np.float64)) - 1) < 1e-6
        assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
        if kind != "sinc":
            assert kernel.min() >= 0


def test_a_gaussian_kernel_has_its_covariance():
    spec = KernelSpec("aniso", 21, 2.0, 1.0, theta=0.5)
    kernel = make_kernel(spec).astype(np.float64)
    axis = np.arange(21) - 10
    x, y = axis[None, :], axis[:, None]
    rotation = np.array([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    wanted = rotation @ np.diag([4.0, 1.0]) @ rotation.T
    found = [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    assert np.allclose(found, wanted, atol=0.01)


def test_the_exponent_one_is_the_plain_gaussian_and_higher_ones_are_flatter():
    plain = make_kernel(KernelSpec("iso", 15, 2.0, 2.0))
    assert np.array_equal(plain, make_kernel(KernelSpec("generalized_iso", 15, 2.0, 2.0, beta=1.0)))
    flat = make_kernel(KernelSpec("generalized_iso", 15, 2.0, 2.0, beta=4.0))
    assert flat[7, 8] / flat[7, 7] > 0.99 > plain[7, 8] / plain[7, 7]
    plateau = make_kernel(KernelSpec("plateau_iso", 15, 2.0, 2.0, beta=1.0))
    assert plateau[7, 9] / plateau[7, 7] == pytest.approx(0.5, abs=1e-5)  # 1 / (1 + (2 / 2)^2)


def test_the_sinc_passes_below_its_cut_off_and_stops_above():
    kernel = make_kernel(KernelSpec("sinc", 21, cutoff=math.pi / 2))
    response = np.abs(np.fft.rfft2(kernel, (256, 256)))[0]  # radians 0..pi along one axis
    assert np.abs(response[:40] - 1).max() < 0.15
    assert response[90:].max() < 0.15


def test_an_even_kernel_size_is_refused():
    with pytest.raises(ConfigError, match="odd"):
        make_kernel(KernelSpec("iso", 8, 1.0, 1.0))


@pytest.mark.parametrize("is_grey", [False, True])
def test_gaussian_noise_has_its_sigma(is_grey):
    grey = np.full((128, 128, 3), 0.5, np.float32)
    noise = (add_gaussian_noise(grey, 10.0, is_grey, np.random.default_rng(0)) - grey) * 255
    assert noise.std() == pytest.approx(10, rel=0.03) and abs(noise.mean()) < 0.3
    assert bool(np.allclose(noise[..., 0], noise[..., 2])) is is_grey


@pytest.mark.parametrize("is_grey", [False, True])
def test_poisson_noise_has_the_variance_of_shot_noise(is_grey):
    levels = np.tile(np.arange(96, 160), (256, 4))  # 64 levels in use: v = 64
    image = np.repeat(levels[..., None] / np.float32(255), 3, axis=2).astype(np.float32)
    noise = (add_poisson_noise(image, 0.2, is_grey, np.random.default_rng(0)) - image).astype(np.float64)
    relative = noise**2 / (0.2**2 * image / 64)
    assert relative.mean() == pytest.approx(1, rel=0.03)
    assert abs(noise.mean()) < 4.5 * noise.std() / 256
    assert bool(np.allclose(noise[..., 0], noise[..., 2], atol=1e-6)) is is_grey


@pytest.mark.parametrize("mean", [0.0, 0.4, 5.0, 12.5, 40.0, 200.0])
def test_fast_poisson_draws_have_the_poisson_distribution(mean):
    count = 200_000
    draws = poisson_draws(np.full(count, mean, np.float32), np.random.default_rng(1)).astype(int)
    exact = np.random.default_rng(2).poisson(mean, count)
    assert draws.min() >= 0
    top = max(draws.max(), exact.max()) + 1
    cdf = [np.cumsum(np.bincount(values, minlength=top)) / count for values in (draws, exact)]
    assert np.abs(cdf[0] - cdf[1]).max() < 0.006  # Kolmogorov-Smirnov; sampling alone gives up to 0.004


def test_jpeg_error_grows_as_quality_falls():
    image = textured(96, 96)
    errors = [psnr(jpeg(image, quality), image) for quality in (95, 75, 50, 30)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] + 2
    red = np.zeros((32, 32, 3), np.float32)
    red[..., 0] = 1
    assert jpeg(red, 95)[..., 0].min() > 0.95 and jpeg(red, 95)[..., 2].max() < 0.05  # channels keep their places


def test_the_whole_path_leaves_the_drawn_noise_and_nothing_else():
    only_noise = replace(
        LIGHT, resize_prob=(0, 0, 1), resize_prob2=(0, 0, 1), sinc_prob=0, final_sinc_prob=0, second_blur_prob=0,
        blur_sigma=(0.01, 0.01), betag_range=(1, 1), kernel_prob=(1, 0, 0, 0, 0, 0), gaussian_noise_prob=1,
        gaussian_noise_prob2=1, gray_noise_prob=1, noise_range=(10, 10), noise_range2=(0, 0), jpeg_range=(100, 100),
        jpeg_range2=(100, 100),
    )  # fmt: skip
    grey = np.full((128, 128, 3), 0.5, np.float32)
    noise = (degrade(grey, only_noise, 1, np.random.default_rng(0)) - grey) * 255
    assert noise.std() == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("name", ["light", "heavy"])
def test_without_noise_a_constant_picture_stays_constant(name):
    silent = replace(
        PRESETS[name], noise_range=(0, 0), noise_range2=(0, 0), poisson_scale_range=(0, 0), poisson_scale_range2=(0, 0)
    )
    colour = np.broadcast_to(np.array([0.8, 0.4, 0.2], np.float32), (40, 56, 3))
    for seed in range(40):
        lq = degrade(colour, silent, 2, np.random.default_rng(seed))
        # JPEG at quality 30 rounds the mean of a block to 3.5 levels of chroma, 1.8 times that in blue; two passes.
        assert np.abs(lq - colour[:20, :28]).max() <= 8 / 255
        assert np.ptp(lq, axis=(0, 1)).max() <= 2 / 255


def test_heavy_is_heavier_than_light():
    hq = textured(64, 64)
    mean = {
        name: np.mean([psnr(degrade(hq, preset, 1, np.random.default_rng(seed)), hq) for seed in range(80)])
        for name, preset in PRESETS.items()
    }
    assert mean["light"] > mean["heavy"] + 0.5


def test_the_picture_stays_in_place():
    axis = np.arange(64)
    blob = np.exp(-((axis[:, None] - 40.5) ** 2 + (axis[None, :] - 24.5) ** 2) / 50).astype(np.float32)
    hq = np.repeat(blob[..., None], 3, axis=2)
    lq = np.mean([degrade(hq, LIGHT, 2, np.random.default_rng(seed)) for seed in range(200)], axis=(0, 3))
    lq = np.clip(lq - 0.2, 0, None)  # without the noise floor
    y, x = (lq.sum(1) * np.arange(32)).sum() / lq.sum(), (lq.sum(0) * np.arange(32)).sum() / lq.sum()
    # Pixel i of the half-size picture covers pixels 2i and 2i + 1.
    assert y == pytest.approx(20.0, abs=0.05) and x == pytest.approx(12.0, abs=0.05)


@pytest.mark.parametrize(
    ("hq", "scale", "text"),
    [
        (np.zeros((8, 8, 3)), 2, "float32"),
        (np.zeros((8, 8), np.float32), 2, "float32"),
        (np.zeros((0, 8, 3), np.float32), 2, "float32"),
        (np.full((8, 8, 3), 255, np.float32), 2, "outside"),
        (np.full((8, 8, 3), np.nan, np.float32), 2, "outside"),
        (np.zeros((8, 8, 3), np.float32), 0, "positive"),
        (np.zeros((8, 8, 3), np.float32), float("nan"), "positive"),
        (np.zeros((8, 8, 3), np.float32), 40, "no pixel"),
    ],
)
def test_bad_input_is_refused(hq, scale, text):
    with pytest.raises(InputError, match=text):
        degrade(hq, LIGHT, scale, np.random.default_rng(0))


@pytest.mark.parametrize(
    "change",
    [
        {"resize_prob": (0.5, 0.5, 0.5)},
        {"resize_range": (0.5, 0.9)},
        {"noise_range": (5.0, 1.0)},
        {"jpeg_range": (0.0, 95.0)},
        {"sinc_prob": 1.5},
        {"kernel_list": ("iso", "box")},
        {"kernel_prob": (0.5, 0.5)},
        {"blur_sigma2": (0.0, 1.0)},
        {"blur_kernel_sizes": (7, 8)},
    ],
)
def test_impossible_settings_are_refused_by_name(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(LIGHT, **change)
