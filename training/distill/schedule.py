"""What changes over a distillation run: the learning rate and the loss weights (docs/decisions.md#rectification)."""

from __future__ import annotations

from ..config.distill import DistillConfig
from ..objective.objective import LossWeights
from ..run.learning_rate import rate_between


def learning_rate(config: DistillConfig, step: int) -> float:
    """At a 0-based step: from lr to lr_end over the run, times a linear warm-up."""
    optim = config.optim
    rate = rate_between(optim.lr, optim.lr_end, step, config.train.steps, optim.schedule)
    return rate * min(1.0, (step + 1) / max(1, optim.warmup_steps))


def loss_weights(config: DistillConfig, step: int) -> LossWeights:
    """At a 0-based step; rectify is 0 for `rectify_ramp` steps, then rises linearly as long."""
    loss = config.loss
    ramp = rectify_ramp(config.train.steps)
    share = 1.0 if ramp == 0 else min(1.0, max(0.0, (step - ramp) / ramp))
    return LossWeights(
        data=loss.data,
        lpips=loss.lpips,
        flow=loss.flow,
        cons=loss.cons,
        adv=loss.adv,
        rectify=loss.rectify * share,
        lattice=loss.lattice,
    )


def rectify_ramp(steps: int) -> int:
    """Steps without rectification, and then of its rise, in a run of so many steps."""
    return min(1000, steps // 10)
