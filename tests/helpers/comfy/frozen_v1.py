"""What the first release fixed for good (R25): its files in tests/frozen, and what would break them.

A schema is frozen as {node: {"inputs": {name: facts}, "outputs": [[name, type], ...]}}, the inputs in the order of the
node's sockets and widgets: a saved graph keeps widget values by their places.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from teasr_core.weight_files.base_file import ASSETS, LORA_NAME

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parents[2] / "frozen"
PICTURE, LORA = "teasr_frozen_v1.png", "teasr_frozen_v1.safetensors"
FACTS = ("default", "min", "max", "step", "forceInput", "control_after_generate")
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
FROM_FOLDER = {"lora_name"}  # combos whose options are the user's files

Schema = dict[str, dict[str, Any]]


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def install(server: Any) -> None:
    """The picture and the LoRA that the frozen prompts name, in the server's folders."""
    shutil.copy(FOLDER / "v1_source.png", server.folder / "input" / PICTURE)
    shutil.copy(ASSETS / LORA_NAME, server.folder / "models" / "loras" / LORA)


def weights_hash() -> str:
    """Of the built-in model and its LoRA: the frozen pictures are theirs."""
    digest = hashlib.sha256()
    for path in sorted(ASSETS.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def input_facts(group: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"required": ..., "optional": ...} as /object_info gives it, as name -> facts; a combo's options by key."""
    found = {}
    for kind in ("required", "optional"):
        for name, (type_, *more) in group.get(kind, {}).items():
            extra = more[0] if more else {}
            options = type_ if isinstance(type_, list) else extra.get("options")
            facts = {"type": "COMBO" if isinstance(type_, list) else type_, "optional": kind == "optional"}
            facts |= {fact: extra[fact] for fact in FACTS if extra.get(fact) is not None}
            if options is not None and name not in FROM_FOLDER:
                is_dynamic = all(isinstance(option, dict) for option in options)
                facts["options"] = (
                    {option["key"]: input_facts(option["inputs"]) for option in options} if is_dynamic else options
                )
            found[name] = facts
    return found


def schema(object_info: dict[str, Any]) -> Schema:
    """The public nodes' part of /object_info, or of GET_NODE_INFO_V1() by node id."""
    return {
        node: {
            "inputs": input_facts(info["input"]),
            "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
        }
        for node, info in object_info.items()
        if not info.get("dev_only")
    }


def breaks(frozen: Schema, today: Schema) -> list[str]:
    """What of `frozen` does not hold in `today`, one line each: empty where every old prompt and graph still works."""
    found = [f"{node} is gone" for node in frozen if node not in today]
    for node in frozen.keys() & today.keys():
        found += [f"{node}.{line}" for line in _input_breaks(frozen[node]["inputs"], today[node]["inputs"])]
        outputs = frozen[node]["outputs"]
        if today[node]["outputs"][: len(outputs)] != outputs:
            found.append(f"{node}: outputs were {outputs}, are {today[node]['outputs']}")
    return sorted(found)


def _input_breaks(frozen: dict[str, Any], today: dict[str, Any]) -> list[str]:
    found = [f"{name} is gone" for name in frozen if name not in today]
    new = [name for name in today if name not in frozen]
    found += [f"{name} is new and required" for name in new if not today[name]["optional"]]
    for name in frozen.keys() & today.keys():
        found += [f"{name}{line}" for line in _fact_breaks(frozen[name], today[name])]
    before, after = _widgets(frozen), _widgets(today)
    if not found and after[: len(before)] != before:
        found.append(f"widgets were {before}, are {after}: a saved graph's values change places")
    return found


def _fact_breaks(frozen: dict[str, Any], today: dict[str, Any]) -> list[str]:
    if frozen["type"] != today["type"]:
        return [f": was {frozen['type']}, is {today['type']}"]
    found = []
    if frozen["optional"] and not today["optional"]:
        found.append(" was optional, is required")
    for fact in ("default", "forceInput", "control_after_generate"):
        if frozen.get(fact) != today.get(fact):
            found.append(f": {fact} was {frozen.get(fact)}, is {today.get(fact)}")
    if "min" in today and today["min"] > frozen.get("min", -float("inf")):
        found.append(f": min was {frozen.get('min')}, is {today['min']}")
    if "max" in today and today["max"] < frozen.get("max", float("inf")):
        found.append(f": max was {frozen.get('max')}, is {today['max']}")
    if "step" in frozen and not _divides(today.get("step"), frozen["step"]):
        found.append(f": step was {frozen['step']}, is {today.get('step')}: the frontend would round old values")
    return found + _option_breaks(frozen.get("options", []), today.get("options", []))


def _option_breaks(frozen: Any, today: Any) -> list[str]:
    found = [f": option {option} is gone" for option in frozen if option not in today]
    if list(frozen)[:1] != list(today)[:1]:
        found.append(f": the first option was {list(frozen)[:1]}, is {list(today)[:1]}")  # the default of a dynamic one
    if isinstance(frozen, dict):
        for option in frozen.keys() & today.keys():
            found += [f".{option}.{line}" for line in _input_breaks(frozen[option], today[option])]
    return found


def _divides(step: float | None, old: float) -> bool:
    return step is None or abs(old / step - round(old / step)) < 1e-9


def _widgets(inputs: dict[str, Any]) -> list[str]:
    return [name for name, facts in inputs.items() if facts["type"] in WIDGETS and not facts.get("forceInput")]
