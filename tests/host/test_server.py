"""The pack on a real ComfyUI server: what a user does, through the same doors as the browser."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
QUICK, BLOCKS = "teasr_quick_start", "teasr_building_blocks"


@pytest.fixture
def quick(shipped_workflow, picture):
    """quick(**inputs): the quick-start workflow on the small picture, TEASRUpscale's inputs changed."""

    def make(image=picture, use_fp32=False, **inputs):
        prompt = shipped_workflow(QUICK, LoadImage={"image": image}, TEASRUpscale=inputs)
        if use_fp32:
            prompt["20"] = {"class_type": "TEASRLoadBuiltin", "inputs": {"lora_strength": 1.0, "dtype": "fp32"}}
            prompt["2"]["inputs"] |= {"model": ["20", 0], "vae": ["20", 1], "conditioning": ["20", 2]}
        return prompt

    return make


@pytest.fixture
def blocks(shipped_workflow, picture):
    """blocks(steps): the building-block workflow on the small picture at x2, in fp32."""

    def make(steps=2, image=picture, **changes):
        small = {
            "LoadImage": {"image": image},
            "TEASRLoadBuiltin": {"dtype": "fp32"},
            "TEASRCondition": {"size.scale": 2.0},
            "TEASRStepSelector": {"steps": steps},
        }
        return shipped_workflow(BLOCKS, **(small | changes))

    return make


def parts(run, node):
    """How many nodes TEASRUpscale's expansion executed, by their number in its graph."""
    return [executed.removeprefix(f"{node}.0.0.") for executed in run.executed if executed.startswith(f"{node}.")]


def test_quick_start_saves_an_image_of_the_exact_size(server, quick):
    run = server.run(quick(**{"size.scale": 4.0}))
    pixels = server.image(run)
    assert pixels.shape == (160, 192, 3)
    assert pixels.std() > 10


def test_the_pack_loaded_with_all_its_nodes_and_help_folders(server):
    info = server.call("/object_info")
    assert {"TEASRUpscale", "TEASRLoadBuiltin", "TEASRApplyLoRA", "TEASRCondition", "TEASRStepSelector", "TEASRSampler",
            "TEASRColorFix"} <= set(info)  # fmt: skip
    assert info["TEASRUpscale"]["python_module"] == "custom_nodes.teasr"
    templates = server.call("/workflow_templates")
    assert {QUICK, BLOCKS} <= set(templates["teasr"])


def test_equal_to_the_command_line(server, quick, picture, tmp_path):
    """The same seed, both in fp32: at most one 8-bit level apart."""
    python = os.environ.get("TEASR_STANDALONE_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import diffusers"], capture_output=True, check=False).returncode:
        pytest.skip(f"diffusers is not installed for {python}: set TEASR_STANDALONE_PYTHON to one that has it")
    out = tmp_path / "cli.png"
    options = ["--scale", "4", "--steps", "2", "--seed", "7", "--dtype", "fp32"]
    source = server.folder / "input" / picture
    command = [python, "-m", "teasr_core", "upscale", str(source), "-o", str(out), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    from PIL import Image

    expected = np.asarray(Image.open(out).convert("RGB")).astype(int)
    found = server.image(server.run(quick(use_fp32=True, steps=2, seed=7, **{"size.scale": 4.0}))).astype(int)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1


def test_progress_counts_tiles_and_steps_and_shows_previews(server, quick, large_picture):
    run = server.run(quick(image=large_picture, steps=2, tile_px=256))
    values = [(value, total) for _, value, total in run.progress]
    tiles = values[-1][1] // 2
    assert tiles == 2  # 320 x 256 in tiles of 256
    assert [value for value, _ in values if value] == list(range(1, 2 * tiles + 1))
    assert run.previews >= 2
    assert run.error is None


def test_interrupt_stops_within_one_forward_and_the_next_run_works(server, quick, large_picture):
    pressed = []

    def cancel(run):
        if len(run.progress) == 3:
            pressed.append(time.perf_counter())
            server.call("/interrupt", {})

    run = server.run(quick(image=large_picture, steps=30, seed=1, tile_px=128), on_progress=cancel)
    assert run.interrupted is not None
    assert run.progress[-1][1] < run.progress[-1][2] / 4
    forward = (run.progress[2][0] - run.progress[0][0]) / 2
    latency = run.interrupted - pressed[0]
    print(f"interrupt: {latency:.2f} s after the request, one forward takes {forward:.2f} s")
    assert latency <= 1.5 * forward + 0.5
    assert server.image(server.run(quick(steps=1, seed=5))).shape == (80, 96, 3)


def test_moving_steps_reruns_only_the_sampler_on_the_building_blocks(server, blocks):
    first = server.run(blocks(steps=1))
    prompt = blocks(steps=3)
    moved = server.run(prompt)
    executed = {prompt[node]["class_type"] for node in moved.executed}
    assert executed == {"TEASRStepSelector", "SamplerCustomAdvanced", "VAEDecode", "TEASRColorFix", "SaveImage"}
    assert {prompt[node]["class_type"] for node in moved.cached} >= {
        "TEASRLoadBuiltin",
        "TEASRCondition",
        "BasicGuider",
    }
    assert (server.image(first) != server.image(moved)).any()


def test_moving_steps_neither_loads_nor_encodes_again_in_the_one_node(server, quick):
    server.run(quick(steps=1, seed=11))
    moved = server.run(quick(steps=2, seed=11))
    # 1 input, 2 load, 3 condition (the encode), 4 output, 5 steps, 6 sampler, 7 decode
    assert sorted(parts(moved, "2")) == ["4", "5", "6", "7"]
    strength = server.run(quick(steps=2, seed=11, strength=0.5))
    assert parts(strength, "2") == ["4"]


def test_a_step_count_visited_before_comes_back_without_sampling(server, quick):
    first = server.image(server.run(quick(steps=1, seed=12)))
    server.run(quick(steps=2, seed=12))
    back = server.run(quick(steps=1, seed=12))
    assert back.progress == []
    assert (server.image(back) == first).all()


def test_one_node_equals_the_building_blocks(server, quick, blocks):
    ours = server.image(server.run(quick(use_fp32=True, steps=3, seed=4))).astype(int)
    stock = server.image(server.run(blocks(steps=3, RandomNoise={"noise_seed": 4}))).astype(int)
    assert abs(ours - stock).max() <= 1


def test_a_plain_run_is_the_same_before_and_after_everything_else(server, blocks, quick):
    """The shared base MODEL stays clean: after other adapters' strengths, an error and a cancelled run."""
    before = server.image(server.run(blocks(steps=2)))
    server.run(blocks(steps=2, TEASRLoadBuiltin={"lora_strength": 0.0, "dtype": "fp32"}))
    failed = server.run(quick(tile_px=40))
    assert "multiple of" in failed.error["exception_message"]
    assert failed.error["node_id"] == "2"
    again = blocks(steps=2, SaveImage={"filename_prefix": "after"})
    server.call("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)  # the worker acts on it between prompts
    assert (server.image(server.run(again)) == before).all()


def test_partial_wiring_is_one_sentence_on_the_node(server, quick):
    prompt = quick(use_fp32=True)
    del prompt["2"]["inputs"]["conditioning"]
    run = server.run(prompt)
    assert run.error["node_id"] == "2"
    assert run.error["exception_message"].startswith("model and vae wired, conditioning not")


def test_memory_does_not_grow_from_run_to_run(server, quick):
    for seed in range(3):
        server.run(quick(seed=seed))
    before = server.resident_mb()
    for seed in range(3, 15):
        server.run(quick(seed=seed, steps=1 + seed % 4))
    grown = server.resident_mb() - before
    print(f"resident memory over 12 runs: {grown:+.0f} MiB")
    assert grown < 150
