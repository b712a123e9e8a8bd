"""Whether a file of an ablation may be used again. A file of another config would silently reproduce an old table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teasr_core.errors import ConfigError
from teasr_core.weight_files.base_file import read_base
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
    """Raise ConfigError unless `config`, trained to its end in `config.run.output_dir`, gives the file at `path`.

    The newest checkpoint of the run decides or, where the run was deleted, the metadata of the file.
    """
    with _errors_explain(path):
        expected = to_mapping(config)
        checkpoints = list_checkpoints(Path(config.run.output_dir))
        state = read_state(checkpoints[-1]) if checkpoints else _state_of_base(path, expected)
        check_resumable(state["config"], expected, state["step"])
        _check_steps("the stages' steps add up to", config.total_steps, state["step"])


def check_lora_file(path: Path, config: DistillConfig) -> None:
    """Raise ConfigError unless `config`, trained to its end in `config.run.output_dir`, gives the LoRA at `path`.

    The newest checkpoint of the run decides or, where the run was deleted, the config in the file, without folders.
    """
    lora = read_lora(path)
    with _errors_explain(path):
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


def _state_of_base(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint from the metadata of an exported base; missing fields are taken from `expected`."""
    base = read_base(path)
    made, model = base.training, expected["model"] | {"use_dtc": base.use_dtc, "prediction": base.prediction}
    model |= {key: value for key, value in asdict(base.architecture).items() if key in model}
    data = expected["data"] | {key: made[key] for key in ("presets", "scales")}
    loss = expected["loss"] | {"perceptual": made["perceptual"]}
    config = plain(expected | {"model": model, "data": data, "loss": loss, "stages": made["stages"]})
    return {"config": config, "step": made["steps"]}


def _check_steps(what: str, expected: int, found: int) -> None:
    if expected != found:
        raise ConfigError(
            f"{what} {expected}, the run has taken {found}: restore the old value or use a new run.output_dir"
        )


@contextmanager
def _errors_explain(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        text = f"{path.name} was made with another config: {error}, here the output_dir of the ablation's own .toml"
        raise ConfigError(text) from error
