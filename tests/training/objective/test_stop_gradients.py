"""Where a loss must have no gradient it has none, in the objective itself, and a gradient there would show (T3)."""

import inspect

import pytest
import torch

from helpers.tiny import objective as tiny_objective
from helpers.tiny.objective import WEIGHTS, gradients, objective
from teasr_core.model.flow import interpolate
from training.objective import losses
from training.objective.objective import LossWeights

BATCH, DRAWS = tiny_objective.batch(), tiny_objective.draws()
PREDICTIONS = ("velocity", "lq_residual")


def fake_latent():
    return BATCH.z_0.clone().requires_grad_()


def differ(found, wanted):
    """Largest difference of two sets of gradients over the largest gradient."""
    largest = max(float(value.abs().max()) for value in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / largest


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_adversarial_loss_has_no_gradient_to_the_result_it_looks_at(prediction):
    velocity, z_fake = tiny_objective.velocity(prediction), fake_latent()
    with velocity.lora_attached(*z_fake.shape[2:]):
        objective(velocity).adv(BATCH, DRAWS, z_fake).backward()
    assert z_fake.grad is None
    assert all(bool(value.any()) for value in gradients(velocity).values())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_score_difference_has_no_gradient_at_all(prediction):
    velocity, z_fake = tiny_objective.velocity(prediction), fake_latent()
    with velocity.lora_attached(*z_fake.shape[2:]):
        delta = objective(velocity).score_difference(BATCH, DRAWS, z_fake)
    assert not delta.requires_grad and bool(delta.any())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_rectification_reaches_the_one_step_output_alone(prediction):
    velocity = tiny_objective.velocity(prediction)
    output, delta = (torch.randn_like(BATCH.z_0).requires_grad_() for _ in range(2))
    objective(velocity).rectify(output, delta, DRAWS.s).backward()
    assert output.grad is not None and bool(output.grad.any())
    assert delta.grad is None
    assert all(not value.any() for value in gradients(velocity).values())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_consistency_target_counts_as_a_constant(prediction):
    """The gradient is that against a target computed beforehand; with one through the target it is another."""
    velocity = tiny_objective.velocity(prediction)
    target_of = inspect.unwrap(losses.consistency_target)  # without its no_grad
    z_t = interpolate(BATCH.z_0, DRAWS.noise_cons, DRAWS.t_cons)

    def gradient(target):
        output = velocity.network_output(z_t, DRAWS.t_cons, BATCH.z_lq, DRAWS.s_cons)
        weight = objective(velocity).channel_weight.double()
        losses.velocity_loss(prediction, output, target, z_t, BATCH.z_lq, DRAWS.t_cons, weight).backward()
        return gradients(velocity)

    with velocity.lora_attached(*z_t.shape[2:]):
        objective(velocity).cons(BATCH, DRAWS).backward()
        found = gradients(velocity)
        target = target_of(velocity, z_t, DRAWS.t_cons, BATCH.z_lq, DRAWS.s_cons)
        assert target.requires_grad
        through = gradient(target)
        constant = gradient(target.detach())
    assert differ(found, constant) <= 1e-10
    assert differ(found, through) > 0.1


@pytest.mark.parametrize("layout", ["sequential", "batched"])
def test_no_layout_lets_the_adversarial_loss_reach_the_generator(layout, monkeypatch):
    """A fake trajectory that kept its gradient would change the batched layout; in the other its graph is gone."""
    only_adv = LossWeights(0, 0, 0, 0, 1, 0)
    velocity = tiny_objective.velocity()
    objective(velocity).backward(BATCH, DRAWS, only_adv, layout=layout)
    right = gradients(velocity)
    monkeypatch.setattr(losses, "adversarial_point", interpolate)
    objective(velocity).backward(BATCH, DRAWS, only_adv, layout=layout)
    leaking = differ(gradients(velocity), right)
    assert leaking > 1e-3 if layout == "batched" else leaking <= 1e-10


def test_every_loss_alone_gives_a_gradient_so_that_zero_above_means_stopped():
    velocity = tiny_objective.velocity()
    for name in ("data", "flow", "cons", "adv", "rectify"):
        weights = LossWeights(**{key: float(key in (name, "lpips")) for key in vars(WEIGHTS)})
        objective(velocity).backward(BATCH, DRAWS, weights)
        assert any(bool(value.any()) for value in gradients(velocity).values()), name
