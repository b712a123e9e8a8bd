"""May a file of an ablation be taken up as it is? One that another config made would give the old table, unsaid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teasr_core.errors import ConfigError
from teasr_core.weight_files.builtin_file import read_base
from teasr_core.weight_files.lora_file import fingerprint, read_lora

from ..config.distill import DistillConfig
from ..config.pretrain import PretrainConfig
from ..config.toml import from_mapping, to_mapping
from ..distill.resume import check_config
from ..export.lora import EXPORT_KEY, without_folders
from ..pretrain.resume import check_resumable
from ..run.checkpoint import list_checkpoints, read_state
from ..run.resume import plain


def check_base_file(path: Path, config: PretrainConfig) -> None:
    """ConfigError unless `path` is what `config` pretrains in `config.run.output_dir`, to its end.

    By the run's newest checkpoint; where the run is gone, by what the file itself remembers.
    """
    with _explained(path):
        wanted = to_mapping(config)
        checkpoints = list_checkpoints(Path(config.run.output_dir))
        state = read_state(checkpoints[-1]) if checkpoints else _state_of_base(path, wanted)
        check_resumable(state["config"], wanted, state["step"])
        _check_steps("the stages' steps add up to", config.total_steps, state["step"])


def check_lora_file(path: Path, config: DistillConfig) -> None:
    """ConfigError unless `path` is what `config` distils of its base in `config.run.output_dir`, to its end.

    By the run's newest checkpoint; where the run is gone, by the config in the file, which has no folders.
    """
    lora = read_lora(path)
    with _explained(path):
        checkpoints = list_checkpoints(Path(config.run.output_dir))
        micro_steps = config.train.accumulation
        if checkpoints:
            check_config(read_state(checkpoints[-1]), config, micro_steps)
        else:
            bare = from_mapping(DistillConfig, without_folders(to_mapping(config)), where="")
            saved = {key: value for key, value in lora.config.items() if key != EXPORT_KEY}
            accumulation = lora.config["train"]["accumulation"]
            check_config({"config": saved, "step": lora.step, "micro_steps": accumulation}, bare, micro_steps)
        _check_steps("train.steps is", config.train.steps, lora.step)
    base = read_base(Path(config.base.path))
    if lora.base_fingerprint != fingerprint(base.tensors):
        raise ConfigError(
            f"{path.name} was distilled of another base than {base.path.name}: delete it and the folder {path.stem} "
            "beside it"
        )


def _state_of_base(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint's, in the fields that an exported base has; in the others it passes for `wanted`."""
    base = read_base(path)
    made, model = base.training, wanted["model"] | {"use_dtc": base.use_dtc, "prediction": base.prediction}
    model |= {key: value for key, value in asdict(base.architecture).items() if key in model}
    data = wanted["data"] | {key: made[key] for key in ("presets", "scales")}
    loss = wanted["loss"] | {"perceptual": made["perceptual"]}
    config = plain(wanted | {"model": model, "data": data, "loss": loss, "stages": made["stages"]})
    return {"config": config, "step": made["steps"]}


def _check_steps(what: str, wanted: int, found: int) -> None:
    if wanted != found:
        raise ConfigError(
            f"{what} {wanted}, the run has taken {found}: restore the old value or use a new run.output_dir"
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        text = f"{path.name} was made with another config: {error}, here the output_dir of the ablation's own .toml"
        raise ConfigError(text) from error
