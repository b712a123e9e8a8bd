"""File names that stdout cannot show and readers that have gone: every image is done all the same."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import model as tiny
from teasr_core.cli.commands import main
from teasr_core.cli.terminal import write_line

pytestmark = pytest.mark.usefixtures("tiny_model")
ROOT = Path(__file__).parents[3]
NO_TEXT = os.fsdecode(b"a\xe9.png")  # a name in Latin-1, where names are UTF-8


@pytest.fixture
def upscale(tmp_path, monkeypatch):
    """upscale(name, encoding, *options): (exit code, stdout in a strict encoding) of it, b.png and c.png."""

    def call(name, encoding, *options):
        folder = tmp_path / "in"
        folder.mkdir()
        for each in ("b.png", "c.png"):
            tiny.write_picture(folder / each)
        try:
            (folder / "c.png").rename(folder / name)
            tiny.write_picture(folder / "c.png")
        except OSError:
            pytest.skip("this file system takes no such name")
        stdout = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        code = main(["upscale", str(folder), "-o", str(tmp_path / "out"), "--dtype", "fp32", "--scale", "1", *options])
        assert sorted(os.listdir(tmp_path / "out")) == sorted([name, "b.png", "c.png"])
        return code, stdout.buffer.getvalue().decode(encoding)

    return call


@pytest.mark.parametrize(
    ("name", "encoding", "shown"),
    [
        ("a\u7167\u7247.png", "cp1252", r"a\u7167\u7247.png"),
        (NO_TEXT, "utf-8", r"a\udce9.png"),
        ("ä.png", "ascii", r"\xe4.png"),
    ],
    ids=("cp1252", "no text", "ascii"),
)
def test_names_that_stdout_cannot_show(upscale, name, encoding, shown):
    code, out = upscale(name, encoding)
    assert code == 0
    assert sum(shown in line for line in out.splitlines()) == 1 and len(out.splitlines()) == 4


@pytest.mark.parametrize("name", [NO_TEXT, "ä\U0001f600.png"], ids=("no text", "emoji"))
@pytest.mark.parametrize("target", ["file", "stdout"])
def test_the_report_holds_every_name(upscale, tmp_path, name, target):
    """As a script reads it, byte for byte."""
    code, out = upscale(name, "cp1252", "--json", str(tmp_path / "r.json") if target == "file" else "-")
    assert code == 0
    report = json.loads((tmp_path / "r.json").read_bytes() if target == "file" else out)
    assert {os.fsencode(Path(image["input"]).name) for image in report["images"]} == {
        os.fsencode(each) for each in (name, "b.png", "c.png")
    }


@pytest.mark.parametrize("options", [[], ["--json", "-"]], ids=["lines", "report"])
def test_a_reader_that_has_gone_does_not_end_the_run(tmp_path, options):
    """A process of its own, since Python writes to stdout once more when it exits."""
    (tmp_path / "in").mkdir()
    for k in range(3):
        tiny.write_picture(tmp_path / "in" / f"{k}.png")
    (tmp_path / "in" / "1.png").write_bytes(b"no image")
    reader, writer = os.pipe()
    os.close(reader)
    base = tiny.write_base(tmp_path / "base.safetensors")
    fixed = ("--model", base, "--dtype", "fp32", "--scale", "1", *options)
    arguments = [str(a) for a in ("upscale", tmp_path / "in", "-o", tmp_path / "out", *fixed)]
    run = subprocess.run(
        [sys.executable, "-m", "teasr_core", *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    os.close(writer)
    assert run.returncode == 3, run.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "2.png"]
    assert "error: 1 of 3 images failed" in run.stderr and "Pipe" not in run.stderr


def test_other_errors_of_a_stream_pass():
    """A full disk under stdout is not a reader who has seen enough."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    full = open("/dev/full", "w")  # noqa: SIM115
    try:
        with pytest.raises(OSError, match="space"):
            write_line("text", full)
    finally:
        with pytest.raises(OSError, match="space"):
            full.close()
