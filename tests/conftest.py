"""Fixtures for what needs ComfyUI: tests/nodes, tests/contract, tests/host, tests/browser (see tests/README.md).

A checkout is looked for in COMFYUI_PATH, else in ~/ComfyUI. Nothing is imported before a test asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from teasr_core.cli.threads import wait_briefly

ROOT = Path(__file__).parents[1]
sys.path[:0] = [path for path in [str(ROOT / "tests")] if path not in sys.path]  # shared modules: comfy_server
wait_briefly()  # before anything imports torch
HOST_MODULES = (
    "utils.extra_config",  # first, as in main.py: older ComfyUI finds comfy/utils.py in its place later
    "comfy.model_management",
    "comfy.samplers",
    "comfy.supported_models",
    "comfy.ops",
    "comfy.model_patcher",
    "comfy.model_sampling",
    "nodes",
    "execution",
    "folder_paths",
    "comfy_extras.nodes_custom_sampler",
)
PACK = "teasr_pack"  # the pack's package name here; in ComfyUI it is the folder's


def comfyui_path() -> Path:
    return Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()


def comfyui_python() -> str:
    """ComfyUI's interpreter: COMFYUI_PYTHON, else a virtual environment inside the checkout, else this one."""
    if "COMFYUI_PYTHON" in os.environ:
        return os.environ["COMFYUI_PYTHON"]
    found = [comfyui_path() / venv / "bin" / "python" for venv in ("venv", ".venv")]
    return str(next((python for python in found if python.exists()), sys.executable))


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The checkout's folder; skips where there is none."""
    path = comfyui_path()
    if not (path / "main.py").exists():
        pytest.skip(f"no ComfyUI in {path}: set COMFYUI_PATH to a checkout (0.17.0 or later)")
    return path


@pytest.fixture(scope="session")
def server_python(comfyui: Path) -> str:
    """An interpreter that has ComfyUI's requirements; skips where there is none."""
    python = comfyui_python()
    probe = subprocess.run([python, "-c", "import torch, aiohttp, av, comfy_kitchen"], capture_output=True, text=True)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["it does not run"])[-1]
        pytest.skip(f"{python} cannot run ComfyUI ({last}): set COMFYUI_PYTHON to ComfyUI's own interpreter")
    return python


@pytest.fixture(scope="session")
def host(comfyui: Path) -> SimpleNamespace:
    """ComfyUI (on the CPU) and the pack, imported as ComfyUI imports it.

    Attributes: comfy modules by name; `pack("nodes.model.dual_branch")` for ours; `node(id)` for a node class.
    """
    sys.path.insert(0, str(comfyui))  # before the repository: `nodes` must be the host's
    try:
        importlib.import_module("comfy.cli_args").args.cpu = True
        modules = {name: importlib.import_module(name) for name in HOST_MODULES}
    except ImportError as error:
        sys.path.remove(str(comfyui))
        pytest.skip(f"{sys.executable} lacks ComfyUI's requirements ({error}): run pytest with ComfyUI's python")
    load_pack()
    extension = pack("nodes.extension")
    classes = {node.GET_SCHEMA().node_id: node for node in extension.NODES}
    return SimpleNamespace(
        **{name.rsplit(".")[-1]: module for name, module in modules.items()},
        pack=pack,
        classes=classes,
        node=lambda node_id: classes[node_id],
        run=lambda node_id, **inputs: classes[node_id].execute(**inputs).args,
    )


def load_pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


def pack(name: str) -> Any:
    """A module of the pack as the nodes see it: its `teasr_core` is another copy than the tests' own."""
    return importlib.import_module(f"{PACK}.{name}")


@pytest.fixture(scope="session")
def server(comfyui: Path, server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running ComfyUI with this repository as custom node `teasr` (`comfy_server.Server`)."""
    pytest.importorskip("websocket", reason="websocket-client is not installed: pip install websocket-client")
    if not list((ROOT / "teasr_core" / "assets").glob("*_base.safetensors")):
        pytest.skip("the built-in model is missing from teasr_core/assets")
    from helpers.comfy import server as comfy_server

    running = comfy_server.start(comfyui, server_python, tmp_path_factory.mktemp("comfyui"))
    yield running
    running.stop()
