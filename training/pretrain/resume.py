"""What may change when a pretraining run is resumed."""

from __future__ import annotations

from typing import Any

from teasr_core.errors import ConfigError

from ..config.pretrain import PretrainConfig
from ..run.resume import check_same, plain


def check_resumable(
    saved: dict[str, Any], wanted: dict[str, Any], step: int, processes: tuple[int, int] = (1, 1)
) -> None:
    """ConfigError naming the first field that would make the resumed run another run.

    Bookkeeping may change, and stages that have not begun. A stage under way may only change its end, to one that has
    not passed, and it may trade accumulation for processes.
    processes: how many the run had when `saved` was written, and how many it has now.
    """
    if "stages" not in saved:
        raise ConfigError(
            f"run.output_dir '{wanted['run']['output_dir']}' holds a checkpoint that pretrain did not write, its "
            f"config has {', '.join(saved)}: give the run a run.output_dir of its own"
        )
    check_same(saved, wanted, PretrainConfig(), ("data", "model", "optim", "loss", "run"))
    saved, wanted = plain(saved), plain(wanted)
    begin = 0
    for index, old in enumerate(saved["stages"]):
        if begin >= step:
            break
        new = wanted["stages"][index] if index < len(wanted["stages"]) else None
        finished = begin + old["steps"] <= step
        free = {"accumulation"} if finished else {"accumulation", "steps", "lr_end"}
        fixed = {k: v for k, v in old.items() if k not in free}
        if new is None or any(new[k] != v for k, v in fixed.items()):
            raise ConfigError(f"stages[{index}] has begun and was changed: restore it or use a new run.output_dir")
        if not finished and begin + new["steps"] < step:
            raise ConfigError(
                f"stages[{index}].steps is {new['steps']}, the checkpoint has done {step - begin} of them: "
                f"give it at least as many, it had {old['steps']}"
            )
        if not finished:
            before, now = (stage.get("accumulation", 1) * n for stage, n in zip((old, new), processes, strict=True))
            if before != now:
                raise ConfigError(
                    f"stages[{index}]: accumulation x processes is {now}, the checkpoint has {before}: restore their "
                    "product or give the run a new run.output_dir"
                )
        begin += old["steps"]
