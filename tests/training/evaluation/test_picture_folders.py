"""`--pictures NAME=DIR`: results that were made elsewhere are measured like our own; what does not fit is refused."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from helpers.tiny import evaluation as tiny_eval
from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from teasr_core.image.luma import psnr_y
from teasr_core.weight_files import base_file
from training.cli.commands import main
from training.evaluation.datasets import open_datasets
from training.evaluation.picture_folders import open_picture_folders
from training.evaluation.run import folder_method, run_evaluation
from training.evaluation.tables.grids import save_grids
from training.evaluation.tables.plot import baselines
from training.evaluation.tables.report import dataset_report
from training.evaluation.tables.results import collect

SIDE = 64


@pytest.fixture
def pairs(tmp_path):
    return tiny_eval.write_pairs(tmp_path / "set", 2, side=SIDE)


def write_results(folder, count=2, side=SIDE, suffix="png"):
    """Pictures 0, 1, ... that another program could have made: the originals, a little darker."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(tiny_eval.smooth(side, side, index) // 2 + 60).save(folder / f"{index}.{suffix}")
    return folder


def evaluated(tmp_path, datasets, folders):
    methods = [*map(folder_method, folders), tiny_eval.Counter().method()]
    evaluation = tiny_eval.evaluation(tmp_path / "out", *methods, datasets=tuple(datasets), kept_pictures=2)
    run_evaluation(evaluation, show_progress=False)
    return evaluation


def test_the_pictures_of_a_folder_are_measured_as_they_are(tmp_path, pairs):
    datasets = open_datasets(pairs)
    results = write_results(tmp_path / "results")
    copies = tmp_path / "copies"  # the originals themselves, without loss in another kind of file
    copies.mkdir()
    for index in range(2):
        Image.fromarray(tiny_eval.smooth(SIDE, SIDE, index)).save(copies / f"{index}.tif")
    folders = open_picture_folders([f"other={results}", f"copy={copies}"], datasets)
    evaluation = evaluated(tmp_path, datasets, folders)
    result = collect(evaluation, datasets[0])
    wanted = [psnr_y(np.asarray(Image.open(results / f"{n}.png")), tiny_eval.smooth(SIDE, SIDE, n)) for n in range(2)]
    assert result.means("other")[0]["psnr_y"] == pytest.approx(np.mean(wanted))
    assert result.means("copy")[0]["psnr_y"] == math.inf and result.means("copy")[0]["gmsd"] == 0.0
    assert [row.model for row in result.groups[0].rows] == ["bicubic", "lanczos", "HQ", "other", "copy", "ours", "ours"]
    table = dataset_report(result)
    assert "| other | - |" in table and "| ours | 2 |" in table
    column = next(column for column in tiny_eval.own_metrics().pictures if column.key == "psnr_y").column
    assert set(baselines(result, column)) == {"bicubic", "lanczos", "other", "copy"}  # HQ against itself says nothing


def test_the_grid_shows_them(tmp_path, pairs):
    datasets = open_datasets(pairs)
    folders = open_picture_folders([f"other={write_results(tmp_path / 'results')}"], datasets)
    with_folder = evaluated(tmp_path, datasets, folders)
    (grid,) = save_grids(with_folder, datasets[0], tmp_path)
    wide = Image.open(grid).width
    (grid,) = save_grids(evaluated(tmp_path / "without", datasets, []), datasets[0], tmp_path)
    assert wide - Image.open(grid).width >= SIDE


def test_a_changed_picture_is_measured_again(tmp_path, pairs):
    datasets = open_datasets(pairs)
    results = write_results(tmp_path / "results")
    first, again = (open_picture_folders([f"other={results}"], datasets)[0] for _ in range(2))
    assert first.model_id == again.model_id
    before = collect(evaluated(tmp_path, datasets, [first]), datasets[0]).means("other")[0]["psnr_y"]
    Image.fromarray(tiny_eval.smooth(SIDE, SIDE, 1)).save(results / "1.png")
    (changed,) = open_picture_folders([f"other={results}"], datasets)
    assert changed.model_id != first.model_id
    assert collect(evaluated(tmp_path, datasets, [changed]), datasets[0]).means("other")[0]["psnr_y"] > before


def test_each_of_several_datasets_has_its_own_folder(tmp_path, pairs):
    other = tiny_eval.write_pairs(tmp_path / "more", 1, side=96)
    datasets = [*open_datasets(pairs), *open_datasets(other)]
    write_results(tmp_path / "results" / "set")
    with pytest.raises(InputError, match=r"no folder .*results/more, expected one for each of the 2 datasets"):
        open_picture_folders([f"x={tmp_path / 'results'}"], datasets)
    write_results(tmp_path / "results" / "more", 1, side=96)
    (folder,) = open_picture_folders([f"x={tmp_path / 'results'}"], datasets)
    assert len(folder.files) == 3
    assert len(open_picture_folders([f"x={tmp_path / 'results'}"], datasets[:1])[0].files) == 2


def test_photographs_without_originals_have_the_size_of_the_result(tmp_path):
    (tmp_path / "cam").mkdir()
    Image.fromarray(tiny_eval.smooth(20, 30, 0)).save(tmp_path / "cam" / "a.jpg")
    datasets = open_datasets(tmp_path / "cam", scale=2)
    (tmp_path / "x").mkdir()
    Image.fromarray(tiny_eval.smooth(40, 60, 0)).save(tmp_path / "x" / "a.webp")
    assert len(open_picture_folders([f"x={tmp_path / 'x'}"], datasets)[0].files) == 1


def test_what_does_not_fit_is_refused_by_name(tmp_path, pairs):
    datasets = open_datasets(pairs)
    results = write_results(tmp_path / "results")

    def refused(*texts, match, other_names=()):
        with pytest.raises(InputError, match=match):
            open_picture_folders(texts, datasets, other_names)

    refused("results", match="--pictures is 'results': expected NAME=DIR")
    refused(f"my results={results}", match="NAME=DIR")
    refused(f"hq={results}", match="--pictures hq: the name is taken")
    refused(f"x={results}", f"x={results}", match="the name is taken")
    refused(f"x={results}", f"X={results}", match="the name is taken")
    refused(f"Ours={results}", match="the name is taken", other_names=["ours"])
    refused(f"x={tmp_path / 'none'}", match=r"found no folder .*none")
    (results / "1.png").rename(results / "1_out.png")
    refused(f"x={results}", match=r"lacks 1 of the 2 pictures of 'set' \(1\); expected a file of the same name")
    write_results(results, side=60)
    refused(f"x={results}", match=r"0\.png has 60x60 px, expected 64x64; make it again")
    write_results(results)
    (results / "0.png").write_text("no picture")
    refused(f"x={results}", match=r"0\.png cannot be read as a picture")
    write_results(results)
    write_results(results, suffix="jpg")
    refused(f"x={results}", match=r"holds 0\.\w+ and 0\.\w+: expected one picture of each name")


def test_the_command_puts_them_beside_the_model_and_the_second_run_does_nothing(tmp_path, pairs, capsys, monkeypatch):
    monkeypatch.setattr(base_file, "ASSETS", tiny.write_assets(tmp_path / "assets"))
    results, out = write_results(tmp_path / "results", suffix="webp"), tmp_path / "out"
    command = ["eval", pairs, out, "--pictures", f"x4plus={results}", "--steps", "1", "--dtype", "fp32"]
    command = [*map(str, command), "--pyiqa", "none"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "| x4plus | - |" in printed.out and "| builtin | 1 |" in printed.out
    assert "made 10 of 10 results" in printed.err
    described = json.loads((out / "results.json").read_text())["models"]
    assert [model["name"] for model in described] == ["builtin", "x4plus"]
    assert described[1]["pictures"] == str(results)
    assert main(command) == 0
    assert "made 0 of 10 results" in capsys.readouterr().err
    (results / "1.webp").unlink()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --pictures x4plus: ") and "lacks 1 of the 2 pictures" in error
    assert len(error.splitlines()) == 1
