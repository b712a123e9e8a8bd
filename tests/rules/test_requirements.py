"""docs/requirements.md: every requirement has a line, and what a line names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "requirements.md"
WANTED = [f"R{k}" for k in range(1, 34)] + [f"T{k}" for k in range(1, 17)]
ROW = re.compile(r"^\| ([RT]\d+) \| (.+?) \| (.+) \|$")
EVIDENCE = re.compile(r"`((?:tests|benchmarks|\.ci)/[\w./]+)(?:::(\w+))?`")


def rows(text: str) -> list[tuple[str, str]]:
    """(requirement, evidence) of every table row."""
    found = [ROW.match(line) for line in text.splitlines()]
    return [(row[1], row[3]) for row in found if row]


def faults(evidence: str) -> list[str]:
    """What a line's evidence lacks: anything at all, a file, or a test of that name in it."""
    named = EVIDENCE.findall(evidence)
    missing = [] if named else ["no test or benchmark is named"]
    for file, test in named:
        path = ROOT / file
        if not path.is_file():
            missing.append(f"no file {file}")
        elif test and test not in functions(path):
            missing.append(f"no {test} in {file}")
    return missing


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_requirement_has_one_line():
    assert [name for name, _ in rows(PAGE.read_text())] == WANTED


@pytest.mark.parametrize(("name", "evidence"), rows(PAGE.read_text()), ids=lambda value: value[:3])
def test_what_shows_it_exists(name: str, evidence: str):
    assert not faults(evidence)


def test_the_check_bites():
    assert faults("trust us")
    assert faults("`tests/core/test_nothing.py`")
    assert faults("`tests/rules/test_requirements.py::test_nothing`")
    assert not faults("`tests/rules/test_requirements.py::test_the_check_bites`, `.ci/run`")
