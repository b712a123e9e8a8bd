"""Files of a folder that are of no kind that is read: named, counted, in the report, and no reason to fail."""

import json
import os

import pytest
from PIL import Image

from helpers.tiny import model as tiny

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def folder(tmp_path):
    """A PNG, a JPEG that is called .jfif, a GIF, notes, and a GIF in a subfolder."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    tiny.write_picture(tmp_path / "in" / "a.png")
    tiny.write_picture(tmp_path / "in" / "picture.jpg").rename(tmp_path / "in" / "b.jfif")
    for name in ("d.gif", "sub/e.gif"):
        Image.new("L", (4, 4)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("x")
    return tmp_path / "in"


def test_upscale_names_and_counts_them(tmp_path, run, folder):
    target = tmp_path / "out"
    code, out, err = run("upscale", folder, "-o", target, "--scale", "1", "--json", tmp_path / "r.json")
    assert code == 0
    assert err == "" and out.splitlines()[-1].startswith("2 images: 2 written, 0:")
    assert out.splitlines()[-1].endswith("; left out 2 files that are not of a kind that is read: d.gif, notes.txt")
    assert sorted(path.name for path in target.iterdir()) == ["a.png", "b.jfif"]
    with Image.open(target / "b.jfif") as image:
        assert image.format == "JPEG"
    left_out = json.loads((tmp_path / "r.json").read_text())["left_out"]
    assert left_out["count"] == 2
    assert [file["input"] for file in left_out["files"]] == [str(folder / "d.gif"), str(folder / "notes.txt")]


def test_subfolders_and_quiet(tmp_path, run, folder):
    _, out, _ = run("upscale", folder, "-o", tmp_path / "out", "--scale", "1", "--recursive")
    assert "left out 3 files" in out and "e.gif" in out
    report = tmp_path / "r.json"
    _, out, err = run("upscale", folder, "-o", tmp_path / "quiet", "--scale", "1", "--quiet", "--json", report)
    assert out == err == "" and json.loads(report.read_text())["left_out"]["count"] == 2


def test_compare_names_them_too(tmp_path, run, folder):
    code, _, err = run("compare", folder, "-o", tmp_path / "grid.png", "--steps", "1", "--scale", "1")
    assert code == 0 and f"note: {folder}: left out 2 files" in err


@pytest.mark.parametrize("command", ["upscale", "compare"])
def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path, run, command):
    (tmp_path / "in").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "in" / "d.gif")
    code, _, err = run(command, tmp_path / "in", "-o", tmp_path / "out.png")
    assert code == 2 and "holds no image (left out 1 file" in err and "d.gif" in err and len(err.splitlines()) == 1


@pytest.mark.usefixtures("no_model")
def test_a_large_picture_is_refused_with_the_flag_that_reads_it(tmp_path, run, monkeypatch):
    source = tiny.write_picture(tmp_path / "a.png", 3, 90, 90)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    code, _, err = run("upscale", source, "-o", tmp_path / "b.png")
    assert code == 2 and "--allow-large-input" in err


def test_the_flag_reads_a_large_picture(tmp_path, run, monkeypatch):
    source = tiny.write_picture(tmp_path / "a.png", 3, 90, 90)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert run("upscale", source, "-o", tmp_path / "b.png", "--scale", "0.25", "--allow-large-input")[0] == 0
    assert run("compare", source, "-o", tmp_path / "c.png", "--scale", "0.25", "--allow-large-input")[0] == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such name")
def test_a_line_break_in_a_name_breaks_no_line(tmp_path, run):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    tiny.write_picture(tmp_path / "in" / "a\nb.png")
    (tmp_path / "in" / "c\nd.txt").write_text("")
    (tmp_path / "in" / "e\nf.png").write_text("no image")
    code, out, err = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--scale", "1", "--json", "-")
    assert code == 3 and (tmp_path / "out" / "a\nb.png").is_file()
    assert len(err.splitlines()) == 4 and all(text in err for text in ("c d.txt", "a b.png: ", "e f.png: "))
    assert json.loads(out)["images"][0]["input"].endswith("a\nb.png")
