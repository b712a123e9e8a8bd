"""Gradients of every layout equal those of one joint graph in float64, with and without checkpointing (T3)."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from helpers.tiny import model as tiny
from helpers.tiny import objective as tiny_objective
from helpers.tiny.objective import WEIGHTS, gradients, joint_losses, joint_total, objective
from training.objective.losses import rectification_weight
from training.objective.objective import ROLES, LossWeights

LIMIT = 1e-10
BATCH, DRAWS = tiny_objective.batch(), tiny_objective.draws()
SPACES = [("velocity", "latent"), ("lq_residual", "pixel"), ("velocity", "pixel"), ("lq_residual", "latent")]


def reference(prediction, loss_space, weights=WEIGHTS, w_max=10.0):
    """(losses, gradients) of the joint graph."""
    velocity = tiny_objective.velocity(prediction)
    parts = joint_losses(velocity, BATCH, DRAWS, loss_space, tiny_objective.Edges(), w_max)
    joint_total(parts, weights).backward()
    return {name: float(part.detach()) for name, part in parts.items()}, gradients(velocity)


def distance(found, wanted):
    """Largest difference of two sets of gradients over the largest gradient."""
    assert found.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    assert largest > 1e-5
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / largest


@pytest.fixture(scope="module")
def references():
    return {pair: reference(*pair) for pair in SPACES}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("layout", ["sequential", "batched"])
@pytest.mark.parametrize(("prediction", "loss_space"), SPACES)
def test_one_graph_at_a_time_equals_the_joint_graph(references, prediction, loss_space, layout, checkpointing):
    velocity = tiny_objective.velocity(prediction, checkpointing=checkpointing)
    figures = objective(velocity, loss_space=loss_space).backward(BATCH, DRAWS, WEIGHTS, layout=layout)
    losses, wanted = references[prediction, loss_space]
    assert figures.losses == pytest.approx(losses, rel=1e-6)  # times are float32
    assert distance(gradients(velocity), wanted) <= LIMIT


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(("prediction", "loss_space"), SPACES[:2])
def test_the_four_roles_of_rotate_add_up_to_the_joint_graph(references, prediction, loss_space, checkpointing):
    velocity = tiny_objective.velocity(prediction, checkpointing=checkpointing)
    target, met, total = objective(velocity, loss_space=loss_space), {}, {}
    for micro_step in (5, 2, 4, 3):  # each role once, in any order
        figures = target.backward(BATCH, DRAWS, WEIGHTS, layout="rotate", micro_step=micro_step)
        named = "one_step" if "rectify" in figures.losses else next(iter(figures.losses))
        assert named == ROLES[micro_step % 4]
        met |= figures.losses
        for name, value in gradients(velocity).items():
            total[name] = total.get(name, 0) + value
    losses, wanted = references[prediction, loss_space]
    assert met == pytest.approx(losses, rel=1e-6)
    assert distance(total, wanted) <= LIMIT


@pytest.mark.parametrize("layout", ["sequential", "batched"])
@pytest.mark.parametrize("only", ["data", "flow", "cons", "adv", "rectify"])
def test_each_weight_reaches_its_own_loss(only, layout):
    weights = dataclasses.replace(LossWeights(0, 0.7, 0, 0, 0, 0), **{only: 2.0})
    velocity = tiny_objective.velocity()
    objective(velocity).backward(BATCH, DRAWS, weights, layout=layout)
    assert distance(gradients(velocity), reference("lq_residual", "pixel", weights)[1]) <= LIMIT


def test_the_scale_multiplies_the_gradient_and_gradients_add_up():
    velocity = tiny_objective.velocity()
    target = objective(velocity)
    target.backward(BATCH, DRAWS, WEIGHTS)
    whole = gradients(velocity)
    for _ in range(2):
        target.backward(BATCH, DRAWS, WEIGHTS, scale=0.5)
    assert distance(gradients(velocity), whole) <= LIMIT


def test_a_batch_is_the_mean_of_its_samples():
    velocity = tiny_objective.velocity()
    target = objective(velocity)
    target.backward(BATCH, DRAWS, WEIGHTS)
    whole = gradients(velocity)
    for b in range(2):
        row = slice(b, b + 1)
        batch = type(BATCH)(*(x[row] for x in (BATCH.x_0, BATCH.z_0, BATCH.z_lq)))
        draws = type(DRAWS)(**{name: value[row] for name, value in vars(DRAWS).items()})
        target.backward(batch, draws, WEIGHTS, scale=0.5)
    assert distance(gradients(velocity), whole) <= LIMIT


@pytest.mark.parametrize("w_max", [10.0, 0.5, float("inf")])
def test_the_time_weight_multiplies_the_gradient_of_the_rectification(w_max):
    velocity = tiny_objective.velocity()
    batch, draws, weights = tiny_objective.batch(1), tiny_objective.draws(1, seed=38), LossWeights(0, 0, 0, 0, 0, 1)
    w = float(rectification_weight(draws.s, w_max))
    assert abs(w - 1) > 0.3
    objective(velocity, w_max=w_max).backward(batch, draws, weights)
    with_tar = gradients(velocity)
    objective(velocity, use_tar=False).backward(batch, draws, weights)
    without = {name: w * value for name, value in gradients(velocity).items()}
    assert distance(with_tar, without) <= 1e-6  # rotary positions are float32, their gradient too


def test_the_clamp_of_the_difference_is_at_work_here():
    figures = objective(tiny_objective.velocity()).backward(BATCH, DRAWS, WEIGHTS)
    assert 0.01 < float((figures.delta.abs() > 1).double().mean()) < 0.9


# Checkpointed blocks run again in the backward, when a call has already removed its adapter


def test_without_the_attached_adapter_checkpointing_would_be_wrong(monkeypatch):
    wanted = reference("lq_residual", "pixel")[1]
    velocity = tiny_objective.velocity(checkpointing=True)
    monkeypatch.setattr(velocity, "lora_attached", lambda *_: nullcontext())
    try:
        objective(velocity).backward(BATCH, DRAWS, WEIGHTS)
    except CheckpointError:
        return  # torch itself noticed
    assert distance(gradients(velocity), wanted) > 1e-3


def test_the_attached_adapter_is_gone_afterwards():
    velocity = tiny_objective.velocity(checkpointing=True)
    objective(velocity).backward(BATCH, DRAWS, WEIGHTS)
    assert all("forward" not in module.__dict__ for module in velocity.transformer.modules())
    with pytest.raises(RuntimeError, match="planted"), velocity.lora_attached(4, 8):
        raise RuntimeError("planted")
    assert all("forward" not in module.__dict__ for module in velocity.transformer.modules())
    z_t, z_lq = (z.double() for z in tiny.latents(1, 8, 8))
    velocity(z_t, torch.ones(1), z_lq, torch.zeros(1))  # another size: nothing is left of the first


def test_inside_the_attachment_a_call_gives_what_it_gives_outside():
    velocity = tiny_objective.velocity(dtype=torch.float32)
    z_t, z_lq = tiny.latents()
    arguments = z_t, torch.tensor([0.9, 0.4]), z_lq, torch.tensor([0.2, 0.1])
    with torch.no_grad():
        outside = velocity(*arguments)
        with velocity.lora_attached(*z_t.shape[2:]):
            assert torch.equal(velocity(*arguments), outside)
            with pytest.raises(AssertionError, match="attached for 24 tokens"):
                velocity(*(x[:, :, :, :8] if x.ndim == 4 else x for x in arguments))
