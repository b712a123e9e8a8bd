"""The types of config fields: what a value must be, and between which bounds, stands beside each field.

`config.toml` turns a violation into one sentence that names the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict

TABLE = ConfigDict(extra="forbid")  # of every dataclass that stands for a TOML table

Switch = Annotated[bool, Strict()]
Natural = Annotated[int, Strict(), Field(ge=0)]
Count = Annotated[int, Strict(), Field(ge=1)]
CropPx = Annotated[int, Strict(), Field(multiple_of=16, ge=16)]

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Weight = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)]


class Word(str):
    """A text that was given on the command line. For a list it is a list of one, so that no shell needs quotes."""


def _list_of_one(value: object) -> object:
    return (str(value),) if isinstance(value, Word) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_list_of_one)]  # paths or names


def alternatives(names: Sequence[str]) -> str:
    """E.g. "fp32, bf16 or auto"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def one_of(names: Sequence[str]) -> AfterValidator:
    """A text field that takes these names alone."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"is {value!r}: expected {alternatives(names)}")
        return value

    return AfterValidator(check)
