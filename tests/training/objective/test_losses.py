"""Each loss has a closed form: targets, weights, gradients (T3)."""

import math

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.model.flow import broadcast_time, interpolate
from training.objective.losses import (
    consistency_target,
    data_loss,
    flow_target,
    perceptual_offset,
    perceptual_window,
    residual_time_weight,
    velocity_loss,
    weighted_mse,
    with_boundary,
)
from training.objective.texture import lattice_loss, texture_loss

SHAPE = (3, 48, 6, 10)
ONES = torch.ones(1, 48, 1, 1)


def fields(count):
    return list(torch.randn(count, *SHAPE, generator=tiny.generator(0), dtype=torch.float64))


def bending(z_t, t_cur, z_lq, t_tar):
    """A velocity that depends on all its arguments."""
    t_cur, t_tar = (broadcast_time(t, z_t) for t in (t_cur, t_tar))
    return torch.sin(z_t) * t_cur + z_lq * t_tar**2 - t_cur * t_tar


def test_flow_target_is_the_paths_velocity():
    z_0, noise = fields(2)
    assert torch.equal(flow_target(z_0, noise), noise - z_0)


def test_consistency_target_is_two_explicit_half_steps():
    z_t, z_lq = fields(2)
    t, s = torch.tensor([1.0, 0.5, 0.3]).double(), torch.tensor([0.0, 0.45, 0.1]).double()
    wanted = torch.empty_like(z_t)
    for b in range(3):
        start, end = float(t[b]), float(s[b])
        middle = 0.5 * (start + end)
        one = [z[b : b + 1] for z in (z_t, z_lq)]
        times = [torch.tensor([value], dtype=torch.float64) for value in (start, middle, end)]
        first = bending(one[0], times[0], one[1], times[1])
        at_middle = one[0] - (start - middle) * first
        second = bending(at_middle, times[1], one[1], times[2])
        whole_step = at_middle - (middle - end) * second  # the target takes z_t to the same end in one step
        wanted[b] = (one[0] - whole_step)[0] / (start - end)
    found = consistency_target(bending, z_t, t, z_lq, s)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_a_straight_velocity_is_its_own_consistency_target():
    z_t, z_lq, v = fields(3)
    found = consistency_target(lambda *_: v, z_t, torch.rand(3), z_lq, torch.zeros(3))
    assert torch.allclose(found, v, rtol=0, atol=1e-15)


@pytest.mark.parametrize("boundary_time", [0.0, 0.1])
def test_an_error_of_the_clean_end_is_its_own_consistency_target_without_a_boundary(boundary_time):
    """A residual network that knows the path but ends at z_0 + c wherever t_tar is 0: Eq. 1-4 find no fault with it."""
    z_0, noise, z_lq = fields(3)
    t = torch.tensor([1.0, 0.5, 0.06]).double()
    s = torch.zeros(3).double()

    def velocity(z_t, t_cur, _z_lq, t_tar):
        end = z_0 + 0.3 * broadcast_time(t_tar == 0, z_t)
        return (z_t - end) / broadcast_time(t_cur, z_t)

    z_t = interpolate(z_0, noise, t)
    target = consistency_target(velocity, z_t, t, z_lq, s)
    target = with_boundary(target, flow_target(z_0, noise), t, s, boundary_time)
    error = (velocity(z_t, t, z_lq, s) - target).flatten(1)  # (3, CHW)
    found = [float(row.abs().max()) for row in error]
    assert found[:2] == pytest.approx([0, 0], abs=1e-12)
    assert found[2] == pytest.approx(0.3 / 0.06 if boundary_time else 0, abs=1e-6)


def test_the_boundary_is_of_short_steps_to_zero_alone():
    target, flow = fields(2)
    t, s = torch.tensor([0.1, 0.11, 0.1]), torch.tensor([0.0, 0.0, 0.05])
    found = with_boundary(target, flow, t, s, 0.1)
    assert torch.equal(found, torch.stack([flow[0], target[1], target[2]]))
    assert with_boundary(target, flow, t, s, 0.0) is target


def test_no_gradient_goes_through_the_consistency_target():
    z_t, z_lq = fields(2)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def velocity(*arguments):
        return weight * bending(*arguments)

    t, s = torch.full((3,), 0.8), torch.full((3,), 0.2)
    target = consistency_target(velocity, z_t, t, z_lq, s)
    assert not target.requires_grad
    student = velocity(z_t, t, z_lq, s)
    velocity_loss("velocity", student, target, z_t, z_lq, t, ONES).backward()
    by_hand = (2 * (student - target) * bending(z_t, t, z_lq, s)).mean()
    assert float(weight.grad) == pytest.approx(float(by_hand.detach()), rel=1e-6)


def test_velocity_loss_of_a_velocity_model_is_the_plain_mse():
    output, target, z_t, z_lq = (f.float() for f in fields(4))
    t = torch.tensor([0.01, 0.5, 1.0])
    found = velocity_loss("velocity", output, target, z_t, z_lq, t, ONES)
    assert float(found) == pytest.approx(float((output - target).square().mean()), rel=1e-6)


def test_velocity_loss_of_a_residual_model_carries_the_time_weight():
    """Above 0.1 the weight turns the squared velocity error into the squared error of the clean estimate."""
    z_0, noise, z_lq, output = fields(4)
    t = torch.tensor([0.05, 0.1, 0.7]).double()
    z_t = interpolate(z_0, noise, t)
    found = velocity_loss("lq_residual", output, noise - z_0, z_t, z_lq, t, ONES.double())
    clean_error = (output + z_lq - z_0).square().mean(dim=(1, 2, 3))  # (3,)
    wanted = (clean_error * torch.tensor([4.0, 1.0, 1.0])).mean()  # (0.1 / 0.05)**2
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_the_time_weight():
    t = torch.tensor([0.0, 0.05, 0.1, 0.5, 1.0])
    assert torch.allclose(residual_time_weight(t), torch.tensor([0.01, 0.01, 0.01, 0.25, 1.0]))


def test_a_residual_loss_refuses_times_below_the_floor():
    z = torch.zeros(1, 48, 2, 2)
    with pytest.raises(AssertionError, match=r"start at 0\.0156"):
        velocity_loss("lq_residual", z, z, z, z, torch.tensor([0.015]), ONES)


def test_pixel_weights_make_the_loss_a_pixel_loss():
    codec = tiny.codec()
    images = [torch.rand(2, 3, 24, 40, generator=tiny.generator(seed), dtype=torch.float64) for seed in range(3)]
    z_0, output, z_lq = (codec.encode(image) for image in images)
    noise = torch.randn(z_0.shape, generator=tiny.generator(9), dtype=torch.float64)
    t = torch.tensor([0.4, 1.0]).double()
    z_t = interpolate(z_0, noise, t)
    loss = velocity_loss("lq_residual", output - z_lq, noise - z_0, z_t, z_lq, t, codec.pixel_weights)
    pixels = (2 * images[1] - 2 * images[0]).square().mean()  # in [-1, 1]
    assert float(loss * (codec.std**2).mean()) == pytest.approx(float(pixels), rel=1e-5)


def test_weighted_mse_is_float32_whatever_comes_in():
    a, b = (f.bfloat16() for f in fields(2))
    found = weighted_mse(a, b, ONES)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float((a.float() - b.float()).square().mean()), rel=1e-6)


def test_data_loss_is_the_unclamped_pixel_mse():
    x_fake, x_0 = torch.full((2, 3, 5, 7), 1.5), torch.full((2, 3, 5, 7), -1.0)
    assert float(data_loss(x_fake, x_0)) == 6.25


def test_the_perceptual_window_falls_at_every_phase_of_the_token_grid():
    image = torch.zeros(2, 3, 24, 32)
    generator = torch.Generator().manual_seed(0)
    windows = [perceptual_window(image, perceptual_offset(generator)) for _ in range(400)]
    assert {(window[2].start, window[3].start) for window in windows} == {(y, x) for y in range(8) for x in range(8)}
    assert {image[window].shape for window in windows} == {(2, 3, 24 - y, 32 - x) for y in range(8) for x in range(8)}


def test_lattice_loss_of_stripes_noise_and_what_does_not_repeat():
    x = torch.arange(48.0)
    flat = torch.zeros(1, 3, 32, 48)

    def stripes(pitch, phase=0.0):
        return (0.1 * torch.cos(2 * torch.pi * x / pitch + phase)).expand(1, 3, 32, 48)

    # Along the rows six periods hold the whole of it, along the columns nothing.
    assert float(lattice_loss(stripes(8), flat)) == pytest.approx(6 * 0.1**2 / 2 / 2, rel=1e-4)
    assert float(lattice_loss(stripes(4, 1.0), flat)) == pytest.approx(6 * 0.1**2 / 2 / 2, rel=1e-4)  # a harmonic
    upright = stripes(8).transpose(2, 3)
    assert float(lattice_loss(upright, torch.zeros_like(upright))) == pytest.approx(6 * 0.1**2 / 2 / 2, rel=1e-4)
    assert float(lattice_loss(stripes(16), flat)) < 1e-8
    assert float(lattice_loss(flat + 0.3, flat)) < 1e-8  # a colour cast is no lattice
    assert float(lattice_loss(stripes(8), stripes(8))) == 0  # nor is a fence in the photograph
    noise = torch.randn(16, 3, 64, 64, generator=tiny.generator(0))
    assert float(lattice_loss(noise, torch.zeros_like(noise))) == pytest.approx(7 / 8, rel=0.02)


def test_texture_loss_is_the_log_ratio_of_contrasts_wherever_they_lie():
    gray = torch.zeros(2, 3, 64, 64)
    grain = torch.randn(2, 1, 64, 64, generator=tiny.generator(0)).expand(2, 3, 64, 64)
    other = torch.randn(2, 1, 64, 64, generator=tiny.generator(1)).expand(2, 3, 64, 64)
    assert float(texture_loss(grain, grain)) == 0
    # Only brightness varies, one plane of three: halved contrast costs log 2 there, at every distance.
    assert float(texture_loss(0.5 * grain, grain)) == pytest.approx(math.log(2) / 3, rel=1e-3)
    assert float(texture_loss(grain, 0.5 * grain)) == pytest.approx(math.log(2) / 3, rel=1e-3)
    # Other grain of the same strength costs little, no grain much, a cast nothing.
    assert float(texture_loss(other, grain)) < 0.1 * float(texture_loss(gray, grain))
    assert float(texture_loss(grain + 0.3, grain)) == pytest.approx(0, abs=1e-4)


def test_texture_loss_sees_grain_on_a_flat_part_and_grain_of_one_colour():
    gray = torch.zeros(1, 3, 64, 64)
    grain = 0.05 * torch.randn(1, 3, 64, 64, generator=tiny.generator(2))
    left, right = grain.clone(), grain.clone()
    left[..., 32:], right[..., :32] = 0, 0
    # As much grain, on the wrong half: the mean contrast is the same, each place is not.
    assert float(texture_loss(left, right)) > 0.5 * float(texture_loss(grain, gray))
    white = grain.mean(1, keepdim=True).expand_as(grain) * 3**0.5  # as strong, the same in every channel
    assert float(texture_loss(grain, white)) > 0.3
    assert float(texture_loss(gray + 0.002 * grain, gray)) < 1e-3  # far below a level of 255


def test_texture_loss_is_not_paid_with_edges_between_tokens():
    """Tokens of one grey each have the energy of grain, but all of it in one column of eight."""
    grain = torch.randn(1, 1, 128, 128, generator=tiny.generator(3)).expand(1, 3, 128, 128)
    blocks = torch.randn(1, 1, 16, 16, generator=tiny.generator(4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    blocks = (8**0.5 * blocks).expand(1, 3, 128, 128)

    def energy(x):
        return float((x[..., 1:] - x[..., :-1]).square().mean())

    assert energy(blocks) == pytest.approx(energy(grain), rel=0.3)
    assert float(texture_loss(blocks, grain)) > 0.7 * float(texture_loss(0 * grain, grain))


def test_texture_loss_has_a_finite_gradient_on_flat_pictures():
    flat = torch.zeros(1, 3, 48, 40, requires_grad=True)
    texture_loss(flat, torch.zeros(1, 3, 48, 40)).backward()
    assert torch.isfinite(flat.grad).all()
