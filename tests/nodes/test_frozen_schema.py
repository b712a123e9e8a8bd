"""R25: every input that the first release had is still accepted, at its default; the guard sees each kind of break."""

import copy
import json

import pytest

from helpers.comfy import frozen_v1


@pytest.fixture
def today(host):
    """The public nodes' schema as JSON has it, which is what a frontend sees."""
    info = {node_id: node.GET_NODE_INFO_V1() for node_id, node in host.classes.items()}
    return json.loads(json.dumps(frozen_v1.schema(info)))


def test_the_first_releases_schema_still_holds(today):
    assert frozen_v1.breaks(frozen_v1.read("v1_schema.json"), today) == []


def used(prompt):
    """node class -> the inputs that a prompt gives it, `size.scale` and the like as their last part with the option."""
    found = {}
    for entry in prompt.values():
        found.setdefault(entry["class_type"], set()).update(entry["inputs"])
    return found


def test_the_frozen_prompt_uses_every_node_with_every_input_and_option():
    schema, prompt = frozen_v1.read("v1_schema.json"), frozen_v1.read("v1_prompt.json")
    names = used(prompt)
    modes = {entry["inputs"]["size"] for entry in prompt.values() if "size" in entry["inputs"]}
    fixes = {entry["inputs"]["color_fix"] for entry in prompt.values() if "color_fix" in entry["inputs"]}
    assert modes == set(schema["TEASRUpscale"]["inputs"]["size"]["options"])
    assert fixes == set(schema["TEASRUpscale"]["inputs"]["color_fix"]["options"])
    for node, facts in schema.items():
        plain = {name for name in names[node] if "." not in name}
        assert plain == set(facts["inputs"]), node


def test_the_frozen_prompt_of_required_inputs_has_no_other():
    schema, prompt = frozen_v1.read("v1_schema.json"), frozen_v1.read("v1_required_prompt.json")
    names = used(prompt)
    for node, facts in schema.items():
        required = {name for name, fact in facts["inputs"].items() if not fact["optional"]}
        assert {name for name in names[node] if "." not in name} == required, node


def scale(node):
    return node["size"]["options"]["factor"]["scale"]


def rename(node):
    node["tile"] = node.pop("tile_px")


def move_to_front(node, name):
    rest = {key: value for key, value in node.items() if key != name}
    first = {name: node[name]}
    node.clear()
    node.update(first | rest)


BREAKS = {
    "an input renamed": (rename, "tile_px is gone"),
    "a new required input": (
        lambda node: node.update(fast={"type": "BOOLEAN", "optional": False, "default": False}),
        "fast is new and required",
    ),
    "a default changed": (lambda node: node["steps"].update(default=4), "steps: default was 1, is 4"),
    "a minimum raised": (lambda node: node["steps"].update(min=2), "steps: min was 1, is 2"),
    "a maximum lowered": (lambda node: node["steps"].update(max=8), "steps: max was 30, is 8"),
    "a type changed": (lambda node: node["seed"].update(type="STRING"), "seed: was INT, is STRING"),
    "an option gone": (lambda node: node["color_fix"]["options"].remove("lab"), "color_fix: option lab is gone"),
    "an optional input made required": (lambda node: node["mask"].update(optional=False), "mask was optional"),
    "a coarser step": (lambda node: node["strength"].update(step=0.25), "strength: step was 0.05"),
    "a widget turned into a wire": (lambda node: node["seed"].update(forceInput=True), "seed: forceInput was"),
    "a widget's own second widget gone": (
        lambda node: node["seed"].pop("control_after_generate"),
        "seed: control_after_generate was True",
    ),
    "a widget moved": (lambda node: move_to_front(node, "tolerance"), "a saved graph's values change places"),
    "a size mode gone": (lambda node: node["size"]["options"].pop("exact"), "size: option exact is gone"),
    "a size mode's default changed": (lambda node: scale(node).update(default=2.0), "size.factor.scale: default was"),
    "a size mode's input renamed": (
        lambda node: node["size"]["options"]["exact"].update(w=node["size"]["options"]["exact"].pop("width")),
        "size.exact.width is gone",
    ),
    "another size mode first": (
        lambda node: move_to_front(node["size"]["options"], "exact"),
        "size: the first option was ['factor']",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_guard_sees(today, name):
    plant, expected = BREAKS[name]
    changed = copy.deepcopy(today)
    plant(changed["TEASRUpscale"]["inputs"])
    found = frozen_v1.breaks(today, changed)
    assert any(line.startswith("TEASRUpscale") and expected in line for line in found), found


def test_the_guard_sees_a_node_or_an_output_gone_or_moved(today):
    gone, swapped = copy.deepcopy(today), copy.deepcopy(today)
    del gone["TEASRColorFix"]
    assert frozen_v1.breaks(today, gone) == ["TEASRColorFix is gone"]
    swapped["TEASRUpscale"]["outputs"].reverse()
    assert len(frozen_v1.breaks(today, swapped)) == 1


def test_what_may_change_may_change(today):
    """Wider ranges, more options, finer steps, optional inputs behind the others, more outputs and nodes."""
    changed = copy.deepcopy(today)
    node = changed["TEASRUpscale"]["inputs"]
    node["steps"].update(max=60)
    node["max_megapixels"].update(max=1024.0)
    node["strength"].update(step=0.01)
    node["color_fix"]["options"].append("histogram")
    node["size"]["options"]["shortest"]["px"].update(max=65536)
    node["size"]["options"]["area"] = {"px": {"type": "INT", "optional": False, "default": 1, "min": 1}}
    node["new"] = {"type": "FLOAT", "optional": True, "default": 0.0}
    changed["TEASRUpscale"]["outputs"].append(["noise", "NOISE"])
    changed["TEASRNew"] = changed["TEASRColorFix"]
    assert frozen_v1.breaks(today, changed) == []
