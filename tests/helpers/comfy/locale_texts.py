"""What the locale files must hold, read from the nodes' own schemas.

ComfyUI's frontend looks texts up by node id and input id, a nested input `size.scale` as `size_scale`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def all_inputs(info: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(key, label, options) of every input of a node's `GET_NODE_INFO_V1`, nested ones too, in the node's order."""
    for part in ("required", "optional"):
        for name, spec in info["input"].get(part, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield name, name, options
            for choice in options.get("options", []):
                if isinstance(choice, dict):  # a DynamicCombo's
                    for key, _, nested in all_inputs({"input": choice["inputs"]}):
                        yield f"{name}_{key}", key, nested


def english_texts(info: dict[str, Any]) -> dict[str, Any]:
    """The entry of locales/en/nodeDefs.json that says nothing but what the schema says.

    One key may serve inputs of several choices (`size.px`): where their tooltips differ it has none, and the frontend
    takes each from the schema.
    """
    inputs: dict[str, dict[str, str]] = {}
    tooltips: dict[str, set[str]] = {}
    for key, label, options in all_inputs(info):
        inputs[key] = {"name": label}
        tooltips.setdefault(key, set()).add(options.get("tooltip") or "")
    for key, texts in tooltips.items():
        if len(texts) == 1 and texts != {""}:
            inputs[key]["tooltip"] = next(iter(texts))
    outputs = {}
    for index, name in enumerate(info["output_name"]):
        outputs[str(index)] = {"name": name}
        tooltip = (info.get("output_tooltips") or [None] * len(info["output_name"]))[index]
        if tooltip:
            outputs[str(index)]["tooltip"] = tooltip
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def texts_of(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(where, text) of every text of one node's entry."""
    for key, value in node.items():
        if isinstance(value, str):
            yield key, value
        else:
            for where, text in texts_of(value):
                yield f"{key}.{where}", text
