"""The real frontend as a function: `frontend(mode, argument, ...)` -> what frontend.cjs says, as a dictionary."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.comfy import server as comfy_server

SCRIPT = Path(__file__).with_name("frontend.cjs")
# Long, because other work may share the machine: an idle one takes a tenth.
SECONDS = 900
QWEN_FILES = (
    "diffusion_models/qwen_image_2512_fp8_e4m3fn.safetensors",
    "vae/qwen_image_vae.safetensors",
    "loras/teasr_qwen_image_2512.safetensors",
    "diffusion_models/qwen_image_fp8_e4m3fn.safetensors",
    "loras/odtsr_lora.safetensors",
)


@pytest.fixture(scope="session")
def chromium():
    """The browser's path; skips with what is missing."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None or shutil.which("node") is None:
        pytest.skip("needs Node and Chromium: install them, or set CHROMIUM to a browser's path")
    if subprocess.run(["node", "-e", "require('playwright-core')"], capture_output=True, check=False).returncode:
        pytest.skip("playwright-core is not installed: npm i playwright-core, and set NODE_PATH to its node_modules")
    return found


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    """The folder of the screenshots."""
    return tmp_path_factory.mktemp("shots")


@pytest.fixture(scope="session")
def frontend(chromium, server, shots):
    comfy_server.write_picture(server, "example.png", 48, 40)  # the workflows' own input, small
    (server.folder / "input" / "photos").mkdir()  # the batch's, of two sizes
    comfy_server.write_picture(server, "photos/a.png", 48, 40)
    comfy_server.write_picture(server, "photos/b.png", 40, 56)
    for name in QWEN_FILES:  # only their names matter here: a missing file's node is red
        (server.folder / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (server.folder / "models" / name).touch()

    def ask(mode, argument, *more, use_vue=False, locale="en", output=shots):
        command = ["node", str(SCRIPT), mode, f"http://127.0.0.1:{server.port}", str(argument), str(output), *more]
        env = os.environ | {"CHROMIUM": chromium, "VUE_NODES": str(int(use_vue)), "LOCALE": locale}
        result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=SECONDS, check=False)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return ask
