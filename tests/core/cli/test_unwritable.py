"""What cannot be written is refused before the restoration, in one line; a folder run goes on."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from teasr_core.whole_file import check_folder, check_name, write_whole

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def read_only(tmp_path):
    """A folder in which nobody can make a file."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", folder], check=True)
        return
    folder.chmod(0o555)
    try:
        (folder / "probe").touch()
    except OSError:
        yield folder
        folder.chmod(0o755)
    else:
        pytest.skip("this user may write everywhere and may not mount")


@pytest.fixture(autouse=True)
def _needs_posix():
    if sys.platform == "win32":
        pytest.skip("permissions of POSIX")


@pytest.mark.usefixtures("no_model")
def test_a_read_only_folder_is_found_before_the_work(tmp_path, run, read_only):
    source = tiny.write_picture(tmp_path / "in.png")
    for command in (
        ("upscale", source, "-o", read_only / "out.png"),
        ("upscale", source, "-o", tmp_path / "out.png", "--json", read_only / "report.json"),
        ("compare", source, "-o", read_only / "grid.png"),
        ("compare", source, "-o", tmp_path / "grid.png", "--images", read_only / "all"),
        ("demo", "-o", read_only / "demo.png"),
    ):
        code, out, err = run(*command)
        assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "cannot be written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed", "in.png"]
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        tiny.write_picture(tmp_path / "in" / name)
    for target in (read_only, read_only / "new"):
        code, _, err = run("upscale", tmp_path / "in", "-o", target)
        lines = err.splitlines()
        assert code == 3 and len(lines) == 3 and "a.png" in lines[0] and "b.png" in lines[1]
        assert "none is written" in lines[2]


def test_a_folder_goes_on_behind_a_read_only_subfolder(tmp_path, run, read_only):
    for name in ("fixed", "free"):
        (tmp_path / "in" / name).mkdir(parents=True)
        tiny.write_picture(tmp_path / "in" / name / "a.png")
    command = ("upscale", tmp_path / "in", "-o", tmp_path, "--recursive", "--scale", "1", "--quiet")
    code, _, err = run(*command)
    assert code == 3 and len(err.splitlines()) == 2 and "cannot be written" in err
    assert (tmp_path / "free" / "a.png").exists() and os.listdir(read_only) == []


def test_a_file_that_cannot_be_made_is_one_error(read_only):
    with pytest.raises(InputError, match="cannot be written"):
        write_whole(b"data", read_only / "a.png")
    with pytest.raises(InputError, match="cannot be written"):
        check_folder(read_only / "sub" / "sub")


@pytest.mark.usefixtures("no_model")
def test_a_name_too_long_is_found_before_the_work(tmp_path, run):
    source = tiny.write_picture(tmp_path / "in.png")
    for name in ("n" * 300 + ".png", "/".join(["d" * 200] * 30) + "/a.png"):
        code, out, err = run("upscale", source, "-o", tmp_path / name)
        assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
    with pytest.raises(InputError, match="shorter"):
        check_name(tmp_path / ("n" * 300))
    long = tiny.write_picture(tmp_path / ("n" * 250 + ".png"))
    code, _, err = run("compare", long, "-o", tmp_path / "grid.png", "--images", tmp_path / "all")
    assert code == 2 and "shorter" in err


@pytest.mark.usefixtures("no_model")
def test_a_size_too_large_for_its_format_is_found_in_a_new_folder_too(tmp_path, run):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((1, 2100, 3), np.uint8)).save(tmp_path / "in" / "a.webp")
    Image.fromarray(np.zeros((1, 16000, 3), np.uint8)).save(tmp_path / "in" / "b.jpg")
    code, _, err = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--scale", "8")
    assert code == 3 and "16383" in err and "65500" in err
    assert not (tmp_path / "out").exists()


def test_one_note_names_what_was_left_out(tmp_path, run):
    png = tmp_path / "in.png"
    info = Image.Exif()
    info[37724] = b"layers"
    Image.fromarray(tiny.pixels(8, 8, 3)).save(png, exif=info)
    look = ("--scale", "1", "--strength", "0", "--dtype", "fp32")
    code, _, err = run("upscale", png, "-o", tmp_path / "out.png", *look)
    assert (code, err) == (0, "note: in.png: left out: Photoshop's own data\n")
    code, _, err = run("upscale", png, "-o", tmp_path / "b.png", "--quiet", *look)
    assert (code, err) == (0, "")
