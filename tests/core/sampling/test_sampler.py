"""Algorithm 1: the sampler equals an explicit loop, the schedule has exact bits, the noise follows its seed."""

import pytest
import torch

from helpers.reference_qwen import ReferenceQwen
from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from teasr_core.model.flow import velocity_from_output
from teasr_core.sampling.sampler import initial_noise, noised, sample
from teasr_core.sampling.schedule import MAX_STEPS, StepPlan, linear_taus, manual_plan, starting_at

STEPS = (1, 2, 4, 8, 30)
SEEDS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)


def explicit_loop(velocity, noise, z_lq, steps):
    """Algorithm 1 as printed: z <- z - v(z, tau_i, z_lq, tau_{i+1}) / N, in float64."""
    z, z_lq = noise.double().expand_as(z_lq), z_lq.double()
    for i in range(steps):
        times = [torch.full((len(z),), 1 - k / steps, dtype=torch.float64) for k in (i, i + 1)]
        z = z - velocity(z, times[0], z_lq, times[1]) / steps
    return z


def analytic(z_t, t_cur, z_lq, t_tar):
    """Bends, and depends on all four arguments."""
    t_cur, t_tar = (t.double().reshape(-1, 1, 1, 1) for t in (t_cur, t_tar))
    return torch.sin(z_t) * (1 + t_cur) - 0.5 * z_lq * torch.cos(3 * t_tar) + t_cur * t_tar


# The sampler


@pytest.mark.parametrize("steps", STEPS)
def test_float64_sampling_equals_the_explicit_loop(steps):
    noise, z_lq = (z.double() for z in tiny.latents())
    found = sample(analytic, noise, z_lq, linear_taus(steps))
    assert found.dtype == torch.float64
    # The schedule is float32: times are off by up to 6e-8.
    assert float((found - explicit_loop(analytic, noise, z_lq, steps)).abs().max()) <= 1e-6


@pytest.mark.parametrize("steps", STEPS)
def test_sampling_the_tiny_model_equals_the_reference(steps):
    noise, z_lq = tiny.latents(batch=2, height=4, width=8)
    network = ReferenceQwen(tiny.base_weights(), tiny.ARCHITECTURE, tiny.prompt_embeds(), tiny.lora_weights())

    def reference(z_t, t_cur, z_lq, t_tar):
        output = network.output(z_t, t_cur, z_lq, t_tar)
        return velocity_from_output("lq_residual", output, z_t, z_lq, t_cur)

    found = sample(tiny.velocity(use_lora=True), noise[:1], z_lq, linear_taus(steps))
    wanted = explicit_loop(reference, noise[:1], z_lq, steps)
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-5


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_a_straight_path_is_solved_exactly_in_any_number_of_steps(steps):
    noise, z_0 = tiny.latents()
    found = sample(lambda z_t, t_cur, z_lq, t_tar: noise - z_0, noise, z_0, linear_taus(steps))
    assert torch.allclose(found, z_0, rtol=0, atol=4e-6)  # float32 rounding of at most 30 sums


def test_one_noise_field_serves_the_whole_batch_and_nothing_is_changed():
    noise, z_lq = tiny.latents(batch=3)
    before = noise.clone(), z_lq.clone()
    found = sample(lambda z_t, *_: torch.tanh(z_t), noise[:1], z_lq, linear_taus(4))
    assert found.shape == z_lq.shape
    assert torch.equal(found[0], found[2])
    assert torch.equal(noise, before[0])
    assert torch.equal(z_lq, before[1])


def test_times_are_float32_vectors_on_the_schedule():
    seen = []

    def spy(z_t, t_cur, z_lq, t_tar):
        seen.append((t_cur, t_tar))
        return torch.zeros_like(z_t)

    noise, z_lq = tiny.latents(batch=2)
    taus = linear_taus(3)
    sample(spy, noise, z_lq, taus)
    assert all(t.dtype == torch.float32 and t.shape == (2,) for pair in seen for t in pair)
    assert [float(t_cur[0]) for t_cur, _ in seen] == taus[:-1].tolist()
    assert [float(t_tar[1]) for _, t_tar in seen] == taus[1:].tolist()


def test_the_callback_gets_the_clean_estimate_of_every_step():
    noise, z_0 = tiny.latents()
    seen = []
    sample(lambda *_: noise - z_0, noise, z_0, linear_taus(4), lambda i, clean: seen.append((i, clean)))
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    for _, clean in seen:  # on a straight path every estimate is the end point
        assert torch.allclose(clean, z_0, rtol=0, atol=4e-6)


def test_an_exception_in_the_callback_stops_the_sampling():
    calls = []

    def velocity(z_t, *_):
        calls.append(1)
        return z_t

    def stop(i, _clean):
        if i == 1:
            raise KeyboardInterrupt

    noise, z_lq = tiny.latents()
    with pytest.raises(KeyboardInterrupt):
        sample(velocity, noise, z_lq, linear_taus(8), stop)
    assert len(calls) == 2


# The schedule


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_linear_taus_are_exact(steps):
    taus = linear_taus(steps)
    assert taus.dtype == torch.float32
    assert taus.tolist() == [float(torch.tensor(1 - i / steps, dtype=torch.float32)) for i in range(steps + 1)]
    assert (taus[0], taus[-1]) == (1, 0)
    assert bool((taus[:-1] > taus[1:]).all())


@pytest.mark.parametrize("steps", [0, -1, 31, 10**9, True, 1.0, 2.5, "4", "x", None, torch.tensor(4)])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(InputError, match="from 1 to 30"):
        linear_taus(steps)
    with pytest.raises(InputError, match="from 1 to 30"):
        manual_plan(steps)


def test_a_manual_plan_says_so():
    assert manual_plan(1).reason == "1 step, chosen by hand"
    plan = manual_plan(4)
    assert isinstance(plan, StepPlan)
    assert (plan.steps, plan.reason) == (4, "4 steps, chosen by hand")
    assert torch.equal(plan.taus, linear_taus(4))


# The noise


@pytest.mark.parametrize("seed", SEEDS)
def test_every_64_bit_seed_gives_the_same_bits_each_time(seed):
    noise = initial_noise(seed, 48, 4, 6)
    assert noise.shape == (1, 48, 4, 6)
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"
    assert torch.equal(noise, initial_noise(seed, 48, 4, 6))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_noise_is_torchs_own_so_that_the_hosts_noise_node_agrees(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stock = torch.randn(1, 48, 4, 6)  # ComfyUI's comfy.sample.prepare_noise
    assert torch.equal(initial_noise(seed, 48, 4, 6), stock)


def test_torch_takes_the_low_32_bits_of_a_seed():
    """Known and documented: the host's noise does the same, and agreeing with it is worth more."""
    assert torch.equal(initial_noise(2**32 + 5, 4, 4, 4), initial_noise(5, 4, 4, 4))


def test_other_seeds_give_other_noise():
    fields = [initial_noise(seed, 4, 4, 4) for seed in range(50)]
    assert len({field.numpy().tobytes() for field in fields}) == 50


def test_noise_is_standard_normal():
    noise = initial_noise(3, 48, 64, 64)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    sample(lambda z_t, *_: z_t, initial_noise(5, 48, 4, 4), torch.zeros(1, 48, 4, 4), linear_taus(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", [1.0, 0.4361254, 1 / 3])
@pytest.mark.parametrize("steps", [1, 3, 30])
def test_a_schedule_may_start_below_1(steps, start):
    taus = linear_taus(steps, start)
    assert taus.dtype == torch.float32 and len(taus) == steps + 1
    assert float(taus[0]) == pytest.approx(start, abs=1e-7) and float(taus[-1]) == 0
    assert torch.allclose(taus.diff(), torch.full((steps,), -start / steps), atol=1e-6)
    assert torch.equal(taus, starting_at(linear_taus(steps), start))
    if start == 1:
        assert torch.equal(taus, linear_taus(steps))


def test_noised_is_the_straight_path():
    latent, noise = torch.randn(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noised(latent, noise, 0), latent)
    assert torch.equal(noised(latent, noise, 1), noise)
    assert torch.allclose(noised(latent, noise, 0.25), 0.75 * latent + 0.25 * noise)
