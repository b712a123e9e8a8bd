"""One measurement in this process: `python -m benchmarks.gpu_check.work FUNCTION --device D [--tiny] [--options JSON]`.

The last line of the output is JSON: the figures, or {"skipped": reason} where this machine cannot do it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.native_step import random_lora
from teasr_core.codec.qwen_vae import LATENT_MEAN, LATENT_STD, QwenVaeCodec
from teasr_core.codec.single_frame import keep_first_frame
from teasr_core.errors import TeasrError
from teasr_core.image.target_size import TargetSize
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import load_restorer
from teasr_core.sampling.schedule import manual_plan
from teasr_core.weight_files.qwen_storage import load_stored, offload
from training.bench.model import RandomSource, random_source
from training.bench.report import to_json
from training.bench.settings import BenchSettings, bench_settings
from training.bench.step import run
from training.config.presets import config_file
from training.frozen_base.settings import memory_plan
from training.memory.groups import BLOCK_GROUPS
from training.memory.meter import measure_memory
from training.memory.planner import GIB

HELD_LAYERS = 8  # of the full width, for `weights`
TINY_OVERRIDES = (
    "base.dtype=fp32", "run.autocast=false", "run.device=cpu", "adapter.rank=4", "adapter.dtype=fp32",
    "train.crop_px=32", "train.batch_size=1", "optim.kind=adamw", "loss.perceptual=none",
)  # fmt: skip
ROUNDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=sorted(WORK))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--options", type=json.loads, default={})
    args = parser.parse_args()
    try:
        figures = WORK[args.work](torch.device(args.device), args.tiny, args.options)
    except (TeasrError, ImportError) as error:  # a package that is missing, a plan that does not fit
        figures = {"skipped": " ".join(str(error).split())}
    print(json.dumps(figures))
    return 0


def machine(device: torch.device, is_tiny: bool, _options: Mapping[str, Any]) -> dict[str, Any]:
    """Name, memory and speed of the device, and the versions that ran."""
    side, dtype = (256, torch.float32) if is_tiny else (8192, torch.bfloat16)
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = _seconds(lambda: a @ a, device)
    host_gib = psutil.virtual_memory().available / GIB
    figures: dict[str, Any] = {"name": "cpu", "gib": host_gib, "free_gib": host_gib, "host_gib": host_gib}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        figures |= {"name": torch.cuda.get_device_name(device), "gib": total / GIB, "free_gib": free / GIB}
        figures["free_gib"] += torch.cuda.memory_reserved(device) / GIB  # of this process, which ends
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda or torch.version.hip or "none"}
    return figures | versions | {"tflops": 2 * side**3 / seconds / 1e12}


def train(device: torch.device, is_tiny: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """`bench` of a preset with one micro-step, decoding and perceptual network included."""
    path, overrides = config_file(f"distill/{options['preset']}"), plan_overrides(options)
    if not is_tiny:
        return to_json(run(_sized(path, overrides, is_tiny, steps=1, use_decode=True), note=_note))
    full = _sized(path, overrides, False)  # held as at full size
    plan = memory_plan(full.config, full.architecture, full.prompt_tokens)
    groups = [f"memory.{group}={plan.groups[group]}" for group in BLOCK_GROUPS]
    overrides += [*TINY_OVERRIDES, *groups, f"memory.checkpointing={plan.checkpointing}"]
    found = _sized(path, overrides, is_tiny, steps=1, use_decode=True)
    return to_json(run(found, note=_note))


def plan_overrides(options: Mapping[str, Any]) -> list[str]:
    """What a training item changes of its preset."""
    budget = [f"memory.vram_gb={options['vram_gb']}"] if "vram_gb" in options else []
    return ["train.accumulation=1", *budget]


def weights(device: torch.device, is_tiny: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """A step over a few blocks, without decoding, with their weights held as `options` says."""
    overrides = [f"memory.{group}={how}" for group, how in options.items()] + ["memory.checkpointing=all"]
    overrides += TINY_OVERRIDES if is_tiny else ()
    return to_json(run(_sized(None, overrides, is_tiny, HELD_LAYERS, steps=2), note=_note))


def forward(device: torch.device, is_tiny: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """A TEASR forward of one tile as the command line computes it, with a LoRA of rank 128."""
    storage, mode = options.get("storage", ""), options.get("offload", "none")
    found = _sized(None, (), is_tiny)
    dtype, side, rank = (torch.float32, 8, 4) if is_tiny else (torch.bfloat16, 128, 128)
    started = time.perf_counter()
    home = device if mode == "none" else torch.device("cpu")
    transformer = load_stored(drawn_on(device, random_source(found)), storage, dtype, home)
    loaded = time.perf_counter() - started
    resident = offload(transformer, mode, storage, device)
    lora = random_lora(transformer, found.architecture, rank).to(device, dtype).requires_grad_(False)
    prompt = torch.randn(found.prompt_tokens, found.architecture.text_width, device=device, dtype=dtype)
    velocity = QwenVelocity(transformer, prompt, found.prediction, lora)
    z_t, z_lq = torch.randn(2, 1, found.architecture.latent_channels, side, side, device=device, dtype=dtype)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    with torch.no_grad(), resident():
        figures = _measured(lambda: velocity(z_t, one, z_lq, zero), device)
    return figures | {"layers": found.architecture.num_layers, "load_seconds": loaded, "side_px": 8 * side}


@dataclass(frozen=True)
class DrawnOn(RandomSource):
    """Random weights that are drawn on `drawing`, a GPU being many times as fast, wherever they are wanted."""

    drawing: torch.device | str = "cpu"

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", as_packed: Collection[str] = ()
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in super().tensors(dtype, self.drawing, as_packed):
            yield name, tensor.to(device)


def drawn_on(device: torch.device, source: RandomSource) -> DrawnOn:
    values = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return DrawnOn(**values, drawing=device)


def vae(device: torch.device, is_tiny: bool, _options: Mapping[str, Any]) -> dict[str, Any]:
    """Encode and decode of one picture by a VAE of the published size, in the dtype of `upscale`."""
    from diffusers import AutoencoderKLQwenImage

    width, side, dtype = (8, 64, torch.float32) if is_tiny else (96, 1024, torch.bfloat16)
    network = AutoencoderKLQwenImage(base_dim=width, latents_mean=list(LATENT_MEAN), latents_std=list(LATENT_STD))
    keep_first_frame(network)
    torch.nn.Module.to(network.eval().requires_grad_(False), device, dtype)
    codec = QwenVaeCodec(network)
    picture = torch.rand(1, 3, side, side, device=device)
    with torch.no_grad():
        latent = codec.encode(picture)
        both = {"encode": lambda: codec.encode(picture), "decode": lambda: codec.decode(latent)}
        return {"side_px": side, **{name: _measured(call, device) for name, call in both.items()}}


def builtin(device: torch.device, is_tiny: bool, _options: Mapping[str, Any]) -> dict[str, Any]:
    """A whole restoration by the built-in model, four times larger, at 1 and 4 steps."""
    restorer, side = load_restorer("auto", device=device), 64 if is_tiny else 1024
    picture = torch.rand(1, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
    options = RestoreOptions(TargetSize(side, side))
    figures: dict[str, Any] = {"side_px": side, "dtype": str(restorer.dtype).removeprefix("torch.")}
    for steps in (1, 4):
        request = RestoreRequest(options, manual_plan(steps))
        figures[f"steps_{steps}"] = _measured(lambda request=request: restorer.restore(picture, request), device)
    return figures


def _measured(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Median seconds; GiB held before the call, and at its peak."""
    seconds = _seconds(call, device)
    held = 0 if device.type == "cpu" else torch.accelerator.memory_allocated(device)
    report = measure_memory(lambda _phase: call(), device)
    return {"seconds": seconds, "held_gib": held / GIB, "peak_gib": (held + report.peak) / GIB}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median of ROUNDS calls behind one that warms up."""
    times = []
    for _ in range(ROUNDS + 1):
        _synchronize(device)
        started = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _sized(
    path: Path | None, overrides: Sequence[str], is_tiny: bool, layers: int | None = None, steps: int = 1,
    use_decode: bool = False,
) -> BenchSettings:  # fmt: skip
    """The 20B model's shapes, or two narrow blocks and a narrow VAE."""
    if is_tiny:
        return bench_settings(path, overrides, "qwen-image", 2, 2, 128, steps, use_decode, vae_width=8)
    return bench_settings(path, overrides, "qwen-image", layers, steps=steps, use_decode=use_decode)


def _note(line: str) -> None:
    print(line, file=sys.stderr)


WORK = {
    "machine": machine, "train": train, "weights": weights, "forward": forward, "vae": vae, "builtin": builtin,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
