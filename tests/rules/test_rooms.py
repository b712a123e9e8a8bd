"""A package is a list of rooms, ground floor first: a room imports only itself and rooms before it.

Imports inside functions and under TYPE_CHECKING count: they hide a circle from Python, not from the reader.
Every rule is shown to bite on a planted fault.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_DOORS = 18  # files and folders at the top of a package

ROOMS = {
    "teasr_core": (
        "errors", "device", "memory", "whole_file", "model", "image", "tiling", "codec", "sampling", "picture_files",
        "weight_files", "report", "restore", "restorer", "cli", "__main__",
    ),
    "nodes": (
        "host", "inputs", "model", "run", "parts",
        "load_builtin", "apply_lora", "condition", "step_selector", "sampler", "color_fix", "upscale", "compare_steps",
        "extension",
    ),
    "training": (
        "degradation", "memory", "objective", "config", "run", "data", "frozen_base", "export", "pretrain", "distill",
        "evaluation", "bench", "ablation", "doctor", "cli", "__main__",
    ),
}  # fmt: skip
# Neighbours on one floor: no room of a group imports another of it.
SAME_FLOOR = {"nodes": ("load_builtin", "apply_lora", "condition", "step_selector", "sampler", "color_fix")}


def modules_of(root: Path, package: str) -> dict[str, Path]:
    """Dotted name -> file, for every module of a package; a folder's name stands for its __init__.py."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, name: str, modules: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module of the same package) for every import statement of a file, wherever it stands."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target in modules and target != name:
                yield node.lineno, target


def graph_of(root: Path, package: str) -> dict[str, list[tuple[int, str]]]:
    modules = modules_of(root, package)
    return {name: list(imports_of(path, name, modules)) for name, path in modules.items()}


def climbing(root: Path, package: str, rooms: Sequence[str], same_floor: Sequence[str] = ()) -> list[str]:
    """Imports from a room of one that stands later in the list, and rooms that the list lacks or has too many."""
    found = []
    floor = {room: same_floor[0] if room in same_floor else room for room in rooms}
    order = {room: rooms.index(floor[room]) for room in rooms}
    seen = set()
    for name, targets in graph_of(root, package).items():
        room = name.split(".")[1] if "." in name else ""
        seen |= {room}
        if room and room not in order:
            found.append(f"{package}/{room} is not in the list of rooms")
            continue
        for line, target in targets:
            other = target.split(".")[1] if "." in target else ""
            if other and other != room and order.get(other, len(rooms)) >= order.get(room, -1):
                found.append(f"{name}:{line} imports {target}: '{other}' does not stand before '{room}'")
    found += [f"{package} has no room '{room}'" for room in rooms if room not in seen]
    return found


def circles(root: Path, package: str) -> list[str]:
    """Circles of imports between files, each as the names around it."""
    graph = {name: [target for _, target in targets] for name, targets in graph_of(root, package).items()}
    found, done = [], set()

    def visit(name: str, above: list[str]) -> None:
        if name in above:
            found.append(" -> ".join([*above[above.index(name) :], name]))
        elif name not in done:
            for target in graph.get(name, []):
                visit(target, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def doors(root: Path, package: str) -> list[str]:
    return sorted(
        path.name
        for path in (root / package).iterdir()
        if not path.name.startswith((".", "__pycache__")) and (path.is_dir() or path.suffix == ".py")
    )


@pytest.mark.parametrize("package", ROOMS)
def test_no_import_climbs(package):
    assert climbing(ROOT, package, ROOMS[package], SAME_FLOOR.get(package, ())) == []


@pytest.mark.parametrize("package", ROOMS)
def test_no_import_circle(package):
    assert circles(ROOT, package) == []


@pytest.mark.parametrize("package", ROOMS)
def test_at_most_18_doors(package):
    assert len(doors(ROOT, package)) <= MAX_DOORS, doors(ROOT, package)


@pytest.fixture
def house(tmp_path):
    """A package of three rooms without faults: ground, middle (a folder), roof."""
    (tmp_path / "house" / "middle").mkdir(parents=True)
    for file, text in {
        "__init__.py": "",
        "ground.py": "import math\n",
        "middle/__init__.py": "",
        "middle/a.py": "from ..ground import x\nfrom .b import y\n",
        "middle/b.py": "from .. import ground\n",
        "roof.py": "from house.middle.a import x\nfrom .middle import b\n",
    }.items():
        (tmp_path / "house" / file).write_text(text)
    return tmp_path


THREE = ("ground", "middle", "roof")


def test_a_clean_house_has_no_faults(house):
    assert climbing(house, "house", THREE) == []
    assert circles(house, "house") == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("ground.py", "from .middle.a import x"),
        ("ground.py", "from .middle import a"),
        ("ground.py", "def f():\n    from .roof import x"),
        ("ground.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .roof import X"),
        ("middle/b.py", "import house.roof"),
        ("middle/b.py", "from ..roof import x"),
    ],
)
def test_an_import_that_climbs_is_found(house, file, text):
    with open(house / "house" / file, "a", encoding="utf-8") as handle:
        handle.write(text + "\n")
    assert len(climbing(house, "house", THREE)) == 1


def test_an_import_on_the_same_floor_is_found(house):
    (house / "house" / "roof.py").write_text("from . import middle\nfrom .middle import b\n")
    assert len(climbing(house, "house", THREE, same_floor=("middle", "roof"))) == 2


@pytest.mark.parametrize(
    "text",
    ["from .a import x", "def f():\n    from .a import x", "if TYPE_CHECKING:\n    from .a import X"],
)
def test_a_circle_is_found(house, text):
    (house / "house" / "middle" / "b.py").write_text(text + "\n")
    assert circles(house, "house") == ["house.middle.a -> house.middle.b -> house.middle.a"]


def test_an_unlisted_and_a_missing_room_are_found(house):
    (house / "house" / "shed.py").write_text("")
    assert climbing(house, "house", (*THREE, "attic")) == [
        "house/shed is not in the list of rooms",
        "house has no room 'attic'",
    ]


def test_doors_are_counted(house):
    assert doors(house, "house") == ["__init__.py", "ground.py", "middle", "roof.py"]
