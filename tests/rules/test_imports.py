"""Imports flow one way, nodes -> teasr_core <- training, and files stay short (R1, R2).

Every rule is read from the source with `ast` and shown to bite on a planted fault.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("teasr_core", "nodes", "training")
MAX_LINES = 400

HOST = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
)
SHIPPED_WITH_HOST = ("torch", "numpy", "PIL", "safetensors", "einops")
LIGHT = ("torch", "numpy", "PIL", "safetensors")
# Of teasr_core.
INSIDE_FUNCTIONS = (
    "accelerate", "bitsandbytes", "diffusers", "gguf", "pillow_heif", "pillow_jxl", "psutil", "skimage", "tqdm"
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import statement: the top-level module, dots before it, whether it runs when the file is imported."""

    top: str
    level: int
    at_import_time: bool
    line: int


def imports_of(path: Path) -> Iterator[Import]:
    def visit(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name.split(".")[0], 0, at_import_time, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield Import(name.split(".")[0], node.level, at_import_time, node.lineno)
        is_lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import_time and not is_lazy)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def fault(package: str, found: Import, depth: int) -> str | None:
    """What is wrong with an import in a file `depth` folders inside its package, or None."""
    if found.level:
        if found.level <= depth:
            return None  # within the package
        if found.level > depth + 1:
            return "leaves the repository"
        allowed = {"nodes": ("teasr_core",)}.get(package, ())
        return None if found.top in allowed else f"{package} must not import {found.top}"
    if found.top in sys.stdlib_module_names:
        return None
    if package == "teasr_core":
        if found.top in LIGHT or (found.top in INSIDE_FUNCTIONS and not found.at_import_time):
            return None
        if found.top in INSIDE_FUNCTIONS:
            return f"{found.top} belongs inside the function that uses it"
        return f"teasr_core must not import {found.top}" + (" but relatively" if found.top == "teasr_core" else "")
    if package == "nodes":
        if found.top in SHIPPED_WITH_HOST or found.top in HOST:
            return None
        return f"nodes must not import {found.top}: ComfyUI does not ship it, or it is ours and needs a relative import"
    if found.top in HOST:
        return f"{package} must not import {found.top}: only nodes knows the host"
    return None


def import_faults(root: Path) -> list[str]:
    faults = []
    for package in OURS:
        for path in sorted((root / package).rglob("*.py")):
            inside = path.relative_to(root)
            for found in imports_of(path):
                reason = fault(package, found, depth=len(inside.parts) - 1)
                if reason:
                    faults.append(f"{inside}:{found.line}: {reason}")
    for found in imports_of(root / "__init__.py"):
        if found.at_import_time and found.top not in sys.stdlib_module_names:
            faults.append(f"__init__.py:{found.line}: pytest and tools import this file too, so {found.top} must wait")
    return faults


def long_files(root: Path) -> list[str]:
    found = []
    for folder in (*OURS, "tests", "scripts", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > MAX_LINES:
                found.append(f"{path.relative_to(root)}: {lines} lines, at most {MAX_LINES}")
    return found


def test_imports_flow_one_way():
    assert import_faults(ROOT) == []


def test_no_file_is_longer_than_400_lines():
    assert long_files(ROOT) == []


def test_the_checker_sees_the_real_files():
    assert len(list((ROOT / "teasr_core").rglob("*.py"))) > 20
    tops = {found.top for path in (ROOT / "teasr_core").rglob("*.py") for found in imports_of(path)}
    assert {"torch", "diffusers", "flow"} <= tops


@pytest.fixture
def clean(tmp_path):
    """A small repository without faults."""
    for package in OURS:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "__init__.py").write_text("async def comfy_entrypoint():\n    from .nodes import x\n    return x\n")
    (tmp_path / "teasr_core" / "a.py").write_text(
        "from __future__ import annotations\nimport math\nimport torch\nfrom . import b\nfrom .b import c\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers\n"
        "def f():\n    from skimage import data\n"
    )
    (tmp_path / "nodes" / "a.py").write_text(
        "import comfy.utils\nimport nodes\nfrom ..teasr_core.a import b\nfrom . import c\n"
    )
    (tmp_path / "training" / "a.py").write_text("import cv2\nfrom teasr_core.a import b\nfrom .c import d\n")
    return tmp_path


def test_a_clean_repository_has_no_faults(clean):
    assert import_faults(clean) == []
    assert long_files(clean) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("teasr_core/a.py", "import comfy.utils"),
        ("teasr_core/a.py", "def f():\n    import folder_paths"),
        ("teasr_core/a.py", "import training.objective.losses"),
        ("teasr_core/a.py", "from ..training import losses"),
        ("teasr_core/a.py", "from ..nodes.bridge import attach"),
        ("teasr_core/a.py", "from nodes import bridge"),
        ("teasr_core/a.py", "from teasr_core import flow"),
        ("teasr_core/a.py", "import diffusers"),
        ("teasr_core/a.py", "class A:\n    from skimage import data"),
        ("teasr_core/a.py", "try:\n    import skimage\nexcept ImportError:\n    pass"),
        ("teasr_core/a.py", "def f():\n    import cv2"),
        ("training/a.py", "import comfy"),
        ("training/a.py", "def f():\n    from comfy_api.latest import io"),
        ("training/a.py", "from nodes import bridge"),
        ("training/a.py", "from ..nodes import bridge"),
        ("nodes/a.py", "import diffusers"),
        ("nodes/a.py", "def f():\n    import cv2"),
        ("nodes/a.py", "import teasr_core.model.flow"),
        ("nodes/a.py", "from ..training.losses import data_loss"),
        ("nodes/a.py", "from ...elsewhere import x"),
        ("__init__.py", "from .nodes.extension import TeasrExtension"),
        ("__init__.py", "import torch"),
    ],
)
def test_every_rule_bites(clean, file, line):
    with open(clean / file, "a", encoding="utf-8") as handle:
        handle.write(f"\n{line}\n")
    faults = import_faults(clean)
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"{file}:")


@pytest.mark.parametrize("folder", ["teasr_core", "nodes", "training"])
def test_a_long_file_is_found(clean, folder):
    (clean / folder / "long.py").write_text("x = 1\n" * 401)
    assert long_files(clean) == [f"{folder}/long.py: 401 lines, at most 400"]


def device_names(source: str) -> list[str]:
    """String constants that are a device's name."""
    strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [text for text in strings if isinstance(text, str) and re.fullmatch(r"(cuda|mps|xpu)(:\d+)?", text)]


def test_no_device_is_named_literally():
    """R28: which device is the host's, or torch's accelerator, to say."""
    named = {
        str(path.relative_to(ROOT)): found
        for folder in ("nodes", "teasr_core")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (found := device_names(path.read_text()))
    }
    assert named == {}
    assert device_names('x.to("cuda:0")') == ["cuda:0"]
