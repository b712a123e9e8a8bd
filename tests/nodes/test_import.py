"""R1, R2: the pack needs nothing ComfyUI does not ship, imports fast, and takes no top-level name."""

import json
import subprocess
import sys

import pytest

# What training and the command line use, and what breaks packs when it is updated.
BLOCKED = ("diffusers", "peft", "accelerate", "lpips", "transformers", "pyiqa", "cv2", "skimage", "torchvision")

SCRIPT = """
import asyncio, importlib.util, json, sys, time
sys.path[:0] = [{comfy!r}]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # as main.py does, before comfy/ comes first on the path
import nodes, execution, server, latent_preview, comfy.samplers, comfy_extras.nodes_custom_sampler  # its own first
from comfy_api.latest import ComfyExtension
import torch

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name + " is blocked for the pack")

for name in [n for n in sys.modules if n.split(".")[0] in {blocked!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, Block())
before, path, state = set(sys.modules), list(sys.path), torch.get_rng_state()
start = time.process_time()  # not of the clock: other programs use this machine too
ok = asyncio.run(nodes.load_custom_node({root!r}))
seconds = time.process_time() - start
new = set(sys.modules) - before
print(json.dumps(dict(
    ok=ok, seconds=seconds, nodes=sorted(n for n in nodes.NODE_CLASS_MAPPINGS if n.startswith("TEASR")),
    top=sorted(n for n in new if n.split(".")[0] in ("teasr_core", "training", "utils", "nodes")),
    path=sys.path == path, rng=torch.equal(torch.get_rng_state(), state),
    comfy_nodes=nodes.__file__, cuda=torch.cuda.is_initialized(),
    display=nodes.NODE_DISPLAY_NAME_MAPPINGS.get("TEASRUpscale"),
)))
"""


@pytest.fixture(scope="module")
def loaded(host, comfyui, tmp_path_factory):
    """ComfyUI's own loader on this pack, in a fresh process, with BLOCKED missing for us."""
    root = next(parent for parent in __import__("pathlib").Path(__file__).parents if (parent / "teasr_core").is_dir())
    script = SCRIPT.format(comfy=str(comfyui), blocked=BLOCKED, root=str(root))
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path_factory.mktemp("cwd"), check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_all_nodes_register_with_the_extras_blocked(loaded, host):
    assert loaded["ok"] is True
    assert loaded["nodes"] == sorted(host.classes)
    assert loaded["display"] == "TEASR Upscale"


def test_import_takes_less_than_a_second(loaded):
    assert loaded["seconds"] < 1.0


def test_no_top_level_names_no_side_effects(loaded):
    assert loaded["top"] == []
    assert loaded["path"] and loaded["rng"] and not loaded["cuda"]
    assert loaded["comfy_nodes"].endswith("nodes.py")
