"""What the log says of the score difference: by bucket of s, and what the clamp takes away."""

import math

import pytest
import torch

from training.objective.difference_log import DifferenceLog


def constant(*values):
    """(B, 2, 3, 5), one value a sample."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 5)


def test_nothing_was_met():
    assert DifferenceLog(10.0, use_tar=True).values() == {}


def test_means_by_bucket():
    log = DifferenceLog(10.0, use_tar=True)
    log.add(torch.tensor([0.5, 0.55]), constant(0.2, -0.4))
    log.add(torch.tensor([0.1]), constant(0.01))
    values = log.values()
    assert values.keys() == {
        "delta/clamped",
        *(f"delta/{kind}_{bucket}" for kind in ("abs", "rms_w") for bucket in ("s0.02-0.2", "s0.4-0.6")),
    }
    assert values["delta/abs_s0.4-0.6"] == pytest.approx(0.3)
    weights = [(1 - s) ** 2 / s for s in (0.5, 0.55)]
    pull = math.sqrt(((weights[0] * 0.2) ** 2 + (weights[1] * 0.4) ** 2) / 2)
    assert values["delta/rms_w_s0.4-0.6"] == pytest.approx(pull, rel=1e-5)
    assert values["delta/rms_w_s0.02-0.2"] == pytest.approx(0.81 / 0.1 * 0.01, rel=1e-5)
    assert values["delta/clamped"] == 0


def test_the_size_is_before_the_clamp_and_the_pull_after_it():
    log = DifferenceLog(10.0, use_tar=True)
    log.add(torch.tensor([0.5]), constant(3.0))
    assert log.values()["delta/abs_s0.4-0.6"] == pytest.approx(3)
    assert log.values()["delta/rms_w_s0.4-0.6"] == pytest.approx(0.5)  # w(0.5) = 0.5, times 1


def test_the_weight_is_capped_and_without_tar_one():
    for options, weight in (((10.0, True), 10.0), ((math.inf, True), 0.95**2 / 0.05), ((10.0, False), 1.0)):
        log = DifferenceLog(*options)
        log.add(torch.tensor([0.05]), constant(0.1))
        assert log.values()["delta/rms_w_s0.02-0.2"] == pytest.approx(weight * 0.1, rel=1e-5)


def test_the_share_that_is_clamped_counts_elements():
    log = DifferenceLog(10.0, use_tar=True)
    delta = torch.zeros(2, 1, 2, 5)
    delta[0, 0, 0, :3] = -1.5  # 3 of 10
    log.add(torch.tensor([0.3, 0.9]), delta)
    assert log.values()["delta/clamped"] == pytest.approx(3 / 20)
    log.add(torch.tensor([0.3, 0.3]), torch.full((2, 1, 2, 5), 2.0))
    assert log.values()["delta/clamped"] == pytest.approx(23 / 40)


def test_every_s_of_the_draws_has_a_bucket():
    log = DifferenceLog(10.0, use_tar=True)
    edges = torch.tensor([0.02, 0.2, 0.4, 0.6, 0.8, 0.98])
    log.add(edges, constant(*[0.1] * 6))
    assert log.count.tolist() == [2, 1, 1, 1, 1]


def test_a_window_is_forgotten():
    log = DifferenceLog(10.0, use_tar=True)
    log.add(torch.tensor([0.5]), constant(3.0))
    log.clear()
    assert log.values() == {}
    log.add(torch.tensor([0.5]), constant(0.5))
    assert log.values()["delta/abs_s0.4-0.6"] == pytest.approx(0.5)
