"""A step of TEASR in ComfyUI beside a stock one with a reference latent of the same size. It runs in ComfyUI's Python.

    COMFYUI_PYTHON benchmarks/gpu_check/comfyui.py --comfyui FOLDER --device cuda|cpu [--tiny]

A stock Qwen-Image MODEL of full width and few blocks with random weights is sampled by core nodes: as it is, and behind
the hooks of TEASRApplyLoRA with a random LoRA. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
PACK = "teasr_pack"
ROUNDS, STEPS, PROMPT_TOKENS = 5, 2, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    try:
        host = load_host(args.comfyui, args.device == "cpu")
    except ImportError as error:
        print(json.dumps({"skipped": f"{sys.executable} cannot import ComfyUI ({error}): set COMFYUI_PYTHON"}))
        return
    with host.torch.inference_mode():
        print(json.dumps(measure(host, args.tiny)))


def load_host(folder: Path, use_cpu: bool) -> SimpleNamespace:
    """ComfyUI's modules that are needed, and `pack`, which gives ours by name."""
    sys.argv = sys.argv[:1]  # ComfyUI parses the arguments of the process
    sys.path[0] = str(folder)
    importlib.import_module("comfy.cli_args").args.cpu = use_cpu
    importlib.import_module("utils.extra_config")  # as in main.py, before comfy/utils.py could take the name
    names = ("torch", "comfy.model_management", "comfy.model_patcher", "comfy.supported_models", "nodes",
             "comfy_extras.nodes_custom_sampler")  # fmt: skip
    modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return SimpleNamespace(**modules, pack=lambda name: importlib.import_module(f"{PACK}.{name}"))


def measure(host: SimpleNamespace, is_tiny: bool) -> dict[str, Any]:
    torch, device = host.torch, host.model_management.get_torch_device()
    layers, heads, head_dim, side, rank = (2, 2, 64, 8, 4) if is_tiny else (8, 24, 128, 128, 128)
    dtype = torch.float32 if is_tiny else torch.bfloat16
    stock = stock_model(host, layers, heads, head_dim, dtype)
    adapted = with_lora(host, stock, rank, dtype)
    width = 64 if is_tiny else 3584
    latent = {"samples": torch.zeros(1, 16, 1, side, side)}
    reference = {
        "reference_latents": [torch.randn(1, 16, 1, side, side)],
        "reference_latents_method": "index_timestep_zero",
    }  # as Qwen-Image-Edit-2511 has it
    conditioning = [[torch.randn(1, PROMPT_TOKENS, width), reference]]
    calls = {"stock": sampler(host, stock, conditioning, latent), "teasr": sampler(host, adapted, conditioning, latent)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    is_cuda = device.type == "cuda"
    synchronise = torch.cuda.synchronize if is_cuda else lambda: None
    if is_cuda:  # making the models is not part of the peak
        torch.cuda.reset_peak_memory_stats(device)
    for index in range(ROUNDS + 1):
        for name, call in calls.items():
            synchronise()
            started = time.perf_counter()
            call()
            synchronise()
            if index:  # the first round loads the model and warms up
                times[name].append((time.perf_counter() - started) / STEPS)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if is_cuda else 0.0
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "ratio": seconds["teasr"] / seconds["stock"],
        "layers": layers,
        "side_px": 8 * side,
        "peak_gib": peak,
    }


def stock_model(host: SimpleNamespace, layers: int, heads: int, head_dim: int, dtype: Any) -> Any:
    """A Qwen-Image MODEL with random weights of about unit gain, made on the device that it is sampled on."""
    torch, management = host.torch, host.model_management
    text_width = 64 if heads == 2 else 3584
    axes = (head_dim // 8, 7 * head_dim // 16, 7 * head_dim // 16)
    sizes = {"image_model": "qwen_image", "num_layers": layers, "num_attention_heads": heads,
             "attention_head_dim": head_dim, "axes_dims_rope": axes, "joint_attention_dim": text_width,
             "in_channels": 64}  # fmt: skip
    config = host.supported_models.QwenImage(sizes)
    config.set_inference_dtype(dtype, None)
    device = management.get_torch_device()
    model = config.get_model({}, device=device)
    for parameter in model.diffusion_model.parameters():
        scale = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.1
        parameter.data = torch.randn(parameter.shape, device=device, dtype=parameter.dtype) * scale
    offload = management.unet_offload_device()
    return host.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def with_lora(host: SimpleNamespace, stock: Any, rank: int, dtype: Any) -> Any:
    """The MODEL as TEASRApplyLoRA returns it, with a random adapter."""
    torch = host.torch
    targets, files = host.pack("teasr_core.model.branch_lora"), host.pack("teasr_core.weight_files.lora_file")
    probe, apply = host.pack("nodes.model.qwen_probe"), host.pack("nodes.apply_lora")
    architecture = probe.probe_architecture(stock)
    tensors = {}
    for path in targets.target_paths(architecture.num_layers):
        out_features, in_features = stock.model.diffusion_model.get_submodule(path).weight.shape
        tensors[f"{path}.lora_A.weight"] = 0.02 * torch.randn(rank, in_features, dtype=dtype)
        tensors[f"{path}.lora_B.weight"] = 0.02 * torch.randn(out_features, rank, dtype=dtype)
    metadata = files.lora_metadata(
        prediction="velocity", rank=rank, targets=targets.BLOCK_TARGETS, base="random", step=0, config={},
        base_fingerprint=files.fingerprint(probe.fingerprint_tensors(stock)),
    )  # fmt: skip
    lora = files.parse_lora("random", files.lora_tensors(tensors, None), metadata)
    branch = apply.DualBranch("velocity", True, 1.0, use_adapter=True)
    return apply.attach(stock, branch, apply.adapter_patcher(lora, Path("random.safetensors")))


def sampler(host: SimpleNamespace, model: Any, conditioning: Any, latent: Any) -> Any:
    """SamplerCustomAdvanced with euler over STEPS steps, as a call."""
    nodes = host.nodes_custom_sampler
    guider = nodes.BasicGuider.execute(model, conditioning).args[0]
    noise, euler = nodes.RandomNoise.execute(0).args[0], nodes.KSamplerSelect.execute("euler").args[0]
    sigmas = host.torch.linspace(1, 0, STEPS + 1)
    return lambda: nodes.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent)


if __name__ == "__main__":
    main()
