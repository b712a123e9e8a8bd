"""The recipe of a LoRA file in its metadata (docs/training/lora_format.md#recipe)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import PurePath
from typing import Any

from ..errors import LoraFileError
from ..model.recipe import BLENDS, CONDITION_TIMES, GELUS, Recipe

# Field of `Recipe` -> key in the file.
KEYS = {
    "condition_time": "teasr.time",
    "gelu": "teasr.gelu",
    "velocity_scale": "teasr.velocity_scale",
    "start_time": "teasr.start_time",
    "start_encoder": "teasr.start_encoder",
    "start_encoder_sha256": "teasr.start_encoder_sha256",
    "fidelity_times": "teasr.fidelity_times",
    "tile_px": "teasr.tile_px",
    "overlap_px": "teasr.overlap_px",
    "blend": "teasr.blend",
}
CHOICES = {"condition_time": CONDITION_TIMES, "gelu": GELUS, "blend": BLENDS}


def recipe_metadata(recipe: Recipe) -> dict[str, str]:
    """What differs from TEASR's own way, as string metadata; nothing for a LoRA of TEASR's own."""
    plain = Recipe()
    changed = {item.name: getattr(recipe, item.name) for item in fields(Recipe)}
    return {
        KEYS[name]: value if isinstance(value, str) else json.dumps(value)
        for name, value in changed.items()
        if value != getattr(plain, name)
    }


def read_recipe(name: str, metadata: Mapping[str, str]) -> Recipe:
    """The recipe in a file's metadata; `name` stands in the errors. LoraFileError for a value that cannot be."""
    values: dict[str, Any] = {}
    for item in fields(Recipe):
        text = metadata.get(KEYS[item.name])
        if text is not None:
            values[item.name] = _parsed(name, item.name, text)
    recipe = Recipe(**values)
    if recipe.uses_start_latent != (recipe.start_time < 1) or recipe.uses_start_latent != bool(
        recipe.start_encoder_sha256
    ):
        raise LoraFileError(
            f"{name}: teasr.start_time is {recipe.start_time:g}, teasr.start_encoder '{recipe.start_encoder}', its "
            f"hash '{recipe.start_encoder_sha256}': expected a start below 1 together with an encoder and its hash, or "
            "none of them; get the file again"
        )
    if bool(recipe.tile_px) != bool(recipe.overlap_px) or 2 * recipe.overlap_px > recipe.tile_px:
        raise LoraFileError(
            f"{name}: teasr.tile_px is {recipe.tile_px} and teasr.overlap_px {recipe.overlap_px}: expected both, and "
            "an overlap of at most half a tile; get the file again"
        )
    return recipe


def _parsed(name: str, field: str, text: str) -> Any:
    if field in CHOICES:
        if text not in CHOICES[field]:
            expected = " or ".join(f"'{choice}'" for choice in CHOICES[field])
            raise LoraFileError(f"{name}: {KEYS[field]} is '{text}', this version reads {expected}")
        return text
    if field in ("start_encoder", "start_encoder_sha256"):
        # A name with folders in it could reach any file of the machine.
        if not text or PurePath(text.replace("\\", "/")).name != text:
            raise LoraFileError(f"{name}: {KEYS[field]} is '{text}', expected a plain name: get the file again")
        return text
    value: Any = None
    with suppress(ValueError):
        value = json.loads(text)
    expected = {
        "velocity_scale": (_is_number(value) and value > 0, "a number above 0"),
        "start_time": (_is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
        "fidelity_times": (_are_times(value), "a list of two or more numbers from 0 to 1"),
        "tile_px": (_is_size(value), "a multiple of 32"),
        "overlap_px": (_is_size(value), "a multiple of 32"),
    }
    fits, wanted = expected[field]
    if not fits:
        raise LoraFileError(f"{name}: {KEYS[field]} is '{text[:80]}', expected {wanted}: get the file again")
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_times(value: object) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(_is_number(time) and 0 <= time <= 1 for time in value)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0 and value % 32 == 0
