"""The fidelity dial: 0 is Algorithm 1 to the bit, towards 1 the noise fades, at 1 the seed plays no part."""

import itertools
import math

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import Restorer
from teasr_core.sampling.sampler import initial_noise, sample, scaled_noise
from teasr_core.sampling.schedule import linear_taus, manual_plan
from teasr_core.weight_files.base_file import build_velocity

DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = (1, 2, 4, 8)
SIZE = TargetSize(46, 34)


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    base = tiny.read_tiny_base(tmp_path_factory.mktemp("base"))
    return Restorer(base, build_velocity(base), torch.float32)


def test_0_leaves_every_bit():
    noise = initial_noise(1, 48, 4, 6)
    assert torch.equal(scaled_noise(noise, 0.0), noise)
    assert scaled_noise(noise.double(), 0.0).dtype == torch.float64


@pytest.mark.parametrize("steps", STEPS)
def test_the_sampler_starts_from_the_quieter_noise(steps):
    noise, z_lq = tiny.latents(batch=2)
    velocity = tiny.velocity()
    for fidelity in DIAL:
        by_hand = sample(velocity, noise[:1] * (1 - fidelity), z_lq, linear_taus(steps))
        assert torch.equal(sample(velocity, noise[:1], z_lq, linear_taus(steps), fidelity=fidelity), by_hand)


@pytest.mark.parametrize("steps", STEPS)
def test_on_a_linear_field_the_noise_that_is_left_falls_in_proportion(steps):
    """z' = z - x: whatever of the noise a solver leaves in the result scales with 1 - fidelity, x stays."""
    noise, x = tiny.latents(batch=1)

    def velocity(z_t, *_):
        return 0.5 * (z_t - x)

    clean = sample(velocity, torch.zeros_like(noise), x, linear_taus(steps))
    full = sample(velocity, noise, x, linear_taus(steps)) - clean
    for fidelity in DIAL:
        left = sample(velocity, noise, x, linear_taus(steps), fidelity=fidelity) - clean
        assert torch.allclose(left, (1 - fidelity) * full, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_seeds_come_together_along_the_dial_and_meet_at_1(restorer, steps):
    image = tiny.picture(17, 23)

    def spread(fidelity):
        options = RestoreOptions(SIZE, color_fix="off", fidelity=fidelity)
        requests = (RestoreRequest(options, manual_plan(steps), seed=seed) for seed in (1, 2))
        first, second = (restorer.restore(image, request).image for request in requests)
        return float((first - second).abs().mean())

    spreads = [spread(fidelity) for fidelity in DIAL]
    assert all(a > b for a, b in itertools.pairwise(spreads))
    assert spreads[-1] == 0


def test_0_is_the_default_of_the_restorer(restorer):
    image, plan = tiny.picture(17, 23), manual_plan(2)
    options = (RestoreOptions(SIZE), RestoreOptions(SIZE, fidelity=0.0), RestoreOptions(SIZE, fidelity=0.5))
    default, zero, half = (restorer.restore(image, RestoreRequest(each, plan)).image for each in options)
    assert torch.equal(default, zero)
    assert not torch.equal(default, half)


@pytest.mark.parametrize("fidelity", [-0.1, 1.1, math.nan, math.inf])
def test_an_impossible_fidelity_is_refused(fidelity):
    with pytest.raises(InputError, match=r"fidelity is .* from 0 to 1"):
        RestoreOptions(SIZE, fidelity=fidelity)
    with pytest.raises(InputError, match="from 0 to 1"):
        scaled_noise(torch.zeros(1), fidelity)
