"""docs/equations.md and the docstrings name the same functions for the same equations."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("teasr_core", "training", "nodes")
ALGORITHM = "Algorithm 1"

_ROW = re.compile(r"^\| (\d+|Algorithm 1) \| [^|]+ \| (`[^`:]+\.py:[\w.]+`(?:, `[^`:]+\.py:[\w.]+`)*) \|$")
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


def rows_of_table(root: Path) -> list[tuple[str, list[str]]]:
    """(equation, functions) for each row of docs/equations.md."""
    rows = []
    for line in (root / "docs" / "equations.md").read_text(encoding="utf-8").splitlines():
        if row := _ROW.match(line):
            rows.append((row[1], re.findall(r"`([^`]+)`", row[2])))
        else:
            assert not re.match(r"^\|\s*(\d|Alg)", line), f"a row in another form: {line}"
    return rows


def pairs_in_table(root: Path) -> set[Pair]:
    return {(equation, function) for equation, functions in rows_of_table(root) for function in functions}


def test_every_mapped_function_exists_and_names_its_equation():
    assert pairs_in_table(ROOT) - pairs_in_code(ROOT) == set()


def test_every_docstring_with_an_equation_is_in_the_table():
    assert pairs_in_code(ROOT) - pairs_in_table(ROOT) == set()


def test_every_equation_of_the_paper_has_one_row_and_a_row_names_no_function_twice():
    rows = rows_of_table(ROOT)
    assert [equation for equation, _ in rows] == [*(str(n) for n in range(1, 15)), ALGORITHM]
    assert all(len(functions) == len(set(functions)) for _, functions in rows)


def test_mentions_are_read():
    text = "Average of v (Eq. 1-3), see Eq. 5, 12 and 13. Algorithm 1. Not section 8, nor Eqs."
    assert equations_in(text) == {"1", "2", "3", "5", "12", "13", ALGORITHM}
    assert equations_in("one step of 4") == set()


@pytest.fixture
def small(tmp_path):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "training" / "losses.py").write_text(
        'class A:\n    def f(self):\n        """Loss. Eq. 5"""\n\n\ndef g():\n    """Eq. 5, 6"""\n'
    )
    (tmp_path / "docs" / "equations.md").write_text(
        "| 5 | flow | `training/losses.py:A.f`, `training/losses.py:g` |\n| 6 | result | `training/losses.py:g` |\n"
    )
    return tmp_path


METHOD_5, FUNCTION_5, FUNCTION_6 = (
    ("5", "training/losses.py:A.f"), ("5", "training/losses.py:g"), ("6", "training/losses.py:g"),
)  # fmt: skip


def test_a_small_table_agrees(small):
    assert pairs_in_table(small) == pairs_in_code(small) == {METHOD_5, FUNCTION_5, FUNCTION_6}


def test_the_check_bites(small):
    losses = small / "training" / "losses.py"
    losses.write_text(losses.read_text().replace("Loss. Eq. 5", "Loss. Eq. 7"))
    assert pairs_in_table(small) - pairs_in_code(small) == {METHOD_5}
    assert pairs_in_code(small) - pairs_in_table(small) == {("7", "training/losses.py:A.f")}
    losses.write_text("")
    assert pairs_in_table(small) - pairs_in_code(small) == {METHOD_5, FUNCTION_5, FUNCTION_6}


@pytest.mark.parametrize(
    "row",
    [
        "| 5 | flow | training/losses.py |",
        "| 5 | flow | |",
        "| 5 | flow | `training/losses.py:f` `training/losses.py:g` |",
    ],
)
def test_a_row_in_another_form_is_refused(small, row):
    (small / "docs" / "equations.md").write_text(f"{row}\n")
    with pytest.raises(AssertionError, match="another form"):
        rows_of_table(small)
