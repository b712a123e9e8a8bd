"""May this run go on from that checkpoint? What must be the same, and what may change."""

from __future__ import annotations

import json
from typing import Any

from teasr_core.errors import ConfigError

from ..config.distill import DistillConfig
from ..config.toml import to_mapping
from ..run.resume import check_same
from .schedule import rectify_ramp


def check_resumable(
    state: dict[str, Any], config: DistillConfig, micro_steps: int, description: dict[str, Any]
) -> None:
    """ConfigError naming the first thing that would make the resumed run another run: `check_config`, then the model.

    The base's files may move, its weights may not change; the memory plan may place it elsewhere, not in another
    precision.
    """
    check_config(state, config, micro_steps)
    _check_precision(state.get("precision", {}), description.get("precision", {}))
    for key, value in description.items():
        if key != "precision" and json.loads(json.dumps(value)) != state.get(key):
            raise ConfigError(f"base.path names another model than the checkpoint's ({key} differs): restore it")


def check_config(state: dict[str, Any], config: DistillConfig, micro_steps: int) -> None:
    """What can be said without the model: ConfigError naming the first field that differs (resume.py).

    `train.steps` may change only where nothing to come depends on it: constant learning rate, and the ramp of rectify
    as long as before or over. Accumulation and processes may be traded for one another.
    """
    saved, wanted = dict(state["config"]), to_mapping(config)
    if "adapter" not in saved:
        raise ConfigError(
            f"run.output_dir '{config.run.output_dir}' holds a checkpoint that distill did not write, its config has "
            f"{', '.join(saved)}: give the distillation a run.output_dir of its own"
        )
    ramps = [rectify_ramp(steps) for steps in (saved["train"]["steps"], config.train.steps)]
    same_ramp, ramp_over = ramps[0] == ramps[1], state["step"] >= 2 * max(ramps)
    if config.optim.lr == config.optim.lr_end and (same_ramp or ramp_over):
        saved["train"] = saved["train"] | {"steps": config.train.steps}
    if micro_steps == state["micro_steps"]:
        saved["train"] = saved["train"] | {"accumulation": config.train.accumulation}
    saved["base"] = wanted["base"] | {"dtype": saved["base"]["dtype"]}
    saved["memory"] = wanted["memory"]
    check_same(saved, wanted, DistillConfig(), wanted)
    if micro_steps != state["micro_steps"]:
        raise ConfigError(
            f"accumulation x processes is {micro_steps}, the checkpoint has {state['micro_steps']}: "
            "restore their product or give the run a new run.output_dir"
        )


def _check_precision(saved: dict[str, str], wanted: dict[str, str]) -> None:
    for group, precision in wanted.items():
        if saved.get(group, precision) != precision:
            raise ConfigError(
                f"memory.{group} is planned in {precision}, the checkpoint's run had it in {saved[group]}: set "
                f"memory.{group}, for example to '{saved[group]} resident', or give the run a new run.output_dir"
            )
