"""Self-adversarial losses and the rectification: each pure function against its closed form (Eq. 6-14, T3)."""

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.model.flow import clean_from_output, interpolate, velocity_from_output
from teasr_core.model.timesteps import check_target_times
from training.objective import time_sampling
from training.objective.draws import draw
from training.objective.losses import (
    MAX_RECTIFICATION,
    adversarial_point,
    adversarial_target,
    perceptual_loss,
    rectification_loss,
    rectification_target,
    rectification_weight,
    score_difference,
    velocity_loss,
    weighted_mse,
)

SHAPE = (3, 48, 6, 10)
ONES = torch.ones(1, 48, 1, 1, dtype=torch.float64)
PREDICTIONS = ("velocity", "lq_residual")


def fields(count, seed=0):
    return list(torch.randn(count, *SHAPE, generator=tiny.generator(seed), dtype=torch.float64))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


# Eq. 7, 8: the fake trajectory


def test_the_fake_trajectory_is_the_straight_path_from_the_models_own_result():
    z_fake, noise = fields(2)
    t = column(0.02, 0.5, 0.98)
    found = adversarial_point(z_fake, noise, t)
    for b, time in enumerate(t.tolist()):
        assert torch.allclose(found[b], (1 - time) * z_fake[b] + time * noise[b], rtol=0, atol=1e-15)
    later = adversarial_point(z_fake, noise, t + 0.01)
    slope = (later - found) / 0.01
    assert torch.allclose(slope, adversarial_target(z_fake, noise), rtol=0, atol=1e-10)  # d z_t / d t


def test_no_gradient_reaches_the_generator_through_the_fake_trajectory():
    z_fake, noise = fields(2)
    z_fake.requires_grad_()
    assert not adversarial_point(z_fake, noise, column(0.1, 0.5, 0.9)).requires_grad
    assert not adversarial_target(z_fake, noise).requires_grad


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_adversarial_loss_trains_the_score_alone(prediction):
    z_fake, noise, z_lq, output = fields(4)
    z_fake.requires_grad_()
    output.requires_grad_()
    t = column(0.3, 0.5, 0.9)
    z_t = adversarial_point(z_fake, noise, t)
    velocity_loss(prediction, output, adversarial_target(z_fake, noise), z_t, z_lq, t, ONES).backward()
    assert z_fake.grad is None
    assert float(output.grad.abs().max()) > 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_score_that_knows_the_fake_result_has_no_adversarial_loss(prediction):
    z_fake, noise, z_lq = fields(3)
    t = column(0.02, 0.5, 0.98)
    output = noise - z_fake if prediction == "velocity" else z_fake - z_lq
    z_t = adversarial_point(z_fake, noise, t)
    loss = velocity_loss(prediction, output, adversarial_target(z_fake, noise), z_t, z_lq, t, ONES)
    assert float(loss) < 1e-25


# Eq. 9, 10: the score difference


def test_the_velocity_difference_is_fake_minus_real():
    real, fake = fields(2)
    assert torch.equal(score_difference(real, fake, "velocity"), fake - real)


def test_the_residual_difference_is_s_times_that_of_velocities():
    """Delta_x = x(+s) - x(-s) = s (v(-s) - v(+s)): z_lq and z_s cancel (docs/decisions.md#rectification)."""
    real, fake, z_s, z_lq = fields(4)
    s = column(0.02, 0.4, 0.98)
    v_real, v_fake = (velocity_from_output("lq_residual", output, z_s, z_lq, s) for output in (real, fake))
    found = score_difference(real, fake, "lq_residual")
    assert torch.allclose(found, s.reshape(3, 1, 1, 1) * (v_fake - v_real), rtol=0, atol=1e-14)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_equal_scores_have_no_difference(prediction):
    (score,) = fields(1)
    assert not score_difference(score, score, prediction).any()


def test_differences_are_taken_in_float32():
    real, fake = (f.bfloat16() for f in fields(2))
    found = score_difference(real, fake, "velocity")
    assert found.dtype == torch.float32
    assert torch.equal(found, fake.float() - real.float())


# Eq. 14: the weight


@pytest.mark.parametrize(("s", "w"), [(0.5, 0.5), (0.25, 2.25), (0.1, 8.1), (0.98, 0.0004 / 0.98)])
def test_the_weight_below_its_cap(s, w):
    assert float(rectification_weight(column(s))) == pytest.approx(w, rel=1e-12)


def test_the_weight_is_capped_at_ten():
    at_cap = 6 - 35**0.5  # (1-s)**2 = 10 s
    w = rectification_weight(column(0.02, at_cap - 1e-6, at_cap + 1e-6, 0.5))
    assert w[0] == w[1] == MAX_RECTIFICATION == 10
    assert 9.999 < float(w[2]) < 10


def test_an_infinite_cap_is_the_papers_weight():
    s = column(1e-6, 0.02, 0.5)
    assert torch.allclose(rectification_weight(s, float("inf")), (1 - s) ** 2 / s, rtol=1e-15)
    assert float(rectification_weight(column(0.02), float("inf"))) == pytest.approx(48.02)


def test_the_weight_falls_and_has_the_mean_that_was_reckoned():
    s = torch.linspace(*time_sampling.FAKE_TIMES, 100_001, dtype=torch.float64)
    w = rectification_weight(s)
    assert bool((w[1:] <= w[:-1]).all())
    assert float(w.mean()) == pytest.approx(1.86, abs=0.01)  # docs/decisions.md#rectification


# Eq. 11: the pull


@pytest.mark.parametrize(("prediction", "sign"), [("velocity", -1), ("lq_residual", 1)])
def test_the_target_is_the_output_moved_by_the_clamped_weighted_difference(prediction, sign):
    output, delta = fields(2)
    delta *= 2
    w = column(0.1, 1.0, 10.0)
    found = rectification_target(output, delta, w, prediction)
    assert torch.equal(found, output + sign * (w.reshape(3, 1, 1, 1) * delta.clamp(-1, 1)))
    moved = (found - output).abs()
    assert float(moved[2].max()) == pytest.approx(10)  # the clamp comes before the weight
    assert 0.5 < float((delta.abs() > 1).double().mean()) < 0.7  # and it was at work


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_both_predictions_move_the_clean_estimate_the_same_way(prediction):
    """At t = 1 the step in v is minus the step in x: either way the result goes towards the real score's estimate."""
    z_lq, x_real, x_fake, noise = fields(4, seed=1)
    z_fake = x_fake + 0.1
    one, s = torch.ones(3, dtype=torch.float64), column(0.3, 0.5, 0.7)
    z_s = interpolate(z_fake, noise, s)

    def raw(x, z_t, t):  # the network output that means the clean estimate x
        return (z_t - x) / t.reshape(3, 1, 1, 1) if prediction == "velocity" else x - z_lq

    delta = score_difference(raw(x_real, z_s, s), raw(x_fake, z_s, s), prediction)
    target = rectification_target(raw(z_fake, noise, one), delta, one, prediction)
    step = clean_from_output(prediction, target, noise, z_lq, one) - z_fake
    agrees = step * (x_real - x_fake) > 0
    assert bool(agrees.all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_no_gradient_goes_through_the_target(prediction):
    output, delta = fields(2)
    output.requires_grad_()
    delta.requires_grad_()
    assert not rectification_target(output, delta, column(1, 1, 1), prediction).requires_grad
    rectification_loss(output, delta, column(1, 1, 1), prediction, ONES).backward()
    assert delta.grad is None
    assert float(output.grad.abs().max()) > 0


@pytest.mark.parametrize(("prediction", "sign"), [("velocity", 1), ("lq_residual", -1)])
def test_the_gradient_is_twice_the_weighted_difference(prediction, sign):
    output, delta = fields(2)
    output.requires_grad_()
    w, channel_weight = column(0.02, 1, 48), torch.rand(ONES.shape, generator=tiny.generator(2), dtype=torch.float64)
    rectification_loss(output, delta, w, prediction, channel_weight).backward()
    wanted = sign * 2 * channel_weight * w.reshape(3, 1, 1, 1) * delta.clamp(-1, 1) / delta.numel()
    assert torch.allclose(output.grad, wanted, rtol=1e-9, atol=0)


def norm_gradient(weight, delta):
    """Gradient norm of the paper's printed loss, the un-squared norm, at this weight."""
    output = torch.zeros_like(delta, requires_grad=True)
    target = rectification_target(output, delta, weight.expand(len(delta)), "velocity")
    (output - target).norm().backward()
    return float(output.grad.norm())


def square_gradient(weight, delta):
    output = torch.zeros_like(delta, requires_grad=True)
    rectification_loss(output, delta, weight.expand(len(delta)), "velocity", ONES).backward()
    return float(output.grad.norm())


def test_the_weight_scales_the_gradient_where_the_printed_norm_would_cancel_it():
    (delta,) = fields(1)
    weights = rectification_weight(column(0.88, 0.381966, 0.02), float("inf"))  # about 0.016, 1, 48
    squared = [square_gradient(w, delta) for w in weights]
    assert [g / squared[1] for g in squared] == pytest.approx((weights / weights[1]).tolist(), rel=1e-9)
    assert [norm_gradient(w, delta) for w in weights] == pytest.approx([1, 1, 1], rel=1e-9)


def test_channel_weights_reach_the_rectification():
    output, delta = fields(2)
    w, channel_weight = column(0.5, 1, 2), tiny.codec().pixel_weights.double()
    wanted = (channel_weight * (w.reshape(3, 1, 1, 1) * delta.clamp(-1, 1)) ** 2).mean()
    assert float(rectification_loss(output, delta, w, "velocity", channel_weight)) == pytest.approx(float(wanted))


# Eq. 13 and precision


def test_the_perceptual_loss_is_the_mean_over_the_batch_in_the_order_of_its_arguments():
    a, b = torch.full((3, 3, 8, 8), 2.0), torch.zeros(3, 3, 8, 8)
    a[1] = 5.0
    assert float(perceptual_loss(lambda x, y: (x - 2 * y).mean(dim=(1, 2, 3)), a, b)) == pytest.approx(3.0)
    assert float(perceptual_loss(lambda x, y: (x - 2 * y).mean(dim=(1, 2, 3)), b, a)) == pytest.approx(-6.0)


def test_float64_stays_float64():
    a, b = fields(2)
    assert weighted_mse(a, b, ONES).dtype == torch.float64
    assert rectification_target(a, b, column(1, 1, 1), "velocity").dtype == torch.float64
    assert rectification_target(a.bfloat16(), b.float(), torch.ones(3), "velocity").dtype == torch.float32


# What is drawn


def test_draws_have_their_ranges_and_pass_the_guard_of_negative_times():
    drawn = draw((4096, 1, 1, 1), tiny.generator(0))
    for times in (drawn.t_fake, drawn.s):
        assert times.dtype == torch.float32
        assert 0.02 <= float(times.min()) < 0.021 and 0.979 < float(times.max()) <= 0.98
        assert float(times.mean()) == pytest.approx(0.5, abs=0.02)
        check_target_times(-times)
    assert float(drawn.t_flow.min()) >= 0.02 and float(drawn.t_flow.max()) <= 1
    assert bool((drawn.t_cons - drawn.s_cons >= 0.02 - 6e-8).all())
    noises = torch.stack([drawn.noise_flow, drawn.noise_cons, drawn.noise_one, drawn.noise_fake, drawn.noise_s])
    correlation = torch.corrcoef(noises.flatten(1)) - torch.eye(5)
    assert float(correlation.abs().max()) < 0.06  # five noises, not one
    assert float(noises.std()) == pytest.approx(1, abs=0.02)


def test_the_smallest_time_that_can_be_drawn_passes_the_guard(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.zeros(count))
    check_target_times(-time_sampling.fake_times(2, tiny.generator(0)))


def test_draws_follow_the_generator_alone():
    state = torch.get_rng_state()
    first, again = (draw((2, 3, 4, 6), tiny.generator(1)) for _ in range(2))
    other = draw((2, 3, 4, 6), tiny.generator(2))
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
        assert not torch.equal(value, getattr(other, name)), name
    assert torch.equal(torch.get_rng_state(), state)
