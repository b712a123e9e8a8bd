"""Tables, results.json, plot and grids: the right number in the right place, and nothing absent shown as zero."""

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

from helpers.tiny import evaluation as tiny_eval
from helpers.tiny.evaluation import Counter
from teasr_core.errors import InputError
from teasr_core.image.labelled_sheet import GAP_PX, TEXT_PX
from training.evaluation.datasets import Skipped
from training.evaluation.metrics.columns import COLUMNS, best_values, column
from training.evaluation.metrics.registry import Absent, Metric, Metrics, own_metrics
from training.evaluation.run import result_key, run_evaluation
from training.evaluation.tables.grids import save_grids
from training.evaluation.tables.plot import baselines, curves, save_plot
from training.evaluation.tables.report import dataset_report, paper_table
from training.evaluation.tables.results import (
    DatasetResult,
    Group,
    ResultRow,
    Results,
    collect,
    read_results,
    split_rows,
    versions,
    write_results,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Nine pictures of the list's layout at 1 and 30 steps, by two models."""
    methods = (Counter().method("one"), Counter().method("two", "b"))
    evaluation = tiny_eval.evaluation(
        tmp_path_factory.mktemp("eval"), *methods, datasets=(tiny_eval.dataset(9),), steps=(1, 30), kept_pictures=2
    )
    run_evaluation(evaluation, show_progress=False)
    return evaluation


def cells(table, model, steps):
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines() if "|" in line]
    row = next(line for line in lines[2:] if line[:2] == [model, steps])
    return dict(zip(lines[0], row, strict=True))


def test_the_best_is_bold_where_a_direction_is_better():
    rows = (
        ResultRow("bicubic", 0, {"psnr_y": 25.101, "gmsd": 0.2, "gradient": 3.0}),
        ResultRow("HQ", 0, {"psnr_y": math.inf, "gmsd": 0.0, "gradient": 9.0}),
        ResultRow("a", 1, {"psnr_y": 25.104, "gmsd": 0.1, "gradient": 5.0}),
        ResultRow("a", 8, {"psnr_y": 24.0, "gradient": 7.0}),
    )
    table = paper_table(Group(4, rows))
    assert table.splitlines()[0] == "| model | steps | PSNR-Y ↑ | GMSD ↓ | gradient |"
    assert cells(table, "bicubic", "-")["PSNR-Y ↑"] == "**25.10**"  # equal at the precision shown
    assert cells(table, "a", "1") == {
        "model": "a", "steps": "1", "PSNR-Y ↑": "**25.10**", "GMSD ↓": "**0.1000**", "gradient": "5.00",
    }  # fmt: skip
    assert cells(table, "a", "8")["GMSD ↓"] == "-"
    assert cells(table, "HQ", "-")["PSNR-Y ↑"] == "inf"
    assert best_values([1.0], column("psnr_y")) == [False]


def test_means_are_over_the_pictures_that_a_row_covers(finished):
    result = collect(finished, finished.datasets[0])
    assert [group.pictures for group in result.groups] == [9, 8]
    assert {(row.model, row.steps) for row in result.groups[0].rows if row.steps} == {("one", 1), ("two", 1)}
    assert {row.steps for row in result.groups[1].rows} == {0, 1, 30}
    method = next(one for one in finished.methods if one.name == "one")
    dataset = finished.datasets[0]
    keys = [result_key(dataset, method, 1, picture) for picture in dataset.pictures]
    known = [finished.scores.get(key, "psnr_y", "1").value for key in keys]
    by_group = [next(row for row in group.rows if row.model == "one").means["psnr_y"] for group in result.groups]
    assert by_group == pytest.approx([np.mean(known), np.mean(known[:8])])
    assert set(result.means("one")) == {1, 30}
    assert result.means("one")[1]["psnr_y"] == by_group[1]  # over the same pictures as 30 steps


def test_the_report_has_every_row_the_splits_and_what_is_absent(finished):
    result = collect(finished, finished.datasets[0])
    text = dataset_report(result, split_rows(finished, finished.datasets[0]))
    assert "# tiny: 9 pictures, x4" in text and "## On all 9 pictures" in text and "## On the first 8 pictures" in text
    assert "| first 8 | one, 30 steps |" in text and "| all | bicubic |" in text
    assert "| all | one, 30 steps |" not in text
    assert "absent: NIQE (--niqe-params gives no file)" in text
    first = text.split("## On the first")[0]
    assert cells(first, "one", "1")["SSIM-Y ↑"].strip("*") != "0.0000" and "NIQE" not in first
    skipped = DatasetResult("x", "pairs", "x4", ("a",), (Skipped("b.png", "no b.* in HR"),), (), result.groups[:1])
    assert "1 files skipped: b.png (no b.* in HR)" in dataset_report(skipped)


def test_one_model_keeps_the_names_of_the_splits(tmp_path):
    evaluation = tiny_eval.evaluation(tmp_path, Counter().method(), steps=(1, 2))
    run_evaluation(evaluation, show_progress=False)
    assert [row.name for row in split_rows(evaluation, evaluation.datasets[0])] == [
        "bicubic", "lanczos", "HQ", "1 step", "2 steps",
    ]  # fmt: skip


def test_a_missing_value_is_never_a_zero(tmp_path):
    def only_dark(picture, hq):
        if picture.mean() > 0 and hq is not None and np.array_equal(hq, tiny_eval.smooth(96, 96, 1)):
            raise InputError("no value for this one")
        return 5.0

    metrics = Metrics(
        (*own_metrics().pictures, Metric("niqe", "1", only_dark)), absent=(Absent("musiq", "no weights on the disk"),)
    )
    evaluation = tiny_eval.evaluation(tmp_path, Counter().method(), metrics=metrics)
    run_evaluation(evaluation, show_progress=False)
    result = collect(evaluation, evaluation.datasets[0])
    assert all("niqe" not in row.means and "musiq" not in row.means for row in result.groups[0].rows)
    reasons = {one.reason for one in result.absent if one.metric == "niqe"}
    assert "no value for ours at 2 steps, 1 of 2 pictures, first p1: no value for this one" in reasons
    write_results(Results((result,)), tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())["datasets"][0]
    assert {"metric": "musiq", "reason": "no weights on the disk"} in stored["absent"]
    assert not any("niqe" in row["means"] for row in stored["groups"][0]["rows"])
    text = dataset_report(result)
    assert "MUSIQ (no weights on the disk)" in text and "NIQE ↓" not in text


def test_results_read_back_as_they_were(finished, tmp_path):
    results = Results(
        (collect(finished, finished.datasets[0]),), ({"name": "one", "sha256": {"base": "00"}},),
        {"versions": versions(), "settings": {"steps": [1, 30]}},
    )  # fmt: skip
    write_results(results, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "Infinity" not in text and "NaN" not in text and '"inf"' in text  # strict JSON
    again = read_results(tmp_path / "results.json")
    assert again == results
    assert dataset_report(again.datasets[0]) == dataset_report(results.datasets[0])
    assert again.dataset("tiny").groups[0].rows[2].means["psnr_y"] == math.inf
    assert {"python", "torch", "numpy"} <= again.made_with["versions"].keys()
    with pytest.raises(InputError, match="no dataset 'other'"):
        again.dataset("other")
    for content in ("{}", "no json", text.replace('"format": 1', '"format": 2')):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match="run `eval` again"):
            read_results(tmp_path / "bad.json")


def test_the_plot_draws_each_model_over_its_steps(finished, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot needs the package matplotlib")
    result = collect(finished, finished.datasets[0])
    lines = curves(result, column("psnr_y"))
    assert set(lines) == {"one", "two"} and lines["one"][0] == [1, 30]
    assert lines["one"][1] == [result.means("one")[steps]["psnr_y"] for steps in (1, 30)]
    assert set(baselines(result, column("psnr_y"))) == {"bicubic", "lanczos"}  # the originals' is infinite
    assert set(baselines(result, column("grid_peak"))) == {"bicubic", "lanczos", "HQ"}
    save_plot(Results((result, result)), tmp_path / "plot.png")
    picture = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))
    assert picture.shape[0] > 400 and picture.std() > 5


def test_grids_show_the_middle_of_what_was_made(finished, tmp_path):
    two = dataclasses.replace(finished.datasets[0], pictures=finished.datasets[0].pictures[:2])
    paths = save_grids(finished, two, tmp_path)
    assert [path.name for path in paths] == ["grid_tiny_one.jpg", "grid_tiny_two.jpg"]
    width, height = Image.open(paths[0]).size
    assert width == 4 * 96 + 3 * GAP_PX  # LQ, 1 step, 30 steps, HQ
    assert height == TEXT_PX + 2 * 96 + GAP_PX  # two pictures
    last = np.asarray(Image.open(paths[0]))[TEXT_PX : TEXT_PX + 96, -96:].astype(int)
    assert abs(last - tiny_eval.smooth(96, 96, 0)).mean() < 4  # JPEG


def test_keys_of_the_columns_are_their_own():
    assert len({one.key for one in COLUMNS}) == len({one.title for one in COLUMNS}) == len(COLUMNS)
