"""The shipped workflows and the blueprint as files (R30): prompts, thumbnails, fixed seeds, the origin of nodes."""

import json
import re
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


def project(field):
    """A field of the package's description; Python 3.10 has no reader of TOML."""
    return re.search(rf'^{field} = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def nodes_of(graph):
    """The nodes of a graph that run: a blueprint's are inside it, notes are none."""
    inside = [node for definition in graph.get("definitions", {}).get("subgraphs", []) for node in definition["nodes"]]
    return [node for node in inside or graph["nodes"] if node["type"] != "MarkdownNote"]


def without_origin(graph):
    """Types of nodes that do not name the pack they come from, and its version, no newer than this one."""
    newest = tuple(map(int, project("version").split(".")))
    wrong = []
    for node in nodes_of(graph):
        pack = project("name") if node["type"].startswith("TEASR") else "comfy-core"
        found, version = node["properties"].get("cnr_id"), node["properties"].get("ver", "")
        fits = found == pack and re.fullmatch(r"\d+\.\d+\.\d+", version)
        if not fits or (pack != "comfy-core" and tuple(map(int, version.split("."))) > newest):
            wrong.append(node["type"])
    return wrong


@pytest.mark.parametrize("path", [*WORKFLOWS.glob("*.json"), *SUBGRAPHS.glob("*.json")], ids=lambda path: path.stem)
def test_every_node_says_which_pack_it_comes_from(path):
    """ComfyUI Manager reads `cnr_id` and `ver`, and offers to install what a graph lacks."""
    assert without_origin(read(path)) == []


def test_a_node_without_origin_is_found():
    graph = read(WORKFLOWS / "teasr_quick_start.json")
    load, upscale, save = nodes_of(graph)
    del load["properties"]["ver"]
    upscale["properties"]["ver"] = "99.0.0"
    save["properties"]["cnr_id"] = "teasr"
    assert without_origin(graph) == ["LoadImage", "TEASRUpscale", "SaveImage"]


def test_the_quick_start_is_an_app_too():
    """App mode shows the picture and three sliders, in this order, and the saved picture."""
    graph = read(WORKFLOWS / "teasr_quick_start.json")
    types = {str(node["id"]): node["type"] for node in graph["nodes"]}
    inputs = [(types[node], widget) for node, widget in graph["extra"]["linearData"]["inputs"]]
    upscale = [("TEASRUpscale", widget) for widget in ("size.scale", "steps", "strength")]
    assert inputs == [("LoadImage", "image"), *upscale]
    assert [types[node] for node in graph["extra"]["linearData"]["outputs"]] == ["SaveImage"]
    assert graph["extra"]["linearMode"] is False  # a click on the template still opens the graph


def test_no_thumbnail_and_no_prompt_is_left_over():
    assert sorted(path.stem for path in WORKFLOWS.glob("*.jpg")) == NAMES
    assert sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")) == NAMES


def test_the_templates_that_were_promised_are_there():
    promised = (
        "quick_start",
        "4k_tiled",
        "batch_folder",
        "step_comparison",
        "adaptive_steps",
        "before_after",
        "16bit",
        "region",
    )
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
