"""The shipped workflows in ComfyUI's real frontend: nothing missing, nothing red, and they run."""

import json
from pathlib import Path

import pytest

from teasr_core.picture_files.read import load_picture

WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
RENDERERS = pytest.mark.parametrize("use_vue", [False, True], ids=["classic", "nodes 2.0"])


@pytest.fixture(scope="module")
def reports(frontend):
    """reports(use_vue): what the frontend says about every workflow, by name; one browser for all of them."""
    known = {}

    def ask(use_vue):
        if use_vue not in known:
            known[use_vue] = frontend("check-all", WORKFLOWS, use_vue=use_vue)
        return known[use_vue]["reports"], known[use_vue]["errors"]

    return ask


def test_every_workflow_is_there_as_graph_and_as_prompt():
    assert len(NAMES) >= 8
    assert sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")) == NAMES


@RENDERERS
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_loads_without_a_missing_or_red_node(reports, name, use_vue):
    every, errors = reports(use_vue)
    report = every[name]
    assert report["missing"] == report["red"] == report["unwired"] == errors == []
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    assert {node: (entry["class_type"], entry["inputs"]) for node, entry in report["prompt"].items()} == {
        node: (entry["class_type"], entry["inputs"]) for node, entry in api.items()
    }
    seeds = [
        value
        for widgets in report["widgets"].values()
        for widget, value in widgets
        if widget == "control_after_generate"
    ]
    assert set(seeds) <= {"fixed"}


def test_the_qwen_image_workflow_says_where_its_files_come_from(reports):
    """The frontend offers to download what `properties.models` names; there is no public TEASR LoRA."""
    models = reports(False)[0]["qwen_image_teasr"]["models"]
    found = [(node, entry["directory"], entry["name"]) for node, entries in models.items() for entry in entries]
    assert sorted(found) == [
        ("UNETLoader", "diffusion_models", "qwen_image_2512_fp8_e4m3fn.safetensors"),
        ("VAELoader", "vae", "qwen_image_vae.safetensors"),
    ]
    for entries in models.values():
        for entry in entries:
            folder = "https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
            assert entry["url"] == f"{folder}/{entry['directory']}/{entry['name']}"


# The quick start runs in test_views.py, under the mouse; 4096 px are more than a small test picture may become.
@pytest.mark.parametrize(
    ("name", "prefix", "pictures"),
    [
        ("teasr_before_after", "teasr_after", 1),
        ("teasr_batch_folder", "teasr_batch/photo", 2),
        ("teasr_step_comparison", "teasr_steps", 4),
        ("teasr_adaptive_steps", "teasr_auto", 1),
        ("teasr_region", "teasr_region", 1),
    ],
)
def test_a_workflow_runs(frontend, server, shots, name, prefix, pictures):
    graph, shot = WORKFLOWS / f"{name}.json", shots / f"{name}_run.png"
    report = frontend("check", graph, "run", use_vue=True, output=shot)
    assert report["run"]["event"] == "execution_success", report["run"]
    assert report["red"] == []
    assert len(list((server.folder / "output").glob(f"{prefix}_*.png"))) == pictures


def test_the_16_bit_workflow_saves_16_bits(frontend, server, shots):
    """Hardly any of the result's values lies on a level of 8 bits."""
    report = frontend("check", WORKFLOWS / "teasr_16bit.json", "run", output=shots / "teasr_16bit_run.png")
    assert report["run"]["event"] == "execution_success", report["run"]
    [path] = (server.folder / "output").glob("teasr_16bit_*.png")
    picture = load_picture(path)
    levels = picture.rgb * 255
    assert picture.bit_depth == 16
    assert (levels - levels.round()).abs().gt(0.01).float().mean() > 0.9
