"""docs/equations.md and the docstrings name the same functions for the same equations."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("teasr_core", "training", "nodes")
ALGORITHM = "Algorithm 1"
WAITING: set[str] = set()  # equations that may stand without a function

_ROW = re.compile(r"^\|\s*(\d+|Algorithm 1)\s*\|[^|]*\|\s*(?:`([^`:]+\.py):([\w.]+)`)?\s*\|$")
_MENTION = re.compile(r"Eq\.\s+(\d+(?:(?:\s*-\s*|,\s*|\s+and\s+)\d+)*)")

Pair = tuple[str, str]  # ("5", "training/objective/losses.py:flow_target")


def equations_in(text: str) -> set[str]:
    """Equations a docstring mentions: "Eq. 1-3", "Eq. 4, 5", "Algorithm 1"."""
    found = {ALGORITHM} if ALGORITHM in text else set()
    for numbers in _MENTION.findall(text):
        for part in re.split(r",\s*|\s+and\s+", numbers):
            first, _, last = part.replace(" ", "").partition("-")
            found |= {str(n) for n in range(int(first), int(last or first) + 1)}
    return found


def pairs_in_code(root: Path) -> set[Pair]:
    """(equation, file:function) for every function, method or class whose docstring mentions one."""
    pairs = set()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for name, node in definitions(ast.parse(path.read_text(encoding="utf-8"))):
                for equation in equations_in(ast.get_docstring(node) or ""):
                    pairs.add((equation, f"{path.relative_to(root).as_posix()}:{name}"))
    return pairs


def definitions(tree: ast.AST, prefix: str = ""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.")


def table(root: Path) -> tuple[set[Pair], set[str]]:
    """(pairs, equations without a function) of docs/equations.md."""
    pairs, waiting = set(), set()
    for line in (root / "docs" / "equations.md").read_text(encoding="utf-8").splitlines():
        row = _ROW.match(line)
        if row is None:
            assert not re.match(r"^\|\s*(\d|Alg)", line), f"a row in another form: {line}"
            continue
        equation, file, function = row.groups()
        if file is None:
            waiting.add(equation)
        else:
            pairs.add((equation, f"{file}:{function}"))
    return pairs, waiting


def test_every_mapped_function_exists_and_names_its_equation():
    pairs, _ = table(ROOT)
    assert pairs - pairs_in_code(ROOT) == set()


def test_every_docstring_with_an_equation_is_in_the_table():
    assert pairs_in_code(ROOT) - table(ROOT)[0] == set()


def test_every_equation_of_the_paper_has_a_row():
    pairs, waiting = table(ROOT)
    assert {e for e, _ in pairs} | waiting == {str(n) for n in range(1, 15)} | {ALGORITHM}
    assert waiting <= WAITING


def test_mentions_are_read():
    text = "Average of v (Eq. 1-3), see Eq. 5, 12 and 13. Algorithm 1. Not section 8, nor Eqs."
    assert equations_in(text) == {"1", "2", "3", "5", "12", "13", ALGORITHM}
    assert equations_in("one step of 4") == set()


@pytest.fixture
def small(tmp_path):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "training" / "losses.py").write_text('class A:\n    def f(self):\n        """Loss. Eq. 5"""\n')
    (tmp_path / "docs" / "equations.md").write_text("| 5 | flow | `training/losses.py:A.f` |\n| 9 | real score | |\n")
    return tmp_path


def test_a_small_table_agrees(small):
    assert table(small) == (pairs_in_code(small), {"9"})


def test_the_check_bites(small):
    losses = small / "training" / "losses.py"
    losses.write_text(losses.read_text().replace("Eq. 5", "Eq. 6"))
    assert table(small)[0] - pairs_in_code(small) == {("5", "training/losses.py:A.f")}
    assert pairs_in_code(small) - table(small)[0] == {("6", "training/losses.py:A.f")}
    losses.write_text("")
    assert table(small)[0] - pairs_in_code(small) == {("5", "training/losses.py:A.f")}
    (small / "docs" / "equations.md").write_text("| 5 | flow | training/losses.py |\n")
    with pytest.raises(AssertionError, match="another form"):
        table(small)
