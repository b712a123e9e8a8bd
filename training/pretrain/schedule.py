"""The learning rate of a pretraining step."""

from __future__ import annotations

from ..config.pretrain import PretrainConfig
from ..run.learning_rate import rate_between


def learning_rate(config: PretrainConfig, step: int) -> float:
    """From lr_start to lr_end of a stage, times a linear warm-up wherever training turns to another part."""
    index, stage, done = config.stage_at(step)
    rate = rate_between(stage.lr_start, stage.lr_end, done, stage.steps, config.optim.schedule)
    while index > 0 and config.stages[index - 1].trains == stage.trains:
        index -= 1
        done += config.stages[index].steps
    return rate * min(1.0, (done + 1) / max(1, config.optim.warmup_steps))
