"""A command in the README, the pages, the presets and the messages works as printed in bash, cmd and PowerShell.

Every rule is shown to bite on a planted fault.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "AGENTS.md", "CHANGELOG.md", "docs", "web/docs")
PROGRAMS = r"(?:python -m|python scripts|pip|teasr|teasr-train|accelerate|tensorboard|git|cp|export \w+=)"
COMMAND = re.compile(
    rf"^(?:[A-Z_]+=\S+ +|[~.]\S*/bin/)*{PROGRAMS}(?!\w)"
)  # also with what a shell alone takes before it
INSIDE = re.compile(r"(?:python -m (?:training|teasr_core)|pip install|teasr-train|teasr) [^`]*")  # of a message

FAULTS = {
    "single quotes, which cmd passes on": r"(?:^|[\s=])'",
    "a line that goes on, which is a backslash in bash alone": r"\\$",
    "a comment, which cmd passes on": r"\s#\s",
    "a second command behind && or ;": r"&&|;\s",
    "a variable of bash": r"\$\w|^[A-Z_]+=|^export\b",
    "a path of one system": r"~/|(?:^|\s)[\w.]*/?bin/",
    "a program that Windows lacks": r"^cp\b",
}


def faults(command: str) -> list[str]:
    """What of a command one of the shells takes otherwise; what stands in double quotes is the same in all."""
    bare = re.sub(r'"[^"\n]*"', '""', command.strip())
    return [name for name, pattern in FAULTS.items() if re.search(pattern, bare)]


def in_markdown(text: str) -> Iterator[str]:
    """Commands in code spans, and in blocks that are fenced or indented."""
    is_fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif is_fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def in_toml(text: str) -> Iterator[str]:
    """Commands in comments, indented as in a page."""
    yield from (line[1:].strip() for line in text.splitlines() if line.startswith("#     "))


def in_python(text: str) -> Iterator[str]:
    """Commands in the texts of a program, `x` in place of what it puts in."""
    tree = ast.parse(text)
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            message = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            message = node.value
        else:
            continue
        yield from INSIDE.findall(message)


def commands(root: Path) -> Iterator[tuple[Path, str]]:
    pages = [
        path for name in PAGES for path in ([root / name] if name.endswith(".md") else (root / name).rglob("*.md"))
    ]
    for path in pages:
        yield from ((path, text) for text in in_markdown(path.read_text("utf-8")) if COMMAND.match(text))
    for path in (root / "training" / "configs").rglob("*.toml"):
        yield from ((path, text) for text in in_toml(path.read_text("utf-8")))
    for package in ("teasr_core", "nodes", "training"):
        for path in (root / package).rglob("*.py"):
            yield from ((path, text) for text in in_python(path.read_text("utf-8")))


def test_every_command_works_in_each_shell():
    found = list(commands(ROOT))
    assert len(found) > 80
    wrong = [f"{path.relative_to(ROOT)}: {text}: {faults(text)}" for path, text in found if faults(text)]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "pip install '.[training]'",
        "python -m training distill a.toml 'data.folders=[\"photos\"]'",
        "python -m training distill a.toml data.folders='photos'",
        "python -m training distill a.toml \\",
        "python -m training doctor # what is missing",
        "pip install x && python -m training doctor",
        "CUDA_VISIBLE_DEVICES=0 python -m training doctor",
        "python -m teasr_core upscale ~/a.jpg -o b.png",
        ".venv/bin/pip install torch",
        "cp a.safetensors models/loras/",
    ],
)
def test_what_one_shell_takes_otherwise_is_found(text):
    assert COMMAND.match(text) and faults(text)


def test_commands_are_found_wherever_they_stand():
    page = "Run `pip install a`.\n\n    python -m training doctor\n\n```\nteasr info a\n```\n"
    assert list(in_markdown(page)) == ["pip install a", "python -m training doctor", "teasr info a"]
    assert list(in_toml("# A preset\n#     python -m training doctor\n")) == ["python -m training doctor"]
    program = "raise E(f\"needs {name}: pip install '{name}'\")\nfix = \"run pip install '.[a]' there\""
    assert sorted(in_python(program)) == ["pip install '.[a]' there", "pip install 'x'"]
    assert all(faults(text) for text in in_python(program))
    assert not faults("""python -m training distill a.toml "data.folders=['photos']" train.steps=2""")
