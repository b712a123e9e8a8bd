"""Training configuration: TOML -> frozen dataclasses. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from teasr_core.architecture import PREDICTIONS
from teasr_core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


@dataclass(frozen=True)
class RunConfig:
    output_dir: str = "runs/pretrain"
    seed: int = 0
    threads: int = 0  # CPU threads of the training process, 0 = torch's default
    workers: int = 1  # data processes; the training process prepares no data unless this is 0
    autocast: bool = True  # bf16 autocast
    compile: bool = False  # torch.compile of the transformer blocks
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    preview_every: int = 1000
    preview_images: tuple[str, ...] = ()  # held-out photographs; empty = no previews


@dataclass(frozen=True)
class DataConfig:
    folders: tuple[str, ...] = ()  # photographs, searched without recursion
    presets: Mapping[str, float] = field(default_factory=lambda: {"light": 1.0})  # degradation preset -> weight
    scales: Mapping[str, float] = field(default_factory=lambda: {"4": 0.7, "2": 0.2, "1": 0.1})  # factor -> weight
    min_zoom: float = 0.6  # scale jitter: the photograph is shrunk by a factor in [min_zoom, 1] first
    cache_mb: int = 1500  # decoded photographs kept by each data process


@dataclass(frozen=True)
class ModelConfig:
    num_layers: int = 6
    num_heads: int = 4
    head_dim: int = 64
    rope_axes: tuple[int, int, int] = (8, 28, 28)
    text_width: int = 64
    prompt_tokens: int = 4
    prediction: str = "lq_residual"
    use_dtc: bool = True
    local_attention_init: float = 4.0  # query and key bias of local attention; 0 = none (training/initialise.py)
    gate_init: float = 1.0  # bias of the residual gates; 0 = adaLN-Zero
    input_gain: float = 2.0  # of img_in: how much a token starts out as itself beside what attention brings it
    time_scale_init: float = 0.9  # attention inputs start scaled by 1 - this * t


@dataclass(frozen=True)
class OptimConfig:
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-12  # squared pixel errors are small; 1e-8 may hold back the high frequencies
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 100
    ema_decay: float = 0.999


@dataclass(frozen=True)
class LossConfig:
    loss_space: str = "pixel"  # pixel | latent (SPEC 9)
    perceptual: str = "none"  # none | lpips-squeeze
    perceptual_backbone: str = ""  # path of squeezenet1_1_features.safetensors


@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run: which share of each batch plays which role, at which size and rate."""

    steps: int = 1000
    crop_px: int = 64
    batch_size: int = 32
    data_share: float = 1.0  # rows at (1, 0) compared with the photograph (Eq. 12)
    flow_share: float = 0.0  # rows at t_tar = t (Eq. 5)
    cons_share: float = 0.0  # rows compared with their own two half steps (Eq. 1-4)
    perceptual_weight: float = 0.0  # of LPIPS on the data rows (Eq. 13)
    lr_start: float = 5e-4
    lr_end: float = 5e-4


@dataclass(frozen=True)
class PretrainConfig:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, StageConfig, int]:
        """(index, stage, steps done within it) for a 0-based global step."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, stage, step
            step -= stage.steps
        raise ConfigError(f"step {step} lies beyond the last stage: nothing is left to train")


def load_config(path: Path, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a TOML file and apply `section.key=value` overrides (values in TOML syntax, bare words are strings).

    Raises ConfigError for a missing file, bad TOML, an unknown key, a value of the wrong type or out of range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}: give a TOML file, e.g. training/configs/smoke.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply_override(values, override)
    config = from_mapping(PretrainConfig, values, where="")
    _check(config)
    return config


def to_mapping(config: Any) -> dict[str, Any]:
    """The resolved config as plain values, for JSON: what a checkpoint and an exported model remember."""
    return dataclasses.asdict(config)


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass strictly; nested dataclasses, tuples and mappings follow the annotations."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown config key '{where}{key}': {hint}")
        arguments[key] = _convert(hints[key], value, f"{where}{key}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{where}' is {value!r}: expected a table [{where}]")
        return from_mapping(hint, value, f"{where}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"'{where}' is {value!r}: expected a list")
        item_hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(item_hints) != len(value):
            raise ConfigError(f"'{where}' has {len(value)} values: expected {len(item_hints)}")
        return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(item_hints, value, strict=True)))
    if origin is not None and origin is not types.UnionType:
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{where}' is {value!r}: expected a table")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    assert isinstance(hint, type), f"{where}: no rule for {hint}"
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"'{where}' is {value!r}: expected {hint.__name__}")
    return value


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override '{override}' has no '=': write section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = path.strip().split(".")
    node: Any = values
    for name in sections:
        if isinstance(node, dict):
            node = node.setdefault(name, {})
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise ConfigError(f"override '{override}': there is no '{name}' to set")
    if not isinstance(node, dict):
        raise ConfigError(f"override '{override}': '{'.'.join(sections)}' is not a table")
    node[key] = value


def _check(config: PretrainConfig) -> None:
    from .degradation import PRESETS

    for preset in config.data.presets:
        if preset not in PRESETS:
            raise ConfigError(f"data.presets names '{preset}': known presets are {', '.join(PRESETS)}")
    for scale in config.data.scales:
        if not scale.replace(".", "", 1).isdigit() or float(scale) < 1:
            raise ConfigError(f"data.scales names '{scale}': expected factors of at least 1, such as 4")
    for name, weights in (("presets", config.data.presets), ("scales", config.data.scales)):
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ConfigError(f"data.{name} is {dict(weights)}: expected weights of at least 0, not all of them 0")
    if not 0 < config.data.min_zoom <= 1:
        raise ConfigError(f"data.min_zoom is {config.data.min_zoom:g}: expected more than 0 and at most 1")
    for name in ("log_every", "checkpoint_every", "keep_checkpoints", "preview_every"):
        if getattr(config.run, name) < 1:
            raise ConfigError(f"run.{name} is {getattr(config.run, name)}: expected at least 1")
    if config.model.prediction not in PREDICTIONS:
        raise ConfigError(f"model.prediction is '{config.model.prediction}': expected {' or '.join(PREDICTIONS)}")
    for index, stage in enumerate(config.stages):
        shares = stage.data_share + stage.flow_share + stage.cons_share
        if abs(shares - 1) > 1e-6:
            raise ConfigError(f"stages[{index}]: data, flow and cons shares add up to {shares:g}, expected 1")
        if stage.crop_px < 16 or stage.crop_px % 16:
            raise ConfigError(f"stages[{index}].crop_px is {stage.crop_px}: expected a multiple of 16")
        if stage.steps < 1 or stage.batch_size < 1:
            raise ConfigError(f"stages[{index}]: steps and batch_size must be at least 1")
        if stage.perceptual_weight > 0 and config.loss.perceptual == "none":
            raise ConfigError(f"stages[{index}].perceptual_weight is set but loss.perceptual is 'none': set it")
    if config.loss.perceptual not in ("none", "lpips-squeeze"):
        raise ConfigError(f"loss.perceptual is '{config.loss.perceptual}': expected none or lpips-squeeze")
    if config.loss.loss_space not in ("pixel", "latent"):
        raise ConfigError(f"loss.loss_space is '{config.loss.loss_space}': expected pixel or latent")
