"""What does a TEASR step cost beside a stock forward with one reference latent of the same size? (R13: at most 1.05)

diffusers' Qwen-Image transformer with random weights: stock as Qwen-Image-Edit-2511 calls it (latent and reference in
one sequence, doubled timestep), then through `QwenVelocity` without and with a LoRA. Turn by turn; medians of one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BranchLora, target_paths
from teasr_core.model.qwen_velocity import QwenVelocity, build_transformer
from teasr_core.model.tokens import patchify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64, choices=(64, 128))
    parser.add_argument("--latent", type=int, default=48, help="side in latent pixels: tokens a branch are (side/2)^2")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    d = args.head_dim
    architecture = QwenArchitecture(16, args.layers, args.heads, d, (d // 8, 7 * d // 16, 7 * d // 16), 256)
    with device:
        torch.set_default_dtype(dtype)
        transformer = build_transformer(architecture).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    prompt = torch.randn(1, 16, 256, device=device, dtype=dtype)
    lora = random_lora(transformer, architecture, args.rank).to(device, dtype).requires_grad_(False)
    plain = QwenVelocity(transformer, prompt[0], "velocity")
    adapted = QwenVelocity(transformer, prompt[0], "velocity", lora)
    z_t, z_lq = torch.randn(2, 1, 16, args.latent, args.latent, device=device, dtype=dtype)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    tokens = torch.cat([patchify(z_t, 2), patchify(z_lq, 2)], dim=1)  # (1, 2N, 64)
    side = args.latent // 2

    def stock() -> None:
        transformer(
            hidden_states=tokens, encoder_hidden_states=prompt, timestep=one.to(dtype),
            img_shapes=[[(1, side, side), (1, side, side)]], return_dict=False,
        )  # fmt: skip

    cases: dict[str, Callable[[], object]] = {
        "stock": stock,
        "teasr_without_lora": lambda: plain(z_t, one, z_lq, zero),
        "teasr": lambda: adapted(z_t, one, z_lq, zero),
    }
    seconds = measure(cases, args.rounds, device)
    figures = {name: round(value, 4) for name, value in seconds.items()}
    ratios = {f"ratio_{name}": round(seconds[name] / seconds["stock"], 4) for name in cases if name != "stock"}
    print(json.dumps({"tokens": 2 * side**2, "width": architecture.width, "rank": args.rank, **figures, **ratios}))


def random_lora(transformer: torch.nn.Module, architecture: QwenArchitecture, rank: int) -> BranchLora:
    tensors = {}
    for path in target_paths(architecture.num_layers):
        layer = transformer.get_submodule(path)
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, int(layer.in_features)) * 0.02  # type: ignore[arg-type]
        tensors[f"{path}.lora_B.weight"] = torch.randn(int(layer.out_features), rank) * 0.02  # type: ignore[arg-type]
    return BranchLora.from_tensors(tensors)


@torch.no_grad()
def measure(cases: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each case, one call of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(rounds + 1):
        for name, call in cases.items():
            before = time.perf_counter()
            call()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            if index:  # the first round warms up
                times[name].append(time.perf_counter() - before)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
