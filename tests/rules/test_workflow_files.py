"""The shipped workflows and the blueprint as files (R30): a prompt, a thumbnail and fixed seeds for each graph."""

import json
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
WORKFLOWS, SUBGRAPHS = ROOT / "workflows", ROOT / "subgraphs"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
BLUEPRINTS = sorted(path.stem for path in SUBGRAPHS.glob("*.json"))
MAX_THUMBNAIL_BYTES = 60_000


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def types_of(nodes):
    return sorted(node["type"] for node in nodes if node["type"] != "MarkdownNote")


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_has_a_prompt_with_the_same_nodes(name):
    prompt = read(WORKFLOWS / "api" / f"{name}.json")
    assert types_of(read(WORKFLOWS / f"{name}.json")["nodes"]) == sorted(node["class_type"] for node in prompt.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_has_a_small_square_thumbnail(name):
    path = WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size <= MAX_THUMBNAIL_BYTES
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert 256 <= picture.width == picture.height <= 512


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_fixed(name):
    """A template that drew a new seed with every run would never show its own picture twice."""
    for node in read(WORKFLOWS / f"{name}.json")["nodes"]:
        assert not {"randomize", "increment", "decrement"} & {str(value) for value in node.get("widgets_values", [])}


def test_no_thumbnail_and_no_prompt_is_left_over():
    assert sorted(path.stem for path in WORKFLOWS.glob("*.jpg")) == NAMES
    assert sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")) == NAMES


def test_the_templates_that_were_promised_are_there():
    promised = ("quick_start", "4k_tiled", "batch_folder", "step_comparison", "adaptive_steps", "before_after")
    assert {"qwen_image_teasr", *(f"teasr_{name}" for name in promised)} <= set(NAMES)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_one_node_that_holds_its_prompts_nodes(name):
    """ComfyUI takes a blueprint's name from its file and refuses one with more than a single node outside."""
    graph, prompt = read(SUBGRAPHS / f"{name}.json"), read(SUBGRAPHS / "api" / f"{name}.json")
    [node], [definition] = graph["nodes"], graph["definitions"]["subgraphs"]
    assert node["type"] == definition["id"]
    assert node["title"] == definition["name"] == name
    assert definition["description"] and definition["category"] == "TEASR"
    inside = [entry["class_type"] for entry in prompt.values() if entry["class_type"] not in ("LoadImage", "SaveImage")]
    assert types_of(definition["nodes"]) == sorted(inside)
    promoted = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    assert promoted == ["scale", "steps", "seed", "color_fix"]
    assert [slot["name"] for slot in node["inputs"] if "widget" not in slot] == ["image"]
