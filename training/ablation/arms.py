"""The three arms of Table 3 (baseline, +DTC, +DTC+TAR): trained, resumed, or read from their files.

Each arm distils a base that was pretrained with its own `dtc`, same seed and steps: a frozen base trained with DTC
would make "+DTC" win by construction (docs/decisions.md#ablation-bases). The two arms with DTC share theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import with_config

from teasr_core.errors import TeasrError

from ..config.distill import DistillConfig, load_distill_config
from ..config.fields import TABLE
from ..config.pretrain import PretrainConfig, load_config
from ..config.toml import from_mapping, read_toml
from ..distill.trainer import Distiller
from ..export.base import export_base
from ..export.lora import export_lora
from ..pretrain.trainer import Pretrainer
from .reuse import check_base_file, check_lora_file


@with_config(TABLE)
@dataclass(frozen=True)
class AblationSettings:
    """The TOML file of an ablation. pretrain, distill: the arms' configs, relative to this file."""

    pretrain: str = "base.toml"
    distill: str = "distill.toml"
    output_dir: str = "runs/ablation"


@dataclass(frozen=True)
class ArmSettings:
    """title: in the table. name: of the files, and of the model in the evaluation."""

    title: str
    name: str
    dtc: bool
    tar: bool


ARMS = (
    ArmSettings("baseline", "baseline", dtc=False, tar=False),
    ArmSettings("+DTC", "dtc", dtc=True, tar=False),
    ArmSettings("+DTC+TAR", "dtc-tar", dtc=True, tar=True),
)


@dataclass(frozen=True)
class TrainedArm:
    settings: ArmSettings
    base: Path
    lora: Path


def train_arms(path: Path, note: Callable[[str], None] = print) -> list[TrainedArm]:
    """Train what is missing of the ablation at `path`; an interrupted one is resumed.

    Raises the errors of the trainers with the arm's title or the base's name before them, and ConfigError for an
    existing file that another config made.
    """
    config = from_mapping(AblationSettings, read_toml(path), where="")
    pretrain = load_config(path.parent / config.pretrain)
    distill = load_distill_config(path.parent / config.distill)
    folder = Path(config.output_dir)
    bases = {}
    for dtc in (False, True):
        with _errors_name(base_name(dtc)):
            bases[dtc] = train_base(pretrain, dtc, folder, note)
    arms = []
    for arm in ARMS:
        with _errors_name(arm.title):
            arms.append(train_arm(distill, arm, bases[arm.dtc], folder, note))
    return arms


@contextmanager
def _errors_name(what: str) -> Iterator[None]:
    try:
        yield
    except TeasrError as error:
        raise type(error)(f"ablation, {what}: {error}") from error


def base_name(dtc: bool) -> str:
    return f"base_{'with' if dtc else 'without'}_dtc"


def train_base(config: PretrainConfig, dtc: bool, folder: Path, note: Callable[[str], None]) -> Path:
    """Train and export the base of the arms with this `dtc`, unless its file exists. Returns the file."""
    name = base_name(dtc)
    output = folder / f"{name}.safetensors"
    run = replace(config.run, output_dir=str(folder / name))
    config = replace(config, run=run, model=replace(config.model, use_dtc=dtc))
    if output.exists():
        check_base_file(output, config)
        return output
    note(f"pretraining {name}")
    trainer = Pretrainer(config)
    trainer.train()
    if trainer.step < config.total_steps:
        raise KeyboardInterrupt  # the trainer has saved; the next call goes on
    export_base(folder / name, output, weights="raw")
    return output


def train_arm(
    config: DistillConfig, arm: ArmSettings, base: Path, folder: Path, note: Callable[[str], None]
) -> TrainedArm:
    """Train and export the LoRA of one arm, unless its file exists."""
    output = folder / f"{arm.name}.safetensors"
    config = replace(
        config,
        run=replace(config.run, output_dir=str(folder / arm.name)),
        base=replace(config.base, path=str(base)),
        ablation=replace(config.ablation, dtc=arm.dtc, tar=arm.tar),
    )
    if output.exists():
        check_lora_file(output, config)
        return TrainedArm(arm, base, output)
    note(f"distilling {arm.title}")
    trainer = Distiller(config)
    trainer.train()
    if trainer.step < config.train.steps:
        raise KeyboardInterrupt
    export_lora(folder / arm.name, output, weights="raw")
    return TrainedArm(arm, base, output)
