"""`python -m training eval` from the command line to the files, on a tiny model."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from helpers.tiny import evaluation as tiny_eval
from helpers.tiny import model as tiny
from teasr_core.sampling.schedule import parse_steps
from teasr_core.weight_files import base_file
from training.ablation import arms as ablation
from training.ablation.arms import ARMS, TrainedArm
from training.cli import eval_run as command
from training.cli.commands import build_parser, main


@pytest.fixture
def assets(tmp_path, monkeypatch):
    folder = tiny.write_assets(tmp_path / "assets")
    monkeypatch.setattr(base_file, "ASSETS", folder)
    return folder


def run(*arguments):
    return main(["eval", *map(str, arguments), "--dtype", "fp32", "--pyiqa", "none"])


def test_two_models_on_pairs_make_every_file_and_the_second_run_nothing_new(tmp_path, assets, capsys, monkeypatch):
    pairs, out = tiny_eval.write_pairs(tmp_path / "RealSR", 2, side=64), tmp_path / "out"
    (pairs / "test_LR" / "alone.png").write_bytes((pairs / "test_LR" / "0.png").read_bytes())
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    arguments = [pairs, out, "--model", "shipped=builtin", "--model", f"new={lora}", "--steps", "1,2"]
    assert run(*arguments) == 0
    printed = capsys.readouterr()
    assert "skipped alone.png" in printed.err and "made 14 of 14 results" in printed.err
    table = (out / "table_RealSR.md").read_text()
    assert table.strip() == printed.out.strip() and "| new | 2 |" in table and "1 files skipped" in table
    names = {path.name for path in out.iterdir()}
    grids = {"grid_RealSR_shipped.jpg", "grid_RealSR_new.jpg"}
    assert grids | {"scores.csv", "results.json", "table_RealSR.md", "pictures"} <= names
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"bicubic", "lanczos", "HQ", "shipped", "new"}
    results = json.loads((out / "results.json").read_text())
    group = results["datasets"][0]["groups"][0]
    mean = next(row["means"]["psnr_y"] for row in group["rows"] if (row["model"], row["steps"]) == ("new", 2))
    values = [
        float(row["value"]) for row in rows if (row["metric"], row["model"], row["steps"]) == ("psnr_y", "new", "2")
    ]
    assert len(values) == 2 and mean == pytest.approx(np.mean(values))
    assert [model["spec"] for model in results["models"]] == ["builtin", str(lora)]
    assert set(results["models"][1]["sha256"]) == {"base", "lora"}
    assert results["made_with"]["settings"]["dtype"] == "fp32"

    def no_model(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(base_file, "build_velocity", no_model)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert run(*arguments) == 0
    assert "made 0 of 14 results" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_photographs_without_originals(tmp_path, assets):
    (tmp_path / "cam").mkdir()
    Image.fromarray(tiny_eval.smooth(40, 52, 0)).save(tmp_path / "cam" / "a.jpg")
    assert run(tmp_path / "cam", tmp_path / "out", "--scale", "2", "--steps", "1") == 0
    table = (tmp_path / "out" / "table_cam.md").read_text()
    assert "x2" in table and "grid peak" in table and "| lanczos | - |" in table
    assert "PSNR-Y ↑" not in table and "it needs the originals" in table
    assert (tmp_path / "out" / "grid_cam.jpg").is_file()


def test_a_missing_matplotlib_costs_the_plot_only(tmp_path, assets, capsys, monkeypatch):
    pairs = tiny_eval.write_pairs(tmp_path / "set", 1, side=64)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert run(pairs, tmp_path / "out", "--steps", "1") == 0
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").is_file() and not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--steps", "1,x"], "--steps is '1,x'"),
        (["--steps", "0"], "from 1 to 30"),
        (["--steps", "1,1"], "each number once"),
        (["--model", "nothing"], "NAME=SPEC"),
        (["--dtype", "fp8"], "dtype"),
        (["--preset", "heavy"], "--preset degrades"),
        (["--niqe-params", "none.npz"], "none.npz"),
        (["--color-fix", "sepia"], "color_fix"),
        (["--seed", "-1"], "--seed is -1"),
        (["--tile-px", "9"], "tile_px is 9"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, assets, capsys, arguments, match):
    pairs = tiny_eval.write_pairs(tmp_path / "set", 1, side=64)
    assert main(["eval", str(pairs), str(tmp_path / "out"), "--pyiqa", "none", "--steps", "1", *arguments]) == 2
    error = capsys.readouterr().err
    assert match in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["afile", "afile/deeper"])
def test_a_file_in_the_way_is_told_before_the_work(tmp_path, assets, capsys, monkeypatch, place):
    pairs = tiny_eval.write_pairs(tmp_path / "set", 1, side=64)
    (tmp_path / "afile").write_text("")
    monkeypatch.setattr(command, "open_datasets", None)  # not even looked at
    assert run(pairs, tmp_path / place, "--steps", "1") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "afile is a file, expected a folder" in error


def test_the_form_of_before_still_parses():
    args = build_parser().parse_args(
        ["eval", "photos", "--steps", "1,8", "out", "--preset", "heavy", "--base", "b.safetensors", "--seed", "3"]
    )
    assert (str(args.photographs), str(args.output), args.preset, str(args.base)) == (
        "photos", "out", "heavy", "b.safetensors",
    )  # fmt: skip
    defaults = build_parser().parse_args(["eval", "photos", "out"])
    assert (defaults.steps, defaults.seed, defaults.dtype, defaults.color_fix) == ("1,2,4,8,30", 0, "auto", "off")
    assert parse_steps(defaults.steps) == (1, 2, 4, 8, 30)


def test_an_ablation_is_compared_in_the_form_of_table_3(tmp_path, assets, capsys, monkeypatch):
    """The arms are made here; training them is tests/training/ablation/test_arms.py's."""
    pairs, out = tiny_eval.write_pairs(tmp_path / "RealSR", 2, side=64), tmp_path / "out"
    base = assets / base_file.BASE_NAME
    arms = [
        TrainedArm(arm, base, tiny.write_lora(tmp_path / f"{arm.name}.safetensors", **{"teasr.step": str(index)}))
        for index, arm in enumerate(ARMS)
    ]
    asked = []
    monkeypatch.setattr(ablation, "train_arms", lambda path, note: asked.append(path) or arms)
    assert run(pairs, out, "--ablation", tmp_path / "ablation.toml", "--steps", "1,2") == 0
    assert asked == [tmp_path / "ablation.toml"]
    table = (out / "ablation_RealSR.md").read_text()
    assert table.strip() in capsys.readouterr().out
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("|")]
    assert rows == ["arm", "---", "baseline", "+DTC", "+DTC+TAR"]
    assert (
        "1 step: PSNR" in table and "2 steps: PSNR" in table and "absent:" in table and "grid peak of a codec" in table
    )
    models = json.loads((out / "results.json").read_text())["models"]
    assert [model["name"] for model in models] == [arm.name for arm in ARMS]
    assert len({model["model_id"] for model in models}) == 3
