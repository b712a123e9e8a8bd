"""TOML -> frozen dataclasses, strictly, and back to plain values."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from teasr_core.errors import ConfigError

from .fields import Word
from .sentences import sentence

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

_PATHS = "in double quotes a backslash begins an escape, so write a path in single quotes, or with /"
_IS_ESCAPE = re.compile(r"Unescaped|[Hh]ex|Escaped|Unicode")  # tomllib's words for a backslash that is no escape


def read_toml(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML file as plain values, with `section.key=value` overrides applied.

    Overrides have TOML's syntax; a bare word is a text, and for a list of texts a list of one. Without a
    path, it is the overrides alone. It raises ConfigError for a missing file, bad TOML or an override of nothing.
    """
    try:
        values = {} if path is None else tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}: give a TOML file, e.g. training/configs/pretrain/smoke.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        hint = f"; {_PATHS}" if _IS_ESCAPE.search(str(error)) else ""
        raise ConfigError(f"{path} is not valid TOML: {error}{hint}") from None
    for override in overrides:
        _apply_override(values, override)
    _refuse_control_characters(values, "")
    return values


def to_mapping(config: Any) -> dict[str, Any]:
    """The resolved config as plain values, for JSON: what a checkpoint and an exported model remember."""
    return dataclasses.asdict(config)


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """The dataclass `cls` of `config` from plain values, strictly.

    It raises ConfigError in one sentence that names the field, with `where` before it.
    """
    try:
        return _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(sentence(error, cls, where)) from None


@functools.cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(cls)


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override '{override}' has no '=': write section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if '"' in text and "\\" in text:
            raise ConfigError(f"override '{override}' is not valid TOML ({error}): {_PATHS}") from None
        value = text
    if isinstance(value, str):
        value = Word(value)
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


def _refuse_control_characters(value: Any, where: str) -> None:
    r"""ConfigError for a text such as "C:\temp" in double quotes, which TOML reads with a tab in it."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_control_characters(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_control_characters(item, f"{where}[{index}]")
    elif isinstance(value, str) and any(ord(character) < 32 for character in value):
        raise ConfigError(f"{where} is {str(value)!a}, with a control character such as a tab: {_PATHS}")
