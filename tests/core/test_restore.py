"""Image in, restored image out: exact geometry, no model at strength 0, no silent bad image (R3, R5, R6)."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from helpers.live_bytes import LiveBytes
from helpers.tiny import model as tiny
from teasr_core.errors import InputError, OutputError
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from teasr_core.report import Report, SamplingRecord
from teasr_core.restore import RestoreOptions, RestoreRequest, check_result, latent_sampler, restore
from teasr_core.restorer import Restorer
from teasr_core.sampling.sampler import initial_noise
from teasr_core.sampling.schedule import manual_plan
from teasr_core.weight_files.base_file import build_velocity

MULTIPLE = 16  # built-in: an even grid of 8 px tokens


def identity(z_lq):
    return z_lq


def as_sampler(function):
    """A `LatentSampler` of a function on latents."""
    return lambda z_lq: (function(z_lq), SamplingRecord())


def random_sizes(count, seed=0):
    """(source, target) sizes: source sides 1..40, target sides 1..64 at a scale of 0.25 to 8."""
    rng = np.random.default_rng(seed)
    sizes = []
    for _ in range(count):
        source = rng.integers(1, 41, size=2)
        target = [int(rng.integers(max(1, math.ceil(s / 4)), min(64, 8 * s) + 1)) for s in source]
        sizes.append((tuple(int(s) for s in source), tuple(target)))
    return sizes


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    base = tiny.read_tiny_base(tmp_path_factory.mktemp("base"))
    return Restorer(base, build_velocity(base), torch.float32)


def plain(image, size, sampler=identity, **options):
    options = {"color_fix": "off"} | options
    return restore(image, tiny.codec(), as_sampler(sampler), RestoreOptions(size, **options), MULTIPLE).image


def check_image(image, size, batch=1):
    assert image.shape == (batch, 3, size.height, size.width)
    assert image.dtype == torch.float32
    assert bool(torch.isfinite(image).all())
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1


# Geometry


@pytest.mark.parametrize("color_fix", ["off", "wavelet", "adain", "lab"])
def test_identity_sampler_gives_the_exact_size_and_the_lanczos_image(color_fix):
    for (height, width), (target_height, target_width) in random_sizes(200):
        image = tiny.picture(height, width)
        size = TargetSize(target_width, target_height)
        found = plain(image, size, color_fix=color_fix)
        check_image(found, size)
        assert float((found - resize(image, size)).abs().max()) <= 1e-5, (height, width, size)


def test_the_tiny_model_gives_exact_sizes(restorer):
    sizes = [*random_sizes(8, seed=1), ((1, 1), (1, 1)), ((1, 40), (8, 63))]
    for (height, width), (target_height, target_width) in sizes:
        size = TargetSize(target_width, target_height)
        found = restorer.restore(
            tiny.picture(height, width), RestoreRequest(RestoreOptions(size), manual_plan(2))
        ).image
        check_image(found, size)


def test_the_encoder_sees_an_even_token_grid():
    shapes = []

    def spy(z_lq):
        shapes.append(z_lq.shape)
        return z_lq

    plain(tiny.picture(5, 9), TargetSize(33, 17), spy)
    assert shapes == [(1, 48, 8, 12)]  # 48 x 32 px


@pytest.mark.parametrize("color", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.8, 0.1, 0.3)])
@pytest.mark.parametrize("color_fix", ["off", "wavelet", "adain", "lab"])
def test_a_constant_image_stays_constant(color, color_fix):
    image = torch.tensor(color).reshape(1, 3, 1, 1).expand(1, 3, 7, 5).contiguous()
    for size in (TargetSize(23, 31), TargetSize(1, 1), TargetSize(5, 7)):
        found = plain(image, size, color_fix=color_fix)
        assert float((found - image[..., :1, :1]).abs().max()) <= 1e-5


# Strength


def test_strength_0_runs_no_model_and_is_the_plain_resize():
    def fail(_z_lq):
        raise AssertionError("the model ran")

    image, size = tiny.picture(9, 13, batch=2), TargetSize(37, 21)
    assert torch.equal(plain(image, size, fail, strength=0.0, color_fix="wavelet"), resize(image, size))


def test_strength_rises_from_resized_to_restored(restorer):
    image, size = tiny.picture(9, 13), TargetSize(26, 18)
    resized = resize(image, size)
    distances = [
        float((restorer.restore(image, RestoreRequest(options, manual_plan(1))).image - resized).abs().mean())
        for options in (RestoreOptions(size, strength) for strength in (0.0, 0.25, 0.5, 0.75, 1.0))
    ]
    assert distances[0] == 0
    assert all(a < b for a, b in itertools.pairwise(distances))


# Batches and determinism


def test_images_of_a_batch_equal_each_alone(restorer):
    images = torch.cat([tiny.picture(7, 11, seed=seed) for seed in range(3)])
    options, plan = RestoreOptions(TargetSize(21, 15)), manual_plan(2)
    request = RestoreRequest(options, plan, seed=5)
    together = restorer.restore(images, request).image
    for k in range(3):
        assert torch.equal(together[k : k + 1], restorer.restore(images[k : k + 1], request).image)
    assert not torch.equal(together[0], together[1])


def test_same_seed_same_pixels_another_seed_others(restorer):
    image, options, plan = tiny.picture(7, 11), RestoreOptions(TargetSize(21, 15)), manual_plan(2)
    first = restorer.restore(image, RestoreRequest(options, plan, seed=2**63)).image
    assert torch.equal(first, restorer.restore(image, RestoreRequest(options, plan, seed=2**63)).image)
    assert not torch.equal(first, restorer.restore(image, RestoreRequest(options, plan, seed=1)).image)


def test_the_noise_is_the_seeds_field_of_the_padded_size(restorer):
    seen = []
    velocity = restorer.velocity

    def spy(z_t, t_cur, z_lq, t_tar):
        seen.append(z_t.clone())
        return velocity(z_t, t_cur, z_lq, t_tar)

    spied = dataclasses.replace(restorer, velocity=spy)
    spied.restore(tiny.picture(7, 11), RestoreRequest(RestoreOptions(TargetSize(21, 15)), manual_plan(1), seed=9))
    assert torch.equal(seen[0], initial_noise(9, 48, 4, 8))  # 32 x 16 px


def test_the_input_and_the_global_random_state_are_untouched(restorer):
    image = tiny.picture(7, 11)
    before, state, numpy_state = image.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    result = restorer.restore(image, RestoreRequest(RestoreOptions(TargetSize(7, 11)), manual_plan(1))).image
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert result.data_ptr() != image.data_ptr()


def test_same_size_at_strength_0_is_a_copy():
    image = tiny.picture(16, 16)
    result = plain(image, TargetSize(16, 16), strength=0.0)
    result.zero_()
    assert float(image.max()) > 0


# Tiles


def test_a_tile_that_does_not_fit_is_cut_and_reported(tmp_path):
    """A card that holds 16 latent pixels a side: the picture comes out, and the line says so."""
    base = tiny.read_tiny_base(tmp_path)
    velocity = build_velocity(base)

    class SmallCard:
        transformer = velocity.transformer

        def __call__(self, z_t, t_cur, z_lq, t_tar):
            if max(z_t.shape[-2:]) > 16:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return velocity(z_t, t_cur, z_lq, t_tar)

    restorer, size = Restorer(base, SmallCard(), torch.float32), TargetSize(128, 96)
    options, plan = RestoreOptions(size, color_fix="off"), manual_plan(2)
    request = RestoreRequest(options, plan)
    found, report = restorer.restore(tiny.picture(24, 32), request)
    check_image(found, size)
    assert "tiles were cut to 16 latent pixels" in report.line()
    whole = Restorer(base, velocity, torch.float32)
    untiled, report = whole.restore(tiny.picture(24, 32), request)
    assert float((found - untiled).abs().mean()) < 0.05
    assert "cut" not in report.line()


def test_tiles_are_used_where_the_image_is_larger_and_reported(restorer):
    image, size = tiny.picture(20, 28), TargetSize(80, 56)
    options, plan = RestoreOptions(size, color_fix="off"), manual_plan(1)
    tiled, report = restorer.restore(image, RestoreRequest(options, plan, tile_px=32, overlap_px=16))
    assert report.tiles == 3 * 4
    check_image(tiled, size)
    untiled, report = restorer.restore(image, RestoreRequest(options, plan))
    assert report.tiles == 1
    assert not torch.equal(tiled, untiled)
    exact = restorer.restore(image, RestoreRequest(options, plan, tile_px=96)).image
    assert torch.equal(exact, untiled)


def test_the_report_is_one_line(restorer):
    request = RestoreRequest(RestoreOptions(TargetSize(21, 15)), manual_plan(2))
    line = restorer.restore(tiny.picture(7, 11), request).report.line()
    assert line.startswith("21x15, 1 tile, 2 steps, fp32 | encode ")
    assert "sample" in line
    assert "peak" in line
    assert "\n" not in line
    assert Report().line()  # nothing done yet


# Bad results


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_an_error(bad):
    def broken(z_lq):
        return torch.where(torch.rand(z_lq.shape, generator=tiny.generator(0)) < 1e-3, bad, z_lq)

    with pytest.raises(OutputError, match="NaN or infinity") as caught:
        plain(tiny.picture(32, 32), TargetSize(64, 64), broken)
    assert "\n" not in str(caught.value)


def flat_latent(color):
    def broken(z_lq):
        return tiny.codec().encode(torch.tensor(color).reshape(1, 3, 1, 1).expand(1, 3, 64, 64))

    return broken


@pytest.mark.parametrize("color", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.9, 0.2, 0.4)])
def test_a_flat_result_of_a_picture_is_an_error(color):
    with pytest.raises(OutputError, match="one flat colour"):
        plain(tiny.picture(16, 16), TargetSize(64, 64), flat_latent(color))


def test_a_flat_result_of_a_flat_picture_is_none():
    image = torch.tensor((0.9, 0.2, 0.4)).reshape(1, 3, 1, 1).expand(1, 3, 16, 16).contiguous()
    plain(image, TargetSize(64, 64), flat_latent((0.5, 0.5, 0.5)))


def test_the_flat_image_of_a_batch_is_named():
    image = tiny.picture(8, 8, batch=2)
    flat = image.clone()
    flat[1] = 0.5
    with pytest.raises(OutputError, match="image 1"):
        check_result(flat, image)
    check_result(torch.full((1, 3, 1, 1), 0.5), torch.rand(1, 3, 1, 1))  # one pixel is always flat


@pytest.mark.parametrize(
    ("option", "value"),
    [("strength", -0.1), ("strength", 1.1), ("strength", math.nan), ("color_strength", 2.0), ("color_fix", "LAB")],
)
def test_impossible_options_are_refused(option, value):
    with pytest.raises(InputError, match=option):
        RestoreOptions(TargetSize(8, 8), **{option: value})


@pytest.mark.parametrize("shape", [(1, 3, 0, 4), (0, 3, 4, 4), (3, 4, 4), (1, 4, 4, 4), (1, 4, 4, 3)])
def test_tensors_that_are_no_image_are_refused(shape):
    with pytest.raises(InputError, match="image has shape"):
        plain(torch.zeros(shape), TargetSize(8, 8))
    with pytest.raises(InputError, match="float64"):
        plain(torch.zeros(1, 3, 4, 4).double(), TargetSize(8, 8))


def test_16_bit_steps_survive():
    """Nothing in the path rounds to 8 bits."""
    ramp = torch.linspace(0.4, 0.41, 64).expand(1, 3, 16, 64).contiguous()
    found = plain(ramp, TargetSize(64, 16))
    assert len(torch.unique(found[0, 0, 0])) == 64


# Memory


@pytest.mark.parametrize("color_fix", ["off", "wavelet", "adain"])
def test_no_more_than_three_tensors_of_the_picture_s_size_are_alive(color_fix):
    """While sampling: condition, state, velocity (numpy's arrays are not counted)."""
    side = 1024
    options = RestoreOptions(TargetSize(side, side), color_fix=color_fix)
    request = RestoreRequest(options, manual_plan(3))
    sampler = latent_sampler(lambda z_t, *_: torch.zeros_like(z_t), request, 4, 32, 8)
    image = tiny.picture(side // 4, side // 4)
    with LiveBytes() as live:
        restore(image, tiny.codec(), sampler, options, MULTIPLE)
    picture_bytes = 3 * 4 * side**2  # a 4x4 DCT latent has as many
    assert live.peak <= 3.4 * picture_bytes + 2**22  # a plane, and strips whose size is fixed
