"""A real server with --fp16-intermediates gives the picture of an ordinary one, and --gpu-only where there is a GPU."""

import subprocess

import pytest

from helpers.comfy import server as comfy_server

FLAGS = {"fp16": ["--cpu", "--fp16-intermediates"], "gpu only": ["--gpu-only"]}


@pytest.fixture(params=FLAGS)
def other(request, comfyui, server_python, tmp_path):
    """A server with these flags."""
    probe = [server_python, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    if "--cpu" not in FLAGS[request.param] and subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no GPU: --gpu-only needs one")
    if "--fp16-intermediates" in FLAGS[request.param] and not has_flag(comfyui, "fp16-intermediates"):
        pytest.skip("this ComfyUI has no --fp16-intermediates")
    running = comfy_server.start(comfyui, server_python, tmp_path, FLAGS[request.param])
    yield running
    running.stop()


def has_flag(comfyui, name):
    return name in (comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("teasr_quick_start", {"TEASRUpscale": {"size.scale": 2.0, "grain": 0.5}}),
        ("teasr_building_blocks", {"TEASRCondition": {"size.scale": 2.0}, "TEASRColorFix": {"grain": 0.5}}),
    ],
)
def test_the_picture_is_that_of_an_ordinary_server(server, other, picture, shipped_workflow, name, changes):
    comfy_server.write_picture(other, picture, 48, 40)
    prompt = shipped_workflow(name, LoadImage={"image": picture}, **changes)
    pictures = [running.image(running.run(prompt)).astype(int) for running in (server, other)]
    assert pictures[0].shape == pictures[1].shape
    assert abs(pictures[0] - pictures[1]).max() <= 3
