"""Everything that code and pages cite exists: pages of docs/, headings in them, requirements.

A page is cited by its path from the root (`docs/decisions.md#lq-residual`, `docs/adr/0003`), and in Markdown also by a
link. The working papers of the project's beginning are not in the repository, and nothing may cite them.
Every rule is shown to bite on a planted fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("teasr_core", "nodes", "training", "tests", "docs", "scripts", "benchmarks", "web", "locales", "workflows")
SUFFIXES = (".py", ".md", ".toml", ".json", ".cjs")

PAGE = re.compile(r"(?<![\w./-])((?:web/)?docs/[\w./-]*\.md|tests/README\.md|README\.md)(#[\w-]+)?")
ANCHOR = re.compile(r"(?<![\w./-])([\w-]+\.md)(#[\w-]+)")  # `decisions.md#anchor` without its folder
ADR = re.compile(r"\badr/(\d{4})\b")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(#[\w-]+)?\)")
REQUIREMENT = re.compile(r"(?<![\w.\"'])([RT]\d{1,2})(?![\w.]*\w)")
# Working papers that were never part of the repository. "NAME=SPEC" is an argument of `eval` and no citation.
ABSENT = re.compile(r"\b(?:METHOD|DESIGN|STYLE|REDESIGN)\b|\b(?:SPEC|HOST)(?:'s\b|\.md\b|,?\s+(?:section\s+)?\d)")


def sources(root: Path) -> Iterator[Path]:
    """Every text file that may cite something, this file apart: it holds planted faults."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*"))]
    for path in [*sorted(root.iterdir()), *paths]:
        if path.is_file() and path.suffix in SUFFIXES and path.name != Path(__file__).name:
            yield path


def headings(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them: lower case, no punctuation, a dash for each space."""
    titles = re.findall(r"^#{1,6}\s+(.+?)\s*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def requirements(root: Path) -> set[str]:
    page = (root / "docs" / "requirements.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| ([RT]\d+) \|", page, re.MULTILINE))


def leads_nowhere(target: Path, anchor: str) -> str | None:
    """What is wrong with a citation of `target`, or None."""
    if not target.exists():
        return "does not exist"
    if anchor and target.suffix == ".md" and anchor[1:] not in headings(target):
        return "has no such heading"
    return None


def citation_faults(root: Path) -> list[str]:
    """ "file:line: citation: what is wrong" for each citation that leads nowhere."""
    known = requirements(root)
    faults = []
    for path in sources(root):
        place = path.relative_to(root).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            faults += [f"{place}:{number}: {fault}" for fault in line_faults(root, path, line, known)]
    return faults


def line_faults(root: Path, path: Path, line: str, known: set[str]) -> Iterator[str]:
    for page, anchor in PAGE.findall(line):
        near = path.parent / page
        if fault := leads_nowhere(root / page, anchor) if not near.exists() else leads_nowhere(near, anchor):
            yield f"{page}{anchor} {fault}"
    for page, anchor in ANCHOR.findall(line):
        if path.suffix != ".md" and page != "README.md":
            yield f"{page}{anchor} is not a path from the root"
    for number in ADR.findall(line):
        if not list((root / "docs" / "adr").glob(f"{number}-*.md")):
            yield f"adr/{number} does not exist"
    for found in ABSENT.findall(line):
        yield f"'{found}' cites a page that is not in the repository"
    if path.suffix in (".py", ".md"):
        for name in sorted(set(REQUIREMENT.findall(line)) - known):
            yield f"{name} is no requirement"
    if path.suffix == ".md" and path.relative_to(root).parts[0] != "web":  # ComfyUI serves those from another folder
        for target, anchor in LINK.findall(line):
            if fault := leads_nowhere(path.parent / target if target else path, anchor):
                yield f"link {target}{anchor} {fault}"


def test_every_citation_leads_somewhere():
    assert citation_faults(ROOT) == []


@pytest.fixture
def clean(tmp_path):
    """A repository of four pages whose citations all resolve."""
    for file, text in {
        "README.md": "[why](docs/decisions.md#time-floor)\n",
        "docs/decisions.md": "# Decisions\n### Time floor\nR2, see [one](adr/0001-time.md) and [above](#decisions).\n",
        "docs/adr/0001-time.md": "# 0001 Time\n",
        "docs/requirements.md": "| R2 | a promise | shown |\n",
        "teasr_core/a.py": '"""docs/decisions.md#time-floor, docs/adr/0001, R2, NAME=SPEC, https://host.org/x.md#y"""\n',
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def test_a_clean_repository_has_no_faults(clean):
    assert citation_faults(clean) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("teasr_core/a.py", "# docs/absent.md", "docs/absent.md does not exist"),
        ("teasr_core/a.py", "# docs/decisions.md#absent", "docs/decisions.md#absent has no such heading"),
        ("teasr_core/a.py", "# decisions.md#time-floor", "decisions.md#time-floor is not a path from the root"),
        ("teasr_core/a.py", "# docs/adr/0002", "adr/0002 does not exist"),
        ("teasr_core/a.py", "# the floor (SPEC 8)", "'SPEC 8' cites a page that is not in the repository"),
        ("teasr_core/a.py", "# DESIGN: Contracts", "'DESIGN' cites a page that is not in the repository"),
        ("teasr_core/a.py", "# HOST 1.4", "'HOST 1' cites a page that is not in the repository"),
        ("teasr_core/a.toml", "# as METHOD 1 has it", "'METHOD' cites a page that is not in the repository"),
        ("teasr_core/a.py", "# no silent bad image (R3)", "R3 is no requirement"),
        ("docs/decisions.md", "[gone](gone.md)", "link gone.md does not exist"),
        ("docs/decisions.md", "[gone](requirements.md#gone)", "link requirements.md#gone has no such heading"),
        ("README.md", "[gone](#gone)", "link #gone has no such heading"),
    ],
)
def test_every_rule_bites(clean, file, text, fault):
    with open(clean / file, "a", encoding="utf-8") as handle:
        handle.write(f"{text}\n")
    [found] = citation_faults(clean)
    assert found.startswith(f"{file}:") and found.endswith(fault)
