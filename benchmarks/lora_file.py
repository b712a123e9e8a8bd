"""How long does a LoRA file of full size take to write and read, and does every tensor come back?

Rank 128 on all targets of the 20B: 584 M parameters in bf16. Random numbers; the file goes to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from teasr_core.memory import peak_memory_mb
from teasr_core.model.architecture import QWEN_IMAGE
from teasr_core.model.branch_lora import BLOCK_TARGETS, target_paths
from teasr_core.weight_files.lora_file import lora_metadata, lora_tensors, read_lora
from teasr_core.weight_files.safetensors_writer import write_atomically

FACTORS = {"img_mlp.net.0.proj": (1, 4), "img_mlp.net.2": (4, 1), "img_mod.1": (1, 6)}  # (in, out) in widths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--layers", type=int, default=QWEN_IMAGE.num_layers)
    args = parser.parse_args()
    tensors, generator = {}, torch.Generator().manual_seed(0)
    for path in target_paths(args.layers):
        n_in, n_out = FACTORS.get(path.split(".", 2)[2], (1, 1))
        for name, shape in (("A", (args.rank, n_in * QWEN_IMAGE.width)), ("B", (n_out * QWEN_IMAGE.width, args.rank))):
            numbers = torch.randint(-(2**14), 2**14, shape, generator=generator, dtype=torch.int16)
            tensors[f"{path}.lora_{name}.weight"] = numbers.to(torch.bfloat16) / 2**16
    metadata = lora_metadata(
        prediction="velocity", rank=args.rank, targets=BLOCK_TARGETS, base="benchmark", base_fingerprint="0" * 64,
        step=0, config={},
    )  # fmt: skip
    prompt = torch.zeros(16, QWEN_IMAGE.text_width, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "full_size.safetensors"
        before = time.perf_counter()
        write_atomically(path, lora_tensors(tensors, prompt), metadata)
        written = time.perf_counter()
        found = read_lora(path)
        read = time.perf_counter()
        size = path.stat().st_size
        equal = found.tensors.keys() == tensors.keys() and all(
            torch.equal(found.tensors[key], value) for key, value in tensors.items()
        )
    parameters = sum(value.numel() for value in tensors.values())
    figures = {
        "parameters": parameters, "tensors": len(tensors), "mib": round(size / 2**20, 1),
        "write_s": round(written - before, 2), "read_s": round(read - written, 2), "equal": equal,
        "peak_mib": round(peak_memory_mb()),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
