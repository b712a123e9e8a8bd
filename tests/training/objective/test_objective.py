"""What a micro-step asks of the network and where its gradients go (T2, T3): counted on the real transformer."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from helpers.tiny import model as tiny
from helpers.tiny import objective as tiny_objective
from helpers.tiny.objective import WEIGHTS, gradients, objective
from teasr_core.codec.dct import DctCodec
from teasr_core.model.branch_lora import DEAD_IN_LAST_BLOCK
from teasr_core.model.flow import interpolate
from training.objective.losses import rectification_weight, velocity_loss
from training.objective.objective import Batch, LossWeights, velocity_calls

BATCH = tiny_objective.batch(dtype=torch.float32)
DRAWS = tiny_objective.draws(dtype=torch.float32)


def trained(prediction="lq_residual", **options):
    return tiny_objective.velocity(prediction, dtype=torch.float32, **options)


@dataclasses.dataclass
class Calls:
    """Rows of every forward of the transformer, whether it kept a graph, and the two times it was modulated by."""

    rows: list = dataclasses.field(default_factory=list)
    with_grad: list = dataclasses.field(default_factory=list)
    times: list = dataclasses.field(default_factory=list)


@pytest.fixture
def watch():
    def attach(velocity):
        calls = Calls()

        def forward(_module, _args, kwargs):
            calls.rows.append(kwargs["hidden_states"].shape[0])
            calls.with_grad.append(torch.is_grad_enabled())

        def time(_module, args):
            calls.times.append(tuple(args[0].chunk(2)))  # (t_cur, t_tar), each (rows,)

        velocity.transformer.register_forward_pre_hook(forward, with_kwargs=True)
        velocity.transformer.time_text_embed.time_proj.register_forward_pre_hook(time)
        return calls

    return attach


# Rows and times


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("layout", ["sequential", "batched"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_a_sample_costs_eight_rows_four_of_them_with_a_gradient(watch, size, layout, checkpointing):
    velocity = trained(checkpointing=checkpointing)
    calls = watch(velocity)
    batch = tiny_objective.batch(size, torch.float32)
    objective(velocity).backward(batch, tiny_objective.draws(size, torch.float32), WEIGHTS, layout=layout)
    assert sum(calls.rows) == 8 * size
    assert sum(rows for rows, kept in zip(calls.rows, calls.with_grad, strict=True) if kept) == 4 * size
    if layout == "sequential":  # one graph at a time: no forward is larger than a batch
        assert calls.rows == [size] * 8


def test_rotate_costs_what_its_role_costs(watch):
    velocity = trained()
    target, found = objective(velocity), []
    for micro_step in range(4):
        calls = watch(velocity)
        target.backward(BATCH, DRAWS, WEIGHTS, layout="rotate", micro_step=micro_step)
        found.append((sum(calls.rows) // 2, sum(r for r, g in zip(calls.rows, calls.with_grad, strict=True) if g) // 2))
    assert found == [(1, 1), (3, 1), (3, 1), (2, 1)]


def test_the_times_are_those_announced_and_those_of_the_equations(watch):
    velocity = trained()
    calls = watch(velocity)
    objective(velocity).backward(BATCH, DRAWS, WEIGHTS)
    announced = velocity_calls(DRAWS)
    assert len(calls.times) == len(announced) == 8
    for found, wanted in zip(calls.times, announced, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    flow, first, second, step, one, real, fake, adv = calls.times
    assert torch.equal(*flow)  # Eq. 5, 10: the real score is read where it was learnt
    assert torch.equal(first[1], second[0]) and torch.equal(first[0], step[0]) and torch.equal(second[1], step[1])
    assert one[0].tolist() == [1, 1] and one[1].tolist() == [0, 0] and not torch.signbit(one[1]).any()  # Eq. 6
    assert torch.equal(real[0], DRAWS.s) and torch.equal(real[1], DRAWS.s)  # Eq. 9, 10
    assert torch.equal(fake[0], DRAWS.s) and torch.equal(fake[1], -DRAWS.s)
    assert torch.equal(adv[0], DRAWS.t_fake) and torch.equal(adv[1], -DRAWS.t_fake)  # Eq. 7


def test_a_negative_time_too_near_to_zero_is_refused():
    near = dataclasses.replace(DRAWS, t_fake=torch.tensor([0.5, 0.01]))
    with pytest.raises(AssertionError, match=r"at most -0\.02"):
        objective(trained()).backward(BATCH, near, WEIGHTS)


# Ablations


def test_without_dtc_both_branches_get_one_fused_time(watch):
    velocity = trained(use_dtc=False)
    calls = watch(velocity)
    figures = objective(velocity).backward(BATCH, DRAWS, WEIGHTS)
    for (cur, tar), (t_cur, t_tar) in zip(calls.times, velocity_calls(DRAWS), strict=True):
        assert torch.equal(cur, t_cur - t_tar / 2) and torch.equal(cur, tar)
    assert all(value > 0 for value in figures.losses.values())
    without = gradients(velocity)
    with_dtc = trained()
    other = objective(with_dtc).backward(BATCH, DRAWS, WEIGHTS)
    assert all(abs(other.losses[name] - value) > 1e-4 * value for name, value in figures.losses.items())
    assert any(not torch.allclose(without[name], value, rtol=0.1) for name, value in gradients(with_dtc).items())


@pytest.mark.parametrize("prediction", ["velocity", "lq_residual"])
def test_without_tar_only_the_rectification_changes_and_its_weight_is_one(prediction):
    velocity = trained(prediction)
    found = [objective(velocity, use_tar=tar, loss_space="latent").backward(BATCH, DRAWS, WEIGHTS) for tar in (1, 0)]
    with_tar, without = (figures.losses for figures in found)
    assert {name for name in with_tar if with_tar[name] != without[name]} == {"rectify"}
    squares = found[0].delta.clamp(-1, 1).square().mean(dim=(1, 2, 3))  # (B,)
    assert without["rectify"] == pytest.approx(float(squares.mean()), rel=1e-5)
    w = rectification_weight(DRAWS.s)
    assert with_tar["rectify"] == pytest.approx(float((w**2 * squares).mean()), rel=1e-5)
    assert torch.equal(found[0].s, DRAWS.s)


# Where gradients go


def test_every_pair_of_the_adapter_learns_and_the_base_does_not():
    velocity = trained()
    objective(velocity).backward(BATCH, DRAWS, WEIGHTS)
    assert velocity.lora is not None
    dead = [n for n, p in velocity.lora.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert dead == []
    last = f"transformer_blocks.{tiny.ARCHITECTURE.num_layers - 1}."
    never = [path for path in velocity.lora.paths if path.startswith(last) and path.endswith(DEAD_IN_LAST_BLOCK)]
    assert never == []  # they would have no gradient: not created
    assert all(p.grad is None for p in velocity.transformer.parameters())


def test_a_role_without_weight_costs_no_gradient_but_is_logged():
    velocity = trained()
    figures = objective(velocity).backward(BATCH, DRAWS, LossWeights(0, 0, 0, 0, 0, 0))
    assert all(not value.any() for value in gradients(velocity).values())
    assert all(value > 0 for value in figures.losses.values())


def test_the_clean_images_get_no_gradient_and_stay_as_they_are():
    images = torch.rand(2, 1, 3, 16, 32, generator=tiny.generator(1), requires_grad=True)
    before = images.detach().clone()
    batch = Batch.encode(tiny.codec(), *images)
    objective(trained()).backward(batch, tiny_objective.draws(1, torch.float32), WEIGHTS)
    assert images.grad is None
    assert torch.equal(images, before)
    assert float(batch.x_0.min()) >= -1 and float(batch.x_0.max()) > 0.9


def test_nothing_of_the_global_random_state_is_used():
    target, state = objective(trained()), torch.get_rng_state()
    target.backward(BATCH, DRAWS, WEIGHTS)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_perceptual_network_its_loss_is_zero_and_the_rest_the_same():
    velocity = trained()
    with_it = objective(velocity).backward(BATCH, DRAWS, WEIGHTS).losses
    without = objective(velocity, perceptual=None).backward(BATCH, DRAWS, WEIGHTS).losses
    assert without["lpips"] == 0 < with_it["lpips"]
    assert {k: v for k, v in without.items() if k != "lpips"} == {k: v for k, v in with_it.items() if k != "lpips"}


@pytest.mark.parametrize("layout", ["sequential", "batched"])
def test_the_lattice_loss_joins_the_data_loss_where_it_has_a_weight(layout):
    velocity = trained()

    def run(lattice):
        weights = dataclasses.replace(WEIGHTS, lattice=lattice)
        figures = objective(velocity).backward(BATCH, DRAWS, weights, layout=layout)
        return figures.losses, gradients(velocity)

    (without, plain), (some, once), (more, twice) = run(0.0), run(1.0), run(2.0)
    assert "lattice" not in without
    assert some["lattice"] == more["lattice"] > 0
    assert {k: v for k, v in some.items() if k != "lattice"} == without
    for name, gradient in plain.items():  # linear in the weight
        assert torch.allclose(twice[name] - once[name], once[name] - gradient, atol=1e-6)
    assert any(not torch.equal(gradient, once[name]) for name, gradient in plain.items())


@pytest.mark.parametrize("layout", ["sequential", "batched"])
def test_windows_move_what_the_perceptual_network_sees_and_nothing_else(layout):
    seen, velocity = [], trained()

    def perceptual(x_fake, x_0):
        seen.append((x_fake.detach().clone(), x_0))
        return (x_fake - x_0).square().mean((1, 2, 3))

    figures = [
        objective(velocity, perceptual=perceptual, use_windows=on).backward(BATCH, DRAWS, WEIGHTS, layout=layout).losses
        for on in (False, True)
    ]
    (whole, target), (window, target_window) = seen
    top, left = (int(value) for value in DRAWS.perceptual_offset)
    assert (top, left) != (0, 0)
    assert torch.equal(window, whole[..., top:, left:])
    assert torch.equal(target_window, target[..., top:, left:])
    assert {k: v for k, v in figures[0].items() if k != "lpips"} == {
        k: v for k, v in figures[1].items() if k != "lpips"
    }


# Precision


class WatchedCodec(DctCodec):
    """Remembers whether autocast was on, and the dtype, when it decoded."""

    def __init__(self):
        plain = tiny.codec()
        super().__init__(plain.mean.flatten().tolist(), plain.std.flatten().tolist())
        self.seen = []

    def decode(self, latent):
        self.seen.append((torch.is_autocast_enabled("cpu"), latent.dtype))
        return super().decode(latent)


def test_autocast_covers_the_network_alone():
    velocity, codec, inside = trained(), WatchedCodec(), []
    velocity.transformer.register_forward_pre_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    target = objective(velocity, forward_context=lambda: torch.autocast("cpu", torch.bfloat16))
    target.codec = codec
    found = target.backward(BATCH, DRAWS, WEIGHTS).losses
    assert inside == [True] * 8
    assert codec.seen == [(False, torch.float32)]
    exact = objective(trained(), forward_context=nullcontext).backward(BATCH, DRAWS, WEIGHTS).losses
    for name in ("data", "lpips", "flow", "cons", "adv"):  # the small difference of two scores is mostly rounding here
        assert found[name] == pytest.approx(exact[name], rel=0.05) and found[name] != exact[name]


def test_checkpointed_blocks_run_again_under_the_same_autocast():
    def run(checkpointing):
        velocity = trained(checkpointing=checkpointing)
        context = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
        objective(velocity, forward_context=context).backward(BATCH, DRAWS, WEIGHTS)
        return gradients(velocity)

    plain, again = run(False), run(True)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("layout", ["sequential", "batched"])
def test_a_short_step_to_zero_is_compared_with_the_photograph(layout):
    """Both rows at the boundary: then L_cons is L_flow asked at t_tar = 0. Without it the loss is another."""
    velocity = trained()
    draws = dataclasses.replace(DRAWS, t_cons=torch.tensor([0.05, 0.09]), s_cons=torch.zeros(2))
    without, found = (
        objective(velocity, boundary_time=time).backward(BATCH, draws, WEIGHTS, layout=layout).losses
        for time in (0.0, 0.1)
    )
    z_t = interpolate(BATCH.z_0, draws.noise_cons, draws.t_cons)
    with torch.no_grad():
        output = velocity.network_output(z_t, draws.t_cons, BATCH.z_lq, draws.s_cons)
    target, weight = draws.noise_cons - BATCH.z_0, tiny.codec().pixel_weights
    wanted = velocity_loss("lq_residual", output, target, z_t, BATCH.z_lq, draws.t_cons, weight)
    assert found["cons"] == pytest.approx(float(wanted), rel=1e-5)
    assert without["cons"] != pytest.approx(found["cons"], rel=1e-2)
    assert {k: v for k, v in found.items() if k != "cons"} == {k: v for k, v in without.items() if k != "cons"}
