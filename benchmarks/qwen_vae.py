"""What does it save to treat Qwen-Image's VAE as a network for single pictures (teasr_core/codec/single_frame.py)?

    python -m benchmarks.qwen_vae [--sides 256,512,1024] [--tasks encode,decode] [--width 96] [--repeats 2] [--pairs 1]
        [--count]

A VAE of the published size with random weights, in float32. Each figure comes from a process of its own, so that
peak memory is the item's alone. Seconds are those of the processor, summed over its threads: what else runs on the
machine changes them less than the clock. With several --pairs the two take turns, and the ratios are medians of pairs.
    encode, decode    seconds of the whole VAE / seconds of the one for single pictures
    decode_gradient   the same for a decode with its backward to the latent
    *_peak            peak resident memory of the whole VAE / of the other
With --count the ratios are of floating-point operations, counted on tensors without data: no size takes long.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from teasr_core.codec.qwen_vae import LATENT_MEAN, LATENT_STD
from teasr_core.codec.single_frame import keep_first_frame
from teasr_core.memory import peak_memory_mb

TASKS = ("encode", "decode", "decode_gradient")


def measure(task: str, side: int, width: int, repeats: int, is_cut: bool) -> dict[str, float]:
    """Fewest seconds of the processor and peak memory (MiB) of one task in this process."""
    torch.manual_seed(0)
    work = prepared(task, side, width, is_cut)
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return {"seconds": best, "mib": peak_memory_mb() or 0.0}


def operations(task: str, side: int, width: int, is_cut: bool) -> float:
    """The floating-point operations of one task, of convolutions and matrix products, counted without computing."""
    with torch.device("meta"):
        work = prepared(task, side, width, is_cut)
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def prepared(task: str, side: int, width: int, is_cut: bool) -> Callable[[], None]:
    """A VAE with random weights and one task of it, as a call."""
    from diffusers import AutoencoderKLQwenImage

    vae = AutoencoderKLQwenImage(base_dim=width, latents_mean=list(LATENT_MEAN), latents_std=list(LATENT_STD)).eval()
    vae.requires_grad_(False)
    if is_cut:
        keep_first_frame(vae)
    image = torch.rand(1, 3, 1, side, side)
    latent = torch.randn(1, 16, 1, side // 8, side // 8, requires_grad=task == "decode_gradient")

    def work() -> None:
        with torch.set_grad_enabled(task == "decode_gradient"):
            if task == "encode":
                vae.encoder(image)
                return
            result = vae.decoder(vae.post_quant_conv(latent))
            if task == "decode_gradient":
                result.square().mean().backward()

    return work


def in_a_process(options: argparse.Namespace, task: str, side: int, is_cut: bool) -> dict[str, float]:
    numbers = {"--sides": side, "--width": options.width, "--repeats": options.repeats, "--threads": options.threads}
    command = [sys.executable, "-m", "benchmarks.qwen_vae", "--one", task]
    command += [str(part) for pair in numbers.items() for part in pair]
    done = subprocess.run([*command, *(["--cut"] if is_cut else [])], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def count_ratios(tasks: Sequence[str], side: int, width: int) -> dict[str, float]:
    ratios = {}
    for task in tasks:
        whole, cut = (operations(task, side, width, is_cut) for is_cut in (False, True))
        ratios[task] = round(whole / cut, 2)
        print(f"{side} px, {task}: {whole / 1e12:.2f} TFLOP, for single pictures {cut / 1e12:.2f}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="256,512,1024", help="sides of the pictures in pixels")
    parser.add_argument("--tasks", default=",".join(TASKS), help="a decode with its gradient needs much memory")
    parser.add_argument("--width", type=int, default=96, help="base width of the VAE; 96 is the published one")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1, help="measure both so many times, in turn")
    parser.add_argument("--count", action="store_true", help="count operations, and measure nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--cut", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides, tasks = [int(side) for side in options.sides.split(",")], options.tasks.split(",")
    if unknown := set(tasks) - set(TASKS):
        parser.error(f"--tasks names {', '.join(sorted(unknown))}: expected some of {', '.join(TASKS)}")
    if options.one:
        print(json.dumps(measure(options.one, sides[0], options.width, options.repeats, options.cut)))
        return
    if options.count:
        counted = {str(side): count_ratios(tasks, side, options.width) for side in sides}
        print(json.dumps({"width": options.width, "counted": True, **counted}))
        return
    found: dict[str, dict[str, list[float]]] = {str(side): {} for side in sides}
    for _ in range(options.pairs):
        for side in sides:
            for task in tasks:
                whole, cut = (in_a_process(options, task, side, is_cut) for is_cut in (False, True))
                of_side = found[str(side)]
                of_side.setdefault(task, []).append(whole["seconds"] / cut["seconds"])
                of_side.setdefault(f"{task}_peak", []).append(whole["mib"] / cut["mib"])
                print(f"{side} px, {task}: {whole['seconds']:.2f} s and {whole['mib']:.0f} MiB, for single pictures "
                      f"{cut['seconds']:.2f} s and {cut['mib']:.0f} MiB", flush=True)  # fmt: skip
    ratios = {
        side: {name: round(statistics.median(values), 2) for name, values in of_side.items()}
        for side, of_side in found.items()
    }
    print(json.dumps({"width": options.width, "threads": options.threads, "pairs": options.pairs, **ratios}))


if __name__ == "__main__":
    main()
