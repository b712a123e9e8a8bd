"""AutoSteps: one step for a straight field, more for a bent one; monotone in the tolerance, bounded, the same noise."""

import itertools
import math

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.errors import InputError, OutputError
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import Callbacks, RestoreOptions, RestoreRequest, conditioning_image
from teasr_core.restorer import Restorer
from teasr_core.sampling.auto_steps import MAX_EVALUATIONS, AutoSteps, FirstStep
from teasr_core.sampling.sampler import initial_noise
from teasr_core.sampling.schedule import MAX_STEPS, linear_taus, manual_plan
from teasr_core.sampling.tiled_velocity import TiledVelocity
from teasr_core.tiling import plan_tiles
from teasr_core.weight_files.base_file import build_velocity

TOLERANCES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


class Counted:
    """A velocity that counts its calls and keeps their times."""

    def __init__(self, velocity):
        self.velocity = velocity
        self.times = []

    def __call__(self, z_t, t_cur, z_lq, t_tar):
        self.times.append((float(t_cur[0]), float(t_tar[0])))
        assert t_cur.dtype == t_tar.dtype == torch.float32
        assert t_cur.shape == t_tar.shape == (len(z_t),)
        return self.velocity(z_t, t_cur, z_lq, t_tar)


def stiff(rate):
    """dz/dt = rate z with one Euler step for a velocity: one step of h errs by (rate h)^2 / 4 |z|."""
    return Counted(lambda z_t, *_: rate * z_t)


@pytest.fixture
def noise():
    return initial_noise(3, 4, 8, 8)


# The error


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 30])
def test_the_error_is_the_papers_step_doubling_error(noise, steps):
    """Eq. 1-3 written out in float64, on a field that bends in z, t_cur and t_tar."""

    def bent(z_t, t_cur, z_lq, t_tar):
        t_cur, t_tar = (t.to(z_t).reshape(-1, 1, 1, 1) for t in (t_cur, t_tar))
        return torch.sin(2 * z_t) * (1 + t_cur) + t_tar**2 * torch.cos(z_t) - z_lq

    z_lq = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8)
    t, s = 1.0, 1 - 1 / steps
    m = (t + s) / 2
    z_t, lq = noise.double(), z_lq.double()

    def v(z, t_cur, t_tar):
        return bent(z, torch.tensor([t_cur]).double(), lq, torch.tensor([t_tar]).double())

    z_m = z_t - (t - s) / 2 * v(z_t, t, m)
    v_2 = (v(z_t, t, m) + v(z_m, m, s)) / 2
    wanted = float(((t - s) * (v(z_t, t, s) - v_2)).square().mean().sqrt())
    assert FirstStep(bent, noise, z_lq).error(steps) == pytest.approx(wanted, rel=1e-4)


def test_the_error_is_the_distance_between_one_step_and_two_halves(noise):
    field = stiff(3.0).velocity
    h = 1 / 4
    one = noise - h * field(noise)
    half = noise - h / 2 * field(noise)
    two = half - h / 2 * field(half)
    assert FirstStep(field, noise, noise).error(4) == pytest.approx(float((one - two).square().mean().sqrt()), rel=1e-4)


# The choice


def test_a_straight_field_takes_one_step_at_any_tolerance(noise):
    z_0 = torch.randn(1, 4, 8, 8, generator=tiny.generator(1))
    for tolerance in TOLERANCES:
        field = Counted(lambda *_: noise - z_0)
        plan = AutoSteps(tolerance).choose(field, noise, z_0)
        assert plan.steps == 1
        assert len(field.times) == 3
        assert torch.equal(plan.taus, linear_taus(1))


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_a_stiff_field_takes_what_its_known_error_asks_for(noise, rate):
    """The error of N is (rate / N)^2 / 4 |z|: two measurements find the fewest steps within any tolerance."""
    size = float(noise.square().mean().sqrt())
    for tolerance in TOLERANCES:
        plan = AutoSteps(tolerance).choose(stiff(rate), noise, noise)
        enough = [n for n in range(1, MAX_STEPS + 1) if (rate / n) ** 2 / 4 * size <= tolerance]
        assert plan.steps == min(enough, default=MAX_STEPS), tolerance


def test_stiffer_fields_take_more_steps(noise):
    steps = [AutoSteps(0.05).choose(stiff(rate), noise, noise).steps for rate in (0.1, 1, 2, 4, 8, 100)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, MAX_STEPS)
    assert len(set(steps)) == len(steps)


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_tolerance_never_takes_fewer_steps(seed):
    """Also on a field whose error is not monotone in the number of steps."""
    noise = initial_noise(seed, 4, 8, 8)
    phase = torch.rand(3, generator=tiny.generator(seed))

    def wild(z_t, t_cur, z_lq, t_tar):
        return z_t * float(torch.sin(40 * t_tar[0] + 6 * phase[0])) + float(torch.cos(25 * t_cur[0] + 6 * phase[1]))

    steps = [AutoSteps(tolerance).choose(wild, noise, noise).steps for tolerance in TOLERANCES]
    assert all(a <= b for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize(("tolerance", "calls"), [(1.0, 3), (0.3, 5), (0.01, 5), (0.001, 5)])
def test_the_cost_is_bounded_and_no_call_is_made_twice(noise, tolerance, calls):
    field = stiff(1.5)
    AutoSteps(tolerance).choose(field, noise, noise)
    assert len(set(field.times)) == len(field.times) == calls <= MAX_EVALUATIONS


def test_an_error_that_does_not_fall_takes_the_most(noise):
    """Two steps no better than one: no number can be told from that."""
    plan = AutoSteps(0.01).choose(lambda z_t, t_cur, z_lq, t_tar: z_t * (1 + 40 * t_tar[0]), noise, noise)
    assert plan.steps == MAX_STEPS
    assert "the error does not fall" in plan.reason


def test_the_choice_is_the_same_each_time_and_changes_nothing(noise):
    z_lq = torch.randn(1, 4, 8, 8, generator=tiny.generator(2))
    before, state = (noise.clone(), z_lq.clone()), torch.get_rng_state()
    reasons = {AutoSteps(0.01).choose(stiff(1.0), noise, z_lq).reason for _ in range(3)}
    assert len(reasons) == 1
    assert torch.equal(noise, before[0])
    assert torch.equal(z_lq, before[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_any_two_errors_give_a_plan_that_is_monotone_in_the_tolerance():
    for one, two in itertools.product((0.0, 1e-9, 0.01, 0.1, 0.3, 1.0, 1e30), repeat=2):
        steps = [AutoSteps(tolerance).plan({1: one, 2: two}.__getitem__).steps for tolerance in TOLERANCES]
        assert all(1 <= a <= b <= MAX_STEPS for a, b in itertools.pairwise(steps)), (one, two)
    nearly = AutoSteps(0.1).plan({1: 0.3, 2: 0.3 - 1e-12}.__getitem__)
    assert nearly.steps == MAX_STEPS


# What the user reads


@pytest.mark.parametrize(
    ("rate", "tolerance", "reason"),
    [
        (0.0, 0.5, "auto: 1 step, error 0 within tolerance 0.5"),
        (2.0, 0.3, "auto: 2 steps, error 0.25 within tolerance 0.3 (1: 1, 2: 0.25)"),
        (4.0, 0.3, "auto: 4 steps, error about 0.25 within tolerance 0.3 (1: 4, 2: 1)"),
        (80.0, 0.001, "auto: 30 steps, the most; error about 1.8 above tolerance 0.001 (1: 1.6e+03, 2: 4e+02)"),
    ],
)
def test_the_reason_names_the_number_its_error_the_tolerance_and_what_was_measured(noise, rate, tolerance, reason):
    unit = noise / noise.square().mean().sqrt()  # |z| = 1: the error of N is (rate / N)^2 / 4
    assert AutoSteps(tolerance).choose(stiff(rate), unit, unit).reason == reason


@pytest.mark.parametrize("tolerance", [0.0, -0.1, 10.5, math.nan, math.inf])
def test_an_impossible_tolerance_is_refused(tolerance):
    with pytest.raises(InputError, match="above 0, at most 10"):
        AutoSteps(tolerance)


def test_nan_is_an_error_and_no_choice(noise):
    with pytest.raises(OutputError, match="NaN or infinity"):
        AutoSteps().choose(lambda z_t, *_: z_t * math.nan, noise, noise)


# In the restorer


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    base = tiny.read_tiny_base(tmp_path_factory.mktemp("base"))
    return Restorer(base, build_velocity(base), torch.float32)


OPTIONS = RestoreOptions(TargetSize(46, 34))


def test_the_result_is_that_of_the_chosen_number(restorer):
    image = tiny.picture(17, 23)
    plans = []
    request = RestoreRequest(OPTIONS, AutoSteps(0.1), seed=7)
    found, report = restorer.restore(image, request, Callbacks(on_plan=plans.append))
    (plan,) = plans
    assert report.steps == plan.steps > 1
    assert report.line().endswith(f" | {plan.reason}")
    again, report = restorer.restore(image, RestoreRequest(OPTIONS, manual_plan(plan.steps), seed=7))
    assert torch.equal(found, again)
    assert "auto" not in report.line()


def parts(restorer, image, seed=0):
    """(noise, z_lq) as `restore` makes them."""
    z_lq = restorer.base.codec.encode(conditioning_image(image, OPTIONS.size, restorer.pixel_multiple)[1])
    return initial_noise(seed, *z_lq.shape[1:]), z_lq


def test_each_image_of_a_batch_has_its_own_number(restorer):
    """Two pictures, and a tolerance between their two-step errors: one needs two steps, the other more."""
    images = torch.cat([tiny.picture(17, 23), 1 - tiny.picture(17, 23, seed=9)])
    errors = [FirstStep(restorer.velocity, *parts(restorer, image[None])).error(2) for image in images]
    assert abs(errors[0] - errors[1]) > 1e-5
    auto, plans, alone = AutoSteps(sum(errors) / 2), [], []
    restorer.restore(images, RestoreRequest(OPTIONS, auto), Callbacks(on_plan=plans.append))
    for k in range(2):
        restorer.restore(images[k : k + 1], RestoreRequest(OPTIONS, auto), Callbacks(on_plan=alone.append))
    assert [plan.steps for plan in plans] == [plan.steps for plan in alone]
    assert min(plan.steps for plan in plans) == 2 < max(plan.steps for plan in plans)


def test_it_works_in_tiles_with_the_samplers_noise(restorer):
    image, seen = tiny.picture(17, 23), []
    request = RestoreRequest(OPTIONS, AutoSteps(0.1), seed=5, tile_px=32, overlap_px=16)
    assert restorer.restore(image, request, Callbacks(on_plan=seen.append)).report.tiles == 4
    noise, z_lq = parts(restorer, image, seed=5)
    tiled = TiledVelocity(restorer.velocity, plan_tiles(*z_lq.shape[-2:], 8, 4, 4))
    assert AutoSteps(0.1).choose(tiled, noise, z_lq).reason == seen[0].reason


def test_the_error_is_that_of_the_wanted_pixels(noise):
    """A field that bends on one half alone: asked about that half, the choice is that of a picture of nothing else."""
    bends = torch.zeros(8, 8)
    bends[:, 4:] = 1
    half = FirstStep(lambda z_t, *_: 3 * bends * z_t, noise, noise, wanted=bends > 0).error(2)
    alone = FirstStep(lambda z_t, *_: 3 * z_t, noise[..., 4:], noise[..., 4:]).error(2)
    assert half == pytest.approx(alone, rel=1e-5)
    assert FirstStep(lambda z_t, *_: 3 * bends * z_t, noise, noise, wanted=bends == 0).error(2) == 0


@pytest.mark.parametrize("start", [0.25, 0.5])
def test_a_start_below_1_is_a_shorter_run(start):
    """In time that runs `start` times as fast it is the run from 1: the same errors, choice and reason."""
    z = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def velocity(z_t, t_cur, z_lq, t_tar):
        return torch.sin(3 * z_t) * (1 + t_cur) + z_lq * t_tar

    def slower(z_t, t_cur, z_lq, t_tar):
        return velocity(z_t, t_cur / start, z_lq, t_tar / start) / start

    for tolerance in TOLERANCES:
        whole, short = (
            AutoSteps(tolerance).choose(velocity, z, z),
            AutoSteps(tolerance).choose(slower, z, z, None, start),
        )
        assert short.reason == whole.reason and short.steps == whole.steps
        assert torch.equal(short.taus, linear_taus(whole.steps, start))
