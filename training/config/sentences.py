"""One sentence for a config that pydantic refuses: the field, what was found, what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "dataclass_type": "a table",
}
_UNKNOWN_KEY = "unexpected_keyword_argument"
_BOUNDS = {"multiple_of": "a multiple of", "ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def sentence(error: ValidationError, cls: type, where: str) -> str:
    """The first fault; an unknown key goes before the others. `where` is put before the field's dotted name."""
    details = error.errors()
    first = next((one for one in details if one["type"] == _UNKNOWN_KEY), details[0])
    name = _dotted(first["loc"], where)
    if first["type"] == _UNKNOWN_KEY:
        return f"unknown config key '{name}': {_hint(cls, first['loc'])}"
    if first["type"] == "value_error":
        return f"{name} {first.get('ctx', {})['error']}"
    if first["type"] in ("missing", "too_long"):  # a list of a fixed length
        kind, loc = _type_at(cls, first["loc"][:-1]), first["loc"]
        found = first["input"]
        if first["type"] == "too_long":
            kind, loc = _type_at(cls, first["loc"]), (*first["loc"], 0)
        return f"'{_dotted(loc[:-1], where)}' has {len(found)} values: expected {len(typing.get_args(kind))}"
    if first["type"] in _KINDS:
        return f"'{name}' is {_shown(first['input'])}: expected {_KINDS[first['type']]}"
    return f"{name} is {_shown(first['input'])}: expected {_expected(cls, first)}"


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _expected(cls: type, details: ErrorDetails) -> str:
    """Every bound of the field, not the violated one alone."""
    bounds: dict[str, float] = {}
    for part in getattr(_type_at(cls, details["loc"]), "__metadata__", ()):
        for bound in getattr(part, "metadata", ()):
            bounds |= {key: getattr(bound, key) for key in _BOUNDS if hasattr(bound, key)}
    if not bounds:
        return "a finite number" if details["type"] == "finite_number" else details["msg"]
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']:g} to {bounds['le']:g}"
    text = " and ".join(f"{words} {bounds[key]:g}" for key, words in _BOUNDS.items() if key in bounds)
    return f"{text}, and finite" if details["type"] == "finite_number" else text


def _hint(cls: type, loc: Sequence[int | str]) -> str:
    table = _type_at(cls, loc[:-1])
    known = sorted(field.name for field in dataclasses.fields(table))
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"


def _type_at(cls: type, loc: Sequence[int | str]) -> Any:
    """The annotation of the field that `loc` leads to, from the dataclass `cls`."""
    kind: Any = cls
    for part in loc:
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            kind = typing.get_type_hints(kind, include_extras=True)[str(part)]
        else:  # an item of a list, or a value of a table
            items = typing.get_args(kind)
            kind = items[part] if isinstance(part, int) and items[-1] is not Ellipsis else items[isinstance(part, str)]
    return kind


def _dotted(loc: Sequence[int | str], where: str) -> str:
    text = where
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f"{'' if not text or text.endswith('.') else '.'}{part}"
    return text
