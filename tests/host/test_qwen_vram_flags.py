"""The small Qwen-Image on a real server, from its files to a saved latent, with the memory flags people start it with.

ComfyUI takes one of --cpu, --lowvram and --novram, so on a machine without a GPU the first alone can run: the others
skip with that reason, and tests/contract/test_plain_lowvram.py gives their share of memory to a model in process.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contract import qwen_on_disk
from contract.plain_qwen import PlainQwen, euler, relative
from helpers.comfy import server as comfy_server
from teasr_core.codec.qwen_vae import LATENT_MEAN, LATENT_STD
from teasr_core.model import branch_lora
from teasr_core.weight_files import lora_file

TOLERANCE = 1e-5  # max |found - reference| / max |reference|, float32 against float64
SEED, STEPS = 7, (1, 4)
FLAGS = {
    "cpu": ["--cpu"],
    "lowvram": ["--lowvram", "--fp32-unet"],
    "lowvram without dynamic VRAM": ["--lowvram", "--disable-dynamic-vram", "--fp32-unet"],
    "novram": ["--novram", "--fp32-unet"],
}

# A custom node without nodes: see `qwen_on_disk.with_small_sizes`.
SMALL_SIZES = """
import sys
sys.path.append({tests!r})
from contract import qwen_on_disk
from comfy import model_detection
model_detection.detect_unet_config = qwen_on_disk.with_small_sizes(model_detection.detect_unet_config)
NODE_CLASS_MAPPINGS = {{}}
"""


@functools.cache
def has_gpu(python: str) -> bool:
    probe = [python, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.fixture(params=FLAGS)
def small_server(
    request: pytest.FixtureRequest, comfyui: Path, server_python: str, tmp_path: Path
) -> Iterator[comfy_server.Server]:
    """A server with these flags, the small base and its LoRA on its shelves, the LQ latent among its inputs."""
    pytest.importorskip("websocket", reason="websocket-client is not installed: pip install websocket-client")
    if request.param != "cpu" and not has_gpu(server_python):
        pytest.skip("no GPU: ComfyUI refuses --lowvram and --novram together with --cpu")
    base = qwen_on_disk.weights()
    for name in ("custom_nodes", "models/diffusion_models", "models/loras", "input"):
        (tmp_path / name).mkdir(parents=True)
    qwen_on_disk.write_single(tmp_path / "models/diffusion_models/small_qwen.safetensors", base)
    qwen_on_disk.write_lora(tmp_path / "models/loras/teasr.safetensors", lora_file, branch_lora, base)
    lq = {"latent_tensor": qwen_on_disk.latents()[1][:, :, None], "latent_format_version_0": torch.tensor([])}
    save_file(lq, tmp_path / "input/lq.latent")
    tests = str(Path(__file__).parents[1])
    (tmp_path / "custom_nodes/small_sizes.py").write_text(SMALL_SIZES.format(tests=tests))
    running = comfy_server.start(comfyui, server_python, tmp_path, FLAGS[request.param])
    yield running
    running.stop()


def graph(steps: int, **apply: Any) -> dict[str, Any]:
    """Core nodes, TEASRApplyLoRA and TEASRStepSelector; the LQ latent by the core's ReferenceLatent."""
    nodes = {
        "model": ("UNETLoader", {"unet_name": "small_qwen.safetensors", "weight_dtype": "default"}),
        "apply": (
            "TEASRApplyLoRA",
            {"model": ["model", 0], "lora_name": "teasr.safetensors", "lora_strength": 1.0, "allow_other_base": False},
        ),
        "lq": ("LoadLatent", {"latent": "lq.latent"}),
        "condition": ("ReferenceLatent", {"conditioning": ["apply", 1], "latent": ["lq", 0]}),
        "guider": ("BasicGuider", {"model": ["apply", 0], "conditioning": ["condition", 0]}),
        "noise": ("RandomNoise", {"noise_seed": SEED}),
        "euler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "steps": ("TEASRStepSelector", {"steps": steps, "mode": "manual"}),
        "empty": ("LatentMultiply", {"samples": ["lq", 0], "multiplier": 0.0}),
        "sample": (
            "SamplerCustomAdvanced",
            {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["steps", 0],
             "latent_image": ["empty", 0]},
        ),
        "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": f"steps_{steps}"}),
    }  # fmt: skip
    nodes["apply"][1].update(apply)
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def normalised(latent: torch.Tensor) -> torch.Tensor:
    """A latent as Qwen-Image's VAE makes it (B, C, 1, H, W) in the model's own space, (B, C, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (LATENT_MEAN, LATENT_STD))
    return (latent[:, :, 0] - mean) / std


def test_the_saved_latent_is_the_plain_one(small_server: comfy_server.Server) -> None:
    base = qwen_on_disk.weights()
    pairs, prompt = qwen_on_disk.read_lora(small_server.folder / "models/loras/teasr.safetensors")
    z_lq = normalised(qwen_on_disk.latents()[1][:, :, None])
    noise = torch.randn(z_lq.shape, generator=torch.Generator("cpu").manual_seed(SEED))
    for steps in STEPS:
        run = small_server.run(graph(steps))
        assert run.error is None, run.error
        saved = load_file(small_server.folder / f"output/steps_{steps}_00001_.latent")["latent_tensor"]
        found = normalised(saved)
        error = relative(found, euler(PlainQwen(base, pairs), noise, z_lq, steps, prompt))
        print("relative error: server", steps, error)
        assert error <= TOLERANCE
