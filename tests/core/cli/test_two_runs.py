"""Two runs with --resume on one folder: each picture is made once, and neither calls the other's work a failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import model as tiny
from teasr_core.cli.claims import claim
from teasr_core.errors import InputError

ROOT = Path(__file__).parents[3]
COUNT = 6


@pytest.fixture
def arguments(tmp_path):
    """arguments(report): of one run over COUNT pictures."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for k in range(COUNT):
        tiny.write_picture(tmp_path / "in" / ("sub" if k % 2 else "") / f"{k}.png", 3, 8, 9)
    base = tiny.write_base(tmp_path / "base.safetensors")
    out = tmp_path / "out"

    def call(report):
        fixed = ("--model", base, "--dtype", "fp32", "--scale", "2", "--recursive", "--resume", "--json", report)
        return [str(a) for a in ("upscale", tmp_path / "in", "-o", out, *fixed)]

    return call


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "teasr_core", *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_they_share_the_work(tmp_path, arguments):
    runs = [start(arguments(tmp_path / f"{k}.json")) for k in range(2)]
    errors = [run.communicate(timeout=600)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    reports = [json.loads((tmp_path / f"{k}.json").read_text())["images"] for k in range(2)]
    assert all({image["status"] for image in images} <= {"written", "skipped"} for images in reports)
    written = [image["output"] for images in reports for image in images if image["status"] == "written"]
    assert len(written) == len(set(written)) == COUNT == len(reports[0]) == len(reports[1])
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == COUNT  # no lock is left behind


def test_a_claim_is_for_one_and_leaves_nothing(tmp_path):
    target = tmp_path / f"{'é' * 120}.png"  # as long as a name may be
    with claim(target) as is_mine, claim(target) as is_theirs:
        assert is_mine and not is_theirs
        with claim(tmp_path / "other.png") as is_free:
            assert is_free
    assert list(tmp_path.iterdir()) == []
    with claim(target) as is_mine:
        assert is_mine


def test_a_claim_ends_with_its_process(tmp_path):
    """A run that was killed has a file of its claim left, which claims nothing."""
    code = (
        "import os, pathlib, sys; from teasr_core.cli.claims import claim\n"
        "with claim(pathlib.Path(sys.argv[1])) as mine:\n    print(mine, flush=True); sys.stdin.read(1)"
    )
    target = tmp_path / "a.png"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "True\n"
    with claim(target) as is_mine:
        assert not is_mine
    other.kill()
    other.communicate()
    assert list(tmp_path.iterdir()) != []
    with claim(target) as is_mine:
        assert is_mine
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_one_error(tmp_path):
    with pytest.raises(InputError, match="cannot be written"), claim(tmp_path / "none" / "a.png"):
        pass


@pytest.mark.usefixtures("tiny_model")
def test_what_another_run_makes_is_waited_for_and_no_failure(tmp_path, run, monkeypatch):
    """The other run ends once with its picture made, and once without: then it is made here."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        tiny.write_picture(tmp_path / "in" / name)
    claims = {name: claim(tmp_path / "out" / name) for name in ("a.png", "b.png")}
    assert all(one.__enter__() for one in claims.values())

    def other_run_ends(_seconds):
        (tmp_path / "out" / "a.png").write_bytes(b"made by the other run")
        while claims:
            claims.popitem()[1].__exit__(None, None, None)

    monkeypatch.setattr("teasr_core.cli.upscale.time.sleep", other_run_ends)
    code, out, err = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--scale", "1", "--resume")
    assert code == 0 and "note: another run is making a.png, b.png: waiting for it" in err
    assert "3 images: 2 written, 1 existed already" in out
    assert (tmp_path / "out" / "a.png").read_bytes() == b"made by the other run"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]
