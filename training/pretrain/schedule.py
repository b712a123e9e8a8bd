"""The learning rate of a pretraining step."""

from __future__ import annotations

from ..config.pretrain import PretrainConfig


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear within a stage from lr_start to lr_end, times a linear warm-up wherever training turns to another part."""
    index, stage, done = config.stage_at(step)
    rate = stage.lr_start + (stage.lr_end - stage.lr_start) * done / stage.steps
    while index > 0 and config.stages[index - 1].trains == stage.trains:
        index -= 1
        done += config.stages[index].steps
    return rate * min(1.0, (done + 1) / max(1, config.optim.warmup_steps))
