"""The straight path and the two meanings of the network's output agree with each other."""

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.model.architecture import PREDICTIONS
from teasr_core.model.flow import MIN_TIME, broadcast_time, clean_from_output, interpolate, velocity_from_output

SHAPE = (3, 48, 6, 10)


def fields(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, *SHAPE, generator=tiny.generator(0), dtype=torch.float64))


def test_the_path_runs_from_clean_to_noise():
    z_0, noise = fields(2)
    assert torch.equal(interpolate(z_0, noise, torch.zeros(3).double()), z_0)
    assert torch.equal(interpolate(z_0, noise, torch.ones(3).double()), noise)
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    z_t = interpolate(z_0, noise, t)
    for b in range(3):
        assert torch.allclose(z_t[b], (1 - t[b]) * z_0[b] + t[b] * noise[b], rtol=0, atol=1e-15)


def test_the_paths_derivative_is_the_velocity_target():
    z_0, noise = fields(2)
    t, step = torch.tensor([0.2, 0.5, 0.7]).double(), 1e-3
    difference = (interpolate(z_0, noise, t + step) - interpolate(z_0, noise, t - step)) / (2 * step)
    assert torch.allclose(difference, noise - z_0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clean_estimate_and_velocity_agree(prediction):
    """clean = z_t - t v from the same output, for every time above the floor."""
    output, z_t, z_lq = fields(3)
    t = torch.tensor([1.0, 1 / 30, MIN_TIME]).double()
    v = velocity_from_output(prediction, output, z_t, z_lq, t)
    clean = clean_from_output(prediction, output, z_t, z_lq, t)
    assert torch.allclose(clean, z_t - broadcast_time(t, z_t) * v, rtol=0, atol=1e-13)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_right_output_gives_the_right_velocity(prediction):
    z_0, noise, z_lq = fields(3)
    t = torch.tensor([0.3, 0.6, 1.0]).double()
    z_t = interpolate(z_0, noise, t)
    output = noise - z_0 if prediction == "velocity" else z_0 - z_lq
    assert torch.allclose(velocity_from_output(prediction, output, z_t, z_lq, t), noise - z_0, rtol=0, atol=1e-13)
    assert torch.allclose(clean_from_output(prediction, output, z_t, z_lq, t), z_0, rtol=0, atol=1e-13)


def test_an_untrained_residual_model_returns_the_lq_image():
    z_t, z_lq = fields(2)
    zero = torch.zeros(SHAPE).double()
    assert torch.equal(clean_from_output("lq_residual", zero, z_t, z_lq, torch.ones(3)), z_lq)


def test_the_residual_divisor_is_floored_at_one_64th():
    assert MIN_TIME == 1 / 64
    output, z_t, z_lq = fields(3)
    t = torch.tensor([MIN_TIME, 0.005, 0.0]).double()
    v = velocity_from_output("lq_residual", output, z_t, z_lq, t)
    assert torch.allclose(v, (z_t - output - z_lq) * 64, rtol=0, atol=1e-11)
    just_above = velocity_from_output("lq_residual", output, z_t, z_lq, torch.full((3,), 1 / 30, dtype=torch.float64))
    assert torch.allclose(just_above, (z_t - output - z_lq) * 30, rtol=0, atol=1e-11)


def test_broadcast_time():
    assert broadcast_time(torch.ones(3), torch.zeros(3, 2, 5, 7)).shape == (3, 1, 1, 1)
    assert broadcast_time(torch.ones(3), torch.zeros(3, 2)).shape == (3, 1)
