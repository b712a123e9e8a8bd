"""All of docs/training/start.md: a LoRA trained on a user's photographs, in a graph on the real server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.comfy import server as comfy_server

ROOT = Path(__file__).parents[2]
NAME = "own.safetensors"


@pytest.fixture(scope="module")
def python():
    found = os.environ.get("TEASR_STANDALONE_PYTHON", sys.executable)
    probe = "import accelerate, diffusers, peft, cv2, scipy"
    if subprocess.run([found, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip(f"{found} cannot train: set TEASR_STANDALONE_PYTHON to one with the extra `training`")
    return found


@pytest.fixture(scope="module")
def own_lora(server, python, tmp_path_factory):
    """The name, in the server's folder of LoRAs, of one that the smoke preset trained at a high rate."""
    folder = tmp_path_factory.mktemp("own")
    photos = folder / "photos"
    photos.mkdir()
    for index in range(20):
        colours = np.random.default_rng(index).integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((150, 120), Image.Resampling.BICUBIC).save(photos / f"{index}.png")

    def run(*arguments):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [python, "-m", "training", *map(str, arguments)]
        result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    preset = "training/configs/distill/smoke.toml"
    short = ("train.steps=4", "optim.lr=0.01", "optim.lr_end=0.01", "run.workers=0", "run.use_tensorboard=false")
    run("distill", preset, f'data.folders=["{photos}"]', f"run.output_dir={folder / 'run'}", *short)
    run("export", folder / "run", folder / NAME, "--weights", "raw")
    shutil.copy(folder / NAME, server.folder / "models" / "loras" / NAME)
    return NAME


@pytest.fixture
def restored(server, picture):
    """restored(lora, strength, shipped): pixels of the building blocks at x2 in fp32, `lora` applied where given."""

    def make(lora=None, strength=1.0, shipped=1.0):
        prompt = comfy_server.workflow(
            "teasr_building_blocks", LoadImage={"image": picture}, TEASRStepSelector={"steps": 2},
            TEASRLoadBuiltin={"dtype": "fp32", "lora_strength": shipped}, TEASRCondition={"size.scale": 2.0},
        )  # fmt: skip
        if lora is not None:
            node = {"model": ["2", 0], "lora_name": lora, "lora_strength": strength, "allow_other_base": False}
            for entry in prompt.values():
                entry["inputs"] = {
                    key: {("2", 0): ["30", 0], ("2", 2): ["30", 1]}.get(tuple(value), value)
                    if isinstance(value, list)
                    else value
                    for key, value in entry["inputs"].items()
                }
            prompt["30"] = {"class_type": "TEASRApplyLoRA", "inputs": node}
        return server.image(server.run(prompt)).astype(int)

    return make


def test_ones_own_lora_takes_the_place_of_the_shipped_one_and_changes_the_picture(own_lora, restored):
    own, shipped = restored(own_lora), restored()
    assert own.shape == shipped.shape
    assert abs(own - shipped).max() > 2  # 1 might be rounding
    assert np.array_equal(own, restored(own_lora, shipped=0.0))  # nothing is left of the shipped one


def test_strength_0_is_the_base_without_any_adapter(own_lora, restored):
    assert np.array_equal(restored(own_lora, strength=0.0), restored(shipped=0.0))
    assert not np.array_equal(restored(own_lora, strength=0.5), restored(own_lora))
