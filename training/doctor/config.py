"""Findings about one config: does it parse, is what it names there, and can its run begin?

The base of a distillation is `doctor_base`'s matter, the run's folder `doctor_run`'s.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teasr_core.errors import TeasrError

from .base import base_findings
from .finding import MISSING, NOTE, OK, Finding
from .run_folder import output_findings

_DISTILL_TABLES = {"base", "adapter", "ablation", "train", "memory"}  # that pretraining does not have
_FEATURES = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}  # LPIPS network -> torchvision's name


@dataclass
class Asked:
    """What a config needs beyond base use, and what was found of it."""

    modules: set[str] = field(default_factory=set)
    needs_builtin: bool = False
    findings: list[Finding] = field(default_factory=list)


def read(path: Path, overrides: Sequence[str] = ()) -> Asked:
    """Examine a pretraining config, or a distillation's: that one has a table of _DISTILL_TABLES."""
    asked = Asked()
    try:
        config, is_distill = load(path, overrides)
    except TeasrError as error:
        asked.findings.append(Finding(MISSING, "config", str(error), "correct the config"))
        return asked
    except ImportError as error:
        asked.findings.append(Finding(MISSING, "config", f"cannot be read here ({error})", "see the packages above"))
        return asked
    command = "distill" if is_distill else "pretrain"
    crops = [config.train.crop_px] if is_distill else [stage.crop_px for stage in config.stages]
    asked.findings.append(Finding(OK, "config", f"{path}: {command}"))
    if is_distill:
        asked.modules |= {"accelerate", "peft"}
        asked.needs_builtin = config.base.path == "builtin"
        asked.findings += base_findings(config)
    if config.loss.perceptual != "none":
        asked.modules |= {"lpips", "torchvision"}
        asked.findings.append(_perceptual(config.loss.perceptual, config.loss.perceptual_backbone))
    if getattr(config.optim, "kind", "") == "adamw-8bit":
        asked.modules.add("bitsandbytes")
    asked.findings += data_findings(config.data, crops)
    asked.findings += [_preview(name) for name in config.run.preview_images]
    asked.findings += output_findings(Path(config.run.output_dir), config, is_distill)
    asked.findings.append(_trainer(command))
    return asked


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Any, bool]:
    """(config, is it a distillation's). ConfigError as the loaders of the two."""
    from ..config.toml import read_toml

    if _DISTILL_TABLES & read_toml(path, overrides).keys():
        from ..config.distill import load_distill_config

        return load_distill_config(path, overrides), True
    from ..config.pretrain import load_config

    return load_config(path, overrides), False


def data_findings(data: Any, crop_sizes: Sequence[int]) -> list[Finding]:
    """Images of every source, and what is passed over."""
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


def _preview(name: str) -> Finding:
    if Path(name).is_file():
        return Finding(OK, "preview", name)
    return Finding(MISSING, "preview", f"no file at {name}", "correct run.preview_images")


def _trainer(command: str) -> Finding:
    """Whatever else its modules import is met here rather than when the run begins."""
    try:
        importlib.import_module(f"training.{command}.trainer")
    except Exception as error:  # a broken installation raises anything
        cause = " ".join(str(error).split()) or type(error).__name__
        return Finding(MISSING, command, f"the trainer does not import ({cause})", "pip install -e '.[training]'")
    return Finding(OK, command, "the trainer imports")
