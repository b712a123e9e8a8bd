"""TOML -> frozen dataclasses, strictly. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from teasr_core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML file as plain values, with `section.key=value` overrides applied (TOML syntax, bare words are strings).

    Without a path, the overrides alone. Raises ConfigError for a missing file, bad TOML or an override that names
    nothing.
    """
    try:
        values = {} if path is None else tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}: give a TOML file, e.g. training/configs/pretrain/smoke.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply_override(values, override)
    return values


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
