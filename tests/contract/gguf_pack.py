"""A small Qwen-Image in GGUF, and the node pack that loads it: city96's ComfyUI-GGUF, a checkout of the user's."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.qwen_on_disk import Tensors

VARIABLE = "TEASR_GGUF_NODES"
PACKAGE = "teasr_gguf_pack"
SMALL = 1024  # numbers: a matrix of no more, like every vector, stays in float32
BLOCK = 32  # weights that share a scale


def load_pack() -> Any:
    """The pack's module `nodes`; skips where there is none."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set: name a checkout of https://github.com/city96/ComfyUI-GGUF")
    folder = Path(os.environ[VARIABLE]).expanduser()
    if not (folder / "nodes.py").exists():
        pytest.skip(f"no nodes.py in {folder}: {VARIABLE} expects a checkout of ComfyUI-GGUF")
    pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
    if PACKAGE not in sys.modules:
        found = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert found is not None and found.loader is not None
        sys.modules[PACKAGE] = module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    return sys.modules[f"{PACKAGE}.nodes"]


def write(path: Path, tensors: Tensors, form: str, product: torch.dtype = torch.float16) -> Tensors:
    """The file with its larger matrices in `form` (F16, BF16, Q8_0, Q4_0), and what its tensors mean to the pack.

    product: what scale times code is rounded to; the pack's default is float16.
    """
    import gguf

    writer = gguf.GGUFWriter(path=None, arch="qwen_image")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    meant = {}
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[form_of(tensor, form)]
        packed = gguf.quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        value = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()).view(tensor.shape)
        meant[name] = value.to(product).float() if kind.name.startswith("Q") else value
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def form_of(tensor: torch.Tensor, form: str) -> str:
    """As the pack's own converter chooses: F32 for what is small, F16 for what does not divide into blocks."""
    if tensor.ndim == 1 or tensor.numel() <= SMALL:
        return "F32"
    return "F16" if form.startswith("Q") and tensor.shape[-1] % BLOCK else form
