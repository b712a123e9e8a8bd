"""Random times: ranges, probabilities, and the grid that sampling uses."""

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.sampling.schedule import MAX_STEPS
from training.objective.time_sampling import consistency_times, flow_times, uniform

COUNT = 200_000
ROUNDING = 6e-8  # half a unit in the last place of a float32 near 1


@pytest.fixture(scope="module")
def pairs():
    """(t, s) of many rows as float64, after checking their dtype."""
    t, s = consistency_times(COUNT, tiny.generator(0))
    assert t.dtype == s.dtype == torch.float32
    assert t.shape == s.shape == (COUNT,)
    return t.double(), s.double()


@pytest.fixture(scope="module")
def on_grid(pairs):
    """Rows that are neighbours (1 - k/N, 1 - (k+1)/N) for some N in 2..30."""
    t, s = pairs
    steps = (1 / (t - s)).round()
    k = ((1 - t) * steps).round()
    is_neighbour = ((t - (1 - k / steps)).abs() <= 2 * ROUNDING) & ((s - (1 - (k + 1) / steps)).abs() <= 2 * ROUNDING)
    return is_neighbour & (steps >= 2) & (steps <= MAX_STEPS)


def test_flow_times():
    t = flow_times(COUNT, tiny.generator(0))
    assert t.dtype == torch.float32
    assert 0.02 <= float(t.min()) < 0.021
    assert 0.999 < float(t.max()) <= 1
    assert float(t.mean()) == pytest.approx(0.51, abs=0.003)
    assert float(t.std()) == pytest.approx(0.98 / 12**0.5, abs=0.003)


def test_consistency_times_fall(pairs):
    t, s = pairs
    assert float(s.min()) == 0
    assert float(t.max()) == 1
    assert float(t.min()) >= 1 / 30 - ROUNDING  # so the floor of the residual division is never active
    assert float((t - s).min()) >= 0.02 - ROUNDING


def test_a_quarter_lies_on_the_grid_of_algorithm_1(pairs, on_grid):
    assert float(on_grid.double().mean()) == pytest.approx(0.25, abs=0.005)
    t, s = (x[on_grid] for x in pairs)
    steps = (1 / (t - s)).round()
    counts = torch.bincount(steps.long(), minlength=MAX_STEPS + 1)[2:] / len(steps)
    assert torch.allclose(counts, torch.full((29,), 1 / 29), atol=0.006)  # every N as often
    for n in (2, 7, 30):
        k = ((1 - t[steps == n]) * n).round().long()
        share = torch.bincount(k, minlength=n) / len(k)
        assert len(share) == n
        assert torch.allclose(share, torch.full((n,), 1 / n), atol=0.05)  # every neighbour as often


def test_a_quarter_goes_to_clean(pairs, on_grid):
    t, s = pairs
    to_clean = (s == 0) & ~on_grid
    assert float(to_clean.double().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(t[to_clean].mean()) == pytest.approx((1 / 30 + 1) / 2, abs=0.01)


def test_the_other_half_is_random(pairs, on_grid):
    t, s = (x[~on_grid & (pairs[1] > 0)] for x in pairs)
    assert len(t) / COUNT == pytest.approx(0.5, abs=0.005)
    assert float(t.mean()) == pytest.approx((1 / 30 + 1) / 2, abs=0.01)
    far = t > 0.5  # there the least gap hardly matters
    assert float((s / t)[far].mean()) == pytest.approx(0.5, abs=0.02)


def test_with_a_boundary_half_of_the_rows_to_clean_are_short(pairs):
    t, s = (x.double() for x in consistency_times(COUNT, tiny.generator(0), boundary_time=0.1))
    assert torch.equal(s, pairs[1])
    moved = t != pairs[0]
    assert bool((s[moved] == 0).all())
    assert float(moved.double().mean()) == pytest.approx(0.125, abs=0.005)
    assert float(t[moved].min()) >= 1 / 30 - ROUNDING and float(t[moved].max()) <= 0.1 + ROUNDING
    assert float(t[moved].mean()) == pytest.approx((1 / 30 + 0.1) / 2, abs=0.001)


def test_times_follow_the_generator_alone():
    before = torch.get_rng_state()
    for draw in (flow_times, lambda n, g: torch.cat(consistency_times(n, g)), lambda n, g: uniform(2, 3, n, g)):
        assert torch.equal(draw(64, tiny.generator(5)), draw(64, tiny.generator(5)))
        assert not torch.equal(draw(64, tiny.generator(5)), draw(64, tiny.generator(6)))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_rows():
    assert flow_times(0, tiny.generator(0)).shape == (0,)
    assert consistency_times(0, tiny.generator(0))[0].shape == (0,)
