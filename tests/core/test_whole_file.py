"""A file appears whole or not at all, and one module alone knows how."""

import ast
import os
from pathlib import Path

import pytest

from teasr_core.errors import InputError
from teasr_core.whole_file import (
    FileNames,
    are_one_file,
    check_name,
    helper_file,
    nearest_existing,
    whole_file,
    windows_fault,
    write_whole,
)

ROOT = Path(__file__).parents[2]
RENAMING = {"os.replace", "os.rename", "os.renames", "shutil.move"}


def renaming_calls(source: str) -> list[str]:
    """Calls that give a file another name; `Path.replace` has one argument, where `str.replace` has two."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [ast.unparse(call.func) for call in calls if ast.unparse(call.func) in RENAMING]
    return named + [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("replace", "rename")
        and ast.unparse(call.func) not in RENAMING
        and len(call.args) == 1
        and not call.keywords
    ]


def test_the_bytes_arrive_and_nothing_else_stays(tmp_path):
    write_whole(b"old", tmp_path / "a.json")
    write_whole(b"new", tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def write_half_and_fail(path: Path, error: BaseException) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise error


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_a_failure_within_the_block_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_half_and_fail(path, error)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_with_fsync_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append(f"fsync of {os.fstat(file).st_size} bytes"))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    with whole_file(tmp_path / "a", use_fsync=True) as temporary:
        temporary.write_bytes(b"12345")
    assert order == ["fsync of 5 bytes", "rename"]


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("ü" * 125 + ".json")  # 255 bytes
    write_whole(b"x", path)
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    "name", ["photograph.jpeg", "ü" * 125 + ".json", "照片" * 20 + ".png", "n" * 251 + ".tif", "a" * 15]
)
def test_a_file_beside_it_has_no_longer_name(name):
    """So that a path near Windows' 260 characters, or a name near 255 bytes, does not fail for the helper alone."""
    helper = helper_file(Path("folder") / name, "0123abcd", ".tmp")
    assert helper.parent == Path("folder") and helper.name.startswith(".") and helper.name.endswith("0123abcd.tmp")
    assert len(os.fsencode(helper.name)) <= len(os.fsencode(name)) and len(helper.name) <= len(name)


def test_a_file_beside_a_short_name():
    assert helper_file(Path("a.png"), "0123abcd", ".lock") == Path(".0123abcd.lock")


def test_a_path_of_more_than_260_characters(tmp_path):
    folder = tmp_path.joinpath(*["n" * 60] * 6)
    folder.mkdir(parents=True)
    write_whole(b"x", folder / "a.png")
    assert [file.name for file in folder.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "name",
    [
        "con.png",
        "NUL",
        "Aux.tar.gz",
        "com1.jpg",
        "LPT9.png",
        "COM¹.png",
        "nul .png",
        "a.png.",
        "a ",
        "a:b.png",
        "x?.png",
    ],
)
def test_a_name_that_windows_gives_no_file(name):
    assert windows_fault(name) is not None
    with pytest.raises(InputError, match=r"cannot be a file's name on Windows \(.*\); give another"):
        check_name(Path(name), "nt")


@pytest.mark.parametrize(
    "name", ["console.png", "com.png", "com10.png", ".con.png", "a.con", "照片 (1).png", "null.png"]
)
def test_a_name_that_windows_takes(name, tmp_path):
    assert windows_fault(name) is None
    check_name(tmp_path / name, "nt")


def test_elsewhere_devices_are_names_like_others(tmp_path):
    check_name(tmp_path / "con.png", "posix")


ALIKE = [("A.png", "a.png"), ("Ä.png", "A\u0308.png"), ("sub/B.png", "SUB/b.png"), ("straße.png", "STRASSE.png")]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_are_compared_as_the_file_system_compares_them(tmp_path, one, other):
    """Two files where it holds both."""
    for name in (one, other):
        (tmp_path / "tried" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tried" / name).write_text(name)
    is_one = (tmp_path / "tried" / one).read_text() != one
    assert are_one_file(tmp_path / "new" / one, tmp_path / "new" / other) == is_one
    names = FileNames()
    assert names.add(tmp_path / one) is None
    assert names.add(tmp_path / other) == (tmp_path / one if is_one else None)
    assert names.add(tmp_path / one) == tmp_path / one
    assert [path.name for path in tmp_path.iterdir()] == ["tried"]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_where_case_and_form_do_not_count(monkeypatch, one, other):
    """Any system as Windows and macOS."""
    monkeypatch.setattr("teasr_core.whole_file.are_one_file", lambda a, b: True)
    names = FileNames()
    assert names.add(Path(one)) is None and names.add(Path("other.png")) is None
    assert names.add(Path(other)) == Path(one)


def test_a_place_that_cannot_be_written_is_named_with_the_cause(tmp_path):
    with pytest.raises(InputError, match=r"none/a cannot be written \(No such file or directory\); make room or"):
        write_whole(b"x", tmp_path / "none" / "a")


def test_the_nearest_existing_folder(tmp_path, monkeypatch):
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path and nearest_existing(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert nearest_existing(Path("a")) == tmp_path


def test_no_other_module_renames_files():
    files = [path for package in ("teasr_core", "nodes", "training") for path in (ROOT / package).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): renaming_calls(path.read_text("utf-8")) for path in files}
    assert {path for path, calls in found.items() if calls} == {"teasr_core/whole_file.py"}


@pytest.mark.parametrize("source", ["os.replace(a, b)", "part.replace(path)", "part.rename(path)", "shutil.move(a, b)"])
def test_renaming_is_seen(source):
    assert len(renaming_calls(source)) == 1 and renaming_calls("text.replace('a', 'b')") == []
