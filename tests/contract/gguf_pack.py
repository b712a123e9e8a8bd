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
    """The file with its larger matrices in `form`, and what its tensors mean to the pack.

    product: what scale times code is rounded to; the pack's default is float16.
    """
    from helpers import gguf_files

    meant = gguf_files.write(path, tensors, form)
    quantised = {name for name, tensor in tensors.items() if gguf_files.form_of(tensor, form).startswith("Q")}
    return {name: value.to(product).float() if name in quantised else value for name, value in meant.items()}
