"""`--json`: every image's figures for a script to read, whatever became of it (R33)."""

import json
import os
import signal

import pytest

from helpers.tiny import model as tiny
from teasr_core.cli import request as cli_request
from teasr_core.cli import upscale as cli_upscale
from teasr_core.cli.run_report import ImageRecord, RunReport, loads, merge

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def upscale(run, tmp_path):
    """upscale(input, output, *options) -> (exit code, the report, stdout)."""

    def call(source, target, *options):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        code, out, _ = run("upscale", source, "-o", target, "--dtype", "fp32", "--json", report, *options)
        return code, json.loads(report.read_text(encoding="utf-8")) if report.exists() else None, out

    return call


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        tiny.write_picture(tmp_path / "in" / name)
    return tmp_path / "in"


def test_what_is_told_of_an_image(tmp_path, upscale):
    source, target = tiny.write_picture(tmp_path / "ä.png", 3, 8, 16), tmp_path / "out.png"
    options = ("--scale", "2", "--steps", "2", "--tile-px", "16", "--overlap-px", "8")
    code, report, _ = upscale(source, target, *options)
    assert code == report["exit_code"] == 0
    assert (report["format"], report["interrupted"], report["error"]) == (1, False, None)
    (image,) = report["images"]
    seconds, peak = image.pop("seconds"), image.pop("peak_memory_mib")
    assert image == {
        "input": str(source), "output": str(target), "status": "written", "size_before": [16, 8],
        "size_after": [32, 16], "tiles": 3, "steps": 2, "dtype": "fp32", "reason": None, "error": None,
    }  # fmt: skip
    assert list(seconds) == ["encode", "sample", "decode", "total"]
    assert 0 < seconds["encode"] + seconds["sample"] + seconds["decode"] <= seconds["total"] + 1e-3
    totals = report["totals"]
    assert peak == totals["peak_memory_mib"] > 10
    assert totals["seconds"] >= seconds["total"] - 1e-3
    assert {k: totals[k] for k in ("images", "written", "skipped", "failed", "not_reached")} == {
        "images": 1, "written": 1, "skipped": 0, "failed": 0, "not_reached": 0,
    }  # fmt: skip


def test_a_folder_with_all_that_can_happen(tmp_path, upscale, folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"")
    (folder / "b.png").write_bytes(b"no image")
    code, report, _ = upscale(folder, tmp_path / "out", "--resume")
    assert code == report["exit_code"] == 3
    assert [image["status"] for image in report["images"]] == ["skipped", "failed", "written"]
    failed = report["images"][1]
    assert "b.png" in failed["error"] and (failed["size_before"], failed["seconds"]) == (None, {})
    totals = report["totals"]
    assert [totals[k] for k in ("images", "written", "skipped", "failed", "not_reached")] == [3, 1, 1, 1, 0]


def test_an_interrupted_run_reports_what_it_did(tmp_path, upscale, folder, monkeypatch):
    restore, calls = cli_upscale.restore_picture, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return restore(*args)

    monkeypatch.setattr(cli_upscale, "restore_picture", interrupted)
    code, report, _ = upscale(folder, tmp_path / "out")
    assert code == report["exit_code"] == 130
    assert report["interrupted"] is True
    assert [image["status"] for image in report["images"]] == ["written"]
    assert report["totals"]["not_reached"] == 2


def test_what_ends_a_run_is_in_the_report(tmp_path, upscale, folder, monkeypatch):
    code, report, _ = upscale(folder, tmp_path / "out", "--lora", tmp_path / "missing.safetensors")
    assert code == report["exit_code"] == 2
    assert "missing.safetensors" in report["error"] and report["images"] == []
    (folder / "a.png").write_bytes(b"")
    code, report, _ = upscale(folder / "a.png", tmp_path / "out.png")
    assert code == report["exit_code"] == 2
    assert report["images"][0]["error"] == report["error"] != ""
    monkeypatch.setattr(cli_request, "load_restorer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        upscale(folder / "b.png", tmp_path / "out.png")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["exit_code"], report["error"]) == (1, "division by zero")


def test_stdout_holds_the_report_alone(tmp_path, run, folder):
    code, out, err = run("upscale", folder, "-o", tmp_path / "out", "--dtype", "fp32", "--json", "-")
    assert code == 0
    assert json.loads(out)["totals"]["written"] == 3
    assert len(err.splitlines()) == 4  # the lines a person reads
    code, out, err = run("upscale", folder, "-o", tmp_path / "out", "--resume", "--json", "-", "--quiet")
    assert (code, err) == (0, "") and json.loads(out)["totals"]["skipped"] == 3


@pytest.mark.parametrize("name", ["in.png", "none/report.json", "report", "folder.json"])
def test_reports_that_cannot_be_written_are_refused_before_the_work(tmp_path, run, name):
    source = tiny.write_picture(tmp_path / "in.png")
    before = source.read_bytes()
    (tmp_path / "folder.json").mkdir()
    code, out, err = run("upscale", source, "-o", tmp_path / "out.png", "--json", tmp_path / name)
    assert (code, out) == (2, "")
    assert "--json" in err and len(err.splitlines()) == 1
    assert source.read_bytes() == before and not (tmp_path / "out.png").exists()


def record(index, status, peak=None):
    return ImageRecord(index, f"{index}.png", f"out/{index}.png", status, (4, 3), (8, 6), peak_memory_mib=peak)


def test_reports_of_processes_become_one():
    shares = [
        RunReport(2, [record(0, "written", 5.0), record(2, "failed")], 3.0),
        RunReport(2, [record(1, "skipped"), record(3, "written", 7.0)], 4.5),
    ]
    merged = merge([loads(share.dumps()) for share in shares])
    assert merged.exit_code == 3
    report = json.loads(json.dumps(merged.as_json()))
    assert [image["input"] for image in report["images"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert report["images"][0]["size_before"] == [4, 3]
    assert report["totals"] == {
        "images": 4, "written": 2, "skipped": 1, "failed": 1, "not_reached": 0, "seconds": 4.5, "peak_memory_mib": 7.0,
    }  # fmt: skip
    assert merge([shares[0], RunReport(2, is_interrupted=True)]).exit_code == 130
    assert merge([shares[0], RunReport(2, error="disk")]).exit_code == 2
    assert merge([RunReport(1, [record(0, "written", 1.0)])]).exit_code == 0
