"""A restoration of a region alone, and one that gives the grain of the input back."""

import dataclasses

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.image.region import Region
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from teasr_core.report import SamplingRecord
from teasr_core.restore import Callbacks, RestoreOptions, RestoreRequest, postprocess, restore
from teasr_core.restorer import Restorer
from teasr_core.sampling.schedule import manual_plan
from teasr_core.weight_files.base_file import build_velocity

MULTIPLE = 16  # built-in: an even grid of 8 px tokens


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    base = tiny.read_tiny_base(tmp_path_factory.mktemp("base"))
    return Restorer(base, build_velocity(base), torch.float32)


def as_sampler(function):
    """A `LatentSampler` of a function on latents."""
    return lambda z_lq: (function(z_lq), SamplingRecord())


# A region


def corner(size, side=24):
    weight = torch.zeros(1, 1, size.height, size.width)
    weight[..., :side, :side] = 1
    weight[..., side - 4 : side, :side] = 0.5
    return Region(weight)


@pytest.mark.parametrize("color_fix", ["off", "wavelet", "adain", "lab"])
def test_a_region_is_restored_alone_and_outside_it_the_resize_stays(restorer, color_fix):
    """Fewer tiles than the whole picture, outside the resize to the bit, inside the whole run's pixels."""
    image, size = tiny.picture(40, 50), TargetSize(100, 80)
    region = corner(size)
    options = RestoreOptions(size, color_fix=color_fix)
    settings = {"seed": 3, "tile_px": 32, "overlap_px": 8}
    counts = {"whole": [], "part": []}

    def run(name, region):
        callbacks = Callbacks(on_tile=lambda *at: counts[name].append(at))
        return restorer.restore(image, RestoreRequest(options, manual_plan(1), **settings, region=region), callbacks)

    whole, part = run("whole", None), run("part", region)
    assert len(counts["whole"]) == whole.report.tiles == 15
    assert len(counts["part"]) == part.report.tiles < 5
    resized = resize(image, size)
    inside = (region.weight > 0).expand_as(resized)
    assert torch.equal(part.image[~inside], resized[~inside])
    assert not torch.equal(part.image[inside], resized[inside])
    if color_fix == "off":
        assert torch.equal(part.image[..., :20, :24], whole.image[..., :20, :24])
        blended = torch.lerp(resized, whole.image, region.weight)
        assert torch.allclose(part.image, blended, atol=1e-6)
    if color_fix == "wavelet":  # its blur reaches 31 px, over pixels that were not restored
        assert (part.image[..., :20, :24] - whole.image[..., :20, :24]).abs().mean() < 0.02


def test_an_empty_region_runs_no_model_and_a_whole_one_changes_nothing(restorer):
    image, size = tiny.picture(9, 13), TargetSize(26, 18)

    def fail(_z_lq):
        raise AssertionError("the model ran")

    empty, whole = (Region(torch.full((1, 1, 18, 26), value)) for value in (0.0, 1.0))
    none = restore(image, tiny.codec(), as_sampler(fail), RestoreOptions(size), MULTIPLE, empty).image
    assert torch.equal(none, resize(image, size))
    request = RestoreRequest(RestoreOptions(size), manual_plan(2))
    found = restorer.restore(image, dataclasses.replace(request, region=whole)).image
    assert torch.allclose(found, restorer.restore(image, request).image, atol=1e-6)


def test_strength_counts_inside_the_region(restorer):
    image, size = tiny.picture(40, 50), TargetSize(100, 80)
    region = corner(size)
    full, half = (
        restorer.restore(image, RestoreRequest(RestoreOptions(size, strength), manual_plan(1), region=region)).image
        for strength in (1.0, 0.5)
    )
    assert torch.allclose(half, torch.lerp(resize(image, size), full, 0.5), atol=1e-5)


def test_each_image_of_a_batch_has_its_region():
    image, size = tiny.picture(20, 30, batch=2), TargetSize(60, 40)
    weight = torch.zeros(2, 1, 40, 60)
    weight[0, :, :10, :10] = weight[1, :, 30:, 50:] = 1
    decoded, resized = torch.rand(2, 3, 48, 64), resize(image, size)
    out = postprocess(decoded, resized, RestoreOptions(size, color_fix="off"), Region(weight))
    expected = torch.lerp(resized, decoded[..., :40, :60], weight)
    assert torch.equal(out, expected)


# Grain


def noisy_flat(side=64):
    grain = 0.05 * torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    return (0.5 + grain + 0.1 * torch.linspace(0, 1, side)).clamp(0, 1)


def smooth(z_lq):
    """A model that leaves the mean of the picture alone: no grain at all."""
    return z_lq.mean(dim=(2, 3), keepdim=True).expand_as(z_lq).contiguous() + 0.01 * torch.linspace(
        0, 1, z_lq.shape[-1]
    )


def plain(image, size, sampler, **options):
    return restore(image, tiny.codec(), as_sampler(sampler), RestoreOptions(size, **options), MULTIPLE).image


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("color_fix", ["off", "wavelet", "lab"])
def test_the_grain_of_the_input_comes_back_at_every_scale(scale, color_fix):
    """As strong as in the input before it was resized, whatever the scale."""
    size = TargetSize(64 * scale, 64 * scale)
    options = {"color_fix": color_fix, "grain_seed": 3}
    without, half, full = (plain(noisy_flat(), size, smooth, grain=grain, **options) for grain in (0.0, 0.5, 1.0))
    assert torch.equal(without, plain(noisy_flat(), size, smooth, color_fix=color_fix))
    added = float((full - without).std())
    if color_fix == "off":
        assert added == pytest.approx(0.05, rel=0.1)
    assert float((half - without).std()) == pytest.approx(added / 2, rel=0.05)


def test_the_strength_counts_for_the_grain_too():
    size = TargetSize(64, 64)
    resized = resize(noisy_flat(), size)
    full, half = (
        plain(noisy_flat(), size, smooth, grain=1.0, strength=strength, color_fix="off") for strength in (1.0, 0.5)
    )
    assert torch.allclose(half, torch.lerp(resized, full, 0.5), atol=1e-5)
    assert torch.equal(plain(noisy_flat(), size, smooth, grain=1.0, strength=0.0), resized)


def test_grain_in_a_region_stays_in_it():
    image, size = noisy_flat(96), TargetSize(192, 192)
    region = corner(size, side=64)
    options = RestoreOptions(size, color_fix="off", grain=1.0)
    grained = restore(image, tiny.codec(), as_sampler(smooth), options, MULTIPLE, region).image
    bare = restore(
        image, tiny.codec(), as_sampler(smooth), dataclasses.replace(options, grain=0.0), MULTIPLE, region
    ).image
    inside = (region.weight > 0).expand_as(bare)
    assert torch.equal(grained[~inside], resize(image, size)[~inside])
    assert float((grained - bare)[..., :56, :64].std()) == pytest.approx(0.05, rel=0.15)
