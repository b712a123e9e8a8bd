"""The shipped workflows in ComfyUI's real frontend: nothing missing, nothing red, and the quick start runs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import comfy_server
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("frontend.cjs")
QWEN_FILES = (
    "diffusion_models/qwen_image_2512_fp8_e4m3fn.safetensors",
    "vae/qwen_image_vae.safetensors",
    "loras/teasr_qwen_image_2512.safetensors",
)


@pytest.fixture(scope="module")
def browse(server, tmp_path_factory):
    """browse(workflow, use_vue, run): what the frontend says about a UI graph, as a dictionary."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or shutil.which("node") is None:
        pytest.skip("needs Node and Chromium: install them, or set CHROMIUM to a browser's path")
    if subprocess.run(["node", "-e", "require('playwright-core')"], capture_output=True, check=False).returncode:
        pytest.skip("playwright-core is not installed: npm i playwright-core, and set NODE_PATH to its node_modules")
    comfy_server.write_picture(server, "example.png", 48, 40)  # the workflows' own input, small
    for name in QWEN_FILES:  # only their names matter here: a missing file's node is red
        (server.folder / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (server.folder / "models" / name).touch()
    shots = tmp_path_factory.mktemp("shots")

    def check(name, use_vue=False, run=False):
        graph, shot = ROOT / "workflows" / f"{name}.json", shots / f"{name}.png"
        url = f"http://127.0.0.1:{server.port}"
        command = ["node", str(SCRIPT), "check", url, str(graph), str(shot), *["run"] * run]
        env = os.environ | {"CHROMIUM": chromium, "VUE_NODES": str(int(use_vue))}
        result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return check


@pytest.mark.parametrize("use_vue", [False, True], ids=["classic", "nodes 2.0"])
@pytest.mark.parametrize("name", ["teasr_quick_start", "teasr_building_blocks", "qwen_image_teasr"])
def test_a_shipped_workflow_loads_without_a_missing_or_red_node(browse, name, use_vue):
    report = browse(name, use_vue)
    assert report["missing"] == report["red"] == report["unwired"] == report["errors"] == []
    api = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
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


def test_the_qwen_image_workflow_says_where_its_files_come_from(browse):
    """The frontend offers to download what `properties.models` names; there is no public TEASR LoRA."""
    models = browse("qwen_image_teasr")["models"]
    found = [(node, entry["directory"], entry["name"]) for node, entries in models.items() for entry in entries]
    assert sorted(found) == [
        ("UNETLoader", "diffusion_models", "qwen_image_2512_fp8_e4m3fn.safetensors"),
        ("VAELoader", "vae", "qwen_image_vae.safetensors"),
    ]
    for entries in models.values():
        for entry in entries:
            folder = "https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
            assert entry["url"] == f"{folder}/{entry['directory']}/{entry['name']}"


def test_the_quick_start_runs(browse, server):
    report = browse("teasr_quick_start", use_vue=True, run=True)
    assert report["run"]["event"] == "execution_success", report["run"]
    assert report["red"] == []
    assert list((server.folder / "output").glob("teasr_*.png"))
