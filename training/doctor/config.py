"""Findings about one training config: whether it parses, whether the files it names exist, whether its run can begin.

`base` examines the base of a distillation and `run_folder` the folder of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teasr_core.errors import TeasrError

from .base import base_findings
from .finding import MISSING, NOTE, OK, Finding
from .run_folder import output_findings

_DISTILL_TABLES = {"base", "adapter", "ablation", "train", "memory"}  # that pretraining does not have
_OPTIMISER_MODULES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt"}
_FEATURES = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}  # LPIPS network -> torchvision's name


@dataclass
class ConfigReport:
    """The findings about a config, and what its run needs: Python modules and perhaps the built-in model."""

    modules: set[str] = field(default_factory=set)
    uses_builtin: bool = False
    findings: list[Finding] = field(default_factory=list)


def examine(path: Path, overrides: Sequence[str] = ()) -> ConfigReport:
    """Examine a config of pretraining or of distillation; only the latter has one of the tables _DISTILL_TABLES."""
    report = ConfigReport()
    try:
        config, is_distill = load(path, overrides)
    except TeasrError as error:
        report.findings.append(Finding(MISSING, "config", str(error), "correct the config"))
        return report
    except ImportError as error:
        report.findings.append(Finding(MISSING, "config", f"cannot be read here ({error})", "see the packages above"))
        return report
    command = "distill" if is_distill else "pretrain"
    crops = [config.train.crop_px] if is_distill else [stage.crop_px for stage in config.stages]
    report.findings.append(Finding(OK, "config", f"{path}: {command}"))
    if is_distill:
        report.modules |= {"accelerate", "peft"}
        report.uses_builtin = config.base.path == "builtin"
        report.findings += base_findings(config)
    if config.loss.perceptual != "none":
        report.modules |= {"lpips", "torchvision"}
        report.findings.append(_perceptual(config.loss.perceptual, config.loss.perceptual_backbone))
    kind = config.optim.kind
    report.modules |= {module for name, module in _OPTIMISER_MODULES.items() if name == kind}
    report.modules |= {name for name in config.run.trackers if name != "tensorboard"}
    report.findings.append(_precision(config.run))
    report.findings += data_findings(config.data, crops)
    report.findings += [_preview(name) for name in config.run.preview_images]
    report.findings += output_findings(Path(config.run.output_dir), config, is_distill)
    report.findings.append(_trainer_finding(command, is_distill))
    return report


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Any, bool]:
    """The config, and whether it is a distillation's. Raises ConfigError where it cannot be loaded."""
    from ..config.toml import read_toml

    if _DISTILL_TABLES & read_toml(path, overrides).keys():
        from ..config.distill import load_distill_config

        return load_distill_config(path, overrides), True
    from ..config.pretrain import load_config

    return load_config(path, overrides), False


def data_findings(data: Any, crop_sizes: Sequence[int]) -> list[Finding]:
    """Count the images of every data source and name the files that are passed over."""
    try:
        from ..data.sources import open_sources

        sources = [source for crop_px in sorted(set(crop_sizes)) for source in open_sources(data, crop_px)]
    except ImportError as error:
        return [Finding(MISSING, "data", f"cannot be looked at ({error})", "see the packages above")]
    except TeasrError as error:
        return [Finding(MISSING, "data", str(error), "name folders with photographs in data.folders")]
    lines: dict[str, str] = {}  # in order, each once
    for source in sources:
        head, *skipped = source.lines()
        lines |= {head: OK} | dict.fromkeys(skipped, NOTE)
    return [Finding(level, "data", line.removeprefix("data ")) for line, level in lines.items()]


def _perceptual(name: str, path: str) -> Finding:
    features = _FEATURES.get(name.removeprefix("lpips-"), "")
    fix = (
        f"save torchvision.models.{features}(weights='DEFAULT').features.state_dict() with "
        "safetensors.torch.save_file, and name the file in loss.perceptual_backbone"
    )
    if not Path(path).is_file():
        return Finding(MISSING, "perceptual", f"{name}: no file at '{path}'", fix)
    try:
        from ..objective.lpips import load_perceptual

        load_perceptual(name, path)
    except TeasrError as error:
        return Finding(MISSING, "perceptual", str(error), fix)
    except ImportError:
        return Finding(NOTE, "perceptual", f"{name}: {path} is there, not read without its packages")
    return Finding(OK, "perceptual", f"{name}: {path} reads")


def _precision(run: Any) -> Finding:
    """Say what `run.autocast` means on the device that the run would choose."""
    try:
        import torch

        from teasr_core.device import choose_device

        from ..run.precision import choose_autocast

        _, line = choose_autocast(run.autocast, torch.device("cpu") if run.device == "cpu" else choose_device("auto"))
    except ImportError:
        return Finding(NOTE, "precision", "cannot be measured without torch", "see the packages above")
    return Finding(OK, "precision", line)


def _preview(name: str) -> Finding:
    if Path(name).is_file():
        return Finding(OK, "preview", name)
    return Finding(MISSING, "preview", f"no file at {name}", "correct run.preview_images")


def _trainer_finding(command: str, is_distill: bool) -> Finding:
    """Import the trainer, so that any other package it lacks is named here and not when the run begins."""
    try:
        _trainer(is_distill)
    except Exception as error:  # a broken installation raises anything
        cause = " ".join(str(error).split()) or type(error).__name__
        return Finding(MISSING, command, f"the trainer does not import ({cause})", 'pip install -e ".[training]"')
    return Finding(OK, command, "the trainer imports")


def _trainer(is_distill: bool) -> type:
    if is_distill:
        from ..distill.trainer import Distiller

        return Distiller
    from ..pretrain.trainer import Pretrainer

    return Pretrainer
