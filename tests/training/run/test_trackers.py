"""The trackers of a run: what they are given, what is missing, and that none of them can end a run."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny.distill_run import assert_equal, changed, log_lines, newest
from helpers.tiny.run import write_photos
from teasr_core.errors import ConfigError
from training.config.shared import RunConfig
from training.distill.trainer import Distiller
from training.objective.difference_log import BARS, DifferenceHistogram
from training.pretrain.trainer import Pretrainer
from training.run.trackers import Trackers


@pytest.fixture
def held_out(tmp_path):
    """A photograph for previews."""
    path = tmp_path / "held_out.png"
    Image.open(next(write_photos(tmp_path / "photos", 1).iterdir())).resize((160, 140)).save(path)
    return path


def board(folder):
    """What TensorBoard shows of a run."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def test_tensorboard_gets_values_previews_the_histogram_and_the_held_out_figures(distillation, held_out):
    run = {"preview_every": 2, "preview_images": [str(held_out)], "log_every": 1, "use_tensorboard": True}
    shown, plain = distillation("shown", run=run, train={"steps": 3}), distillation("plain", train={"steps": 3})
    for config in (shown, plain):
        Distiller(config).train()
    assert_equal(newest(shown, 3), newest(plain, 3))  # none of it changes what is trained
    found = board(Path(shown.run.output_dir))
    assert set(found.Tags()["images"]) == {"preview/raw", "preview/ema", "delta/histogram"}
    lines = [line for line in log_lines(shown) if "held_out/psnr_y_1" in line]
    assert [line["step"] for line in lines] == [2]
    assert {key for key in lines[0] if key.startswith("held_out/")} == {f"held_out/psnr_y_{n}" for n in (1, 2, 4, 8)}
    [event] = found.Scalars("held_out/psnr_y_8")
    assert (event.step, event.value) == (2, pytest.approx(lines[0]["held_out/psnr_y_8"], rel=1e-4))


def test_pretraining_shows_its_preview_too(config, held_out):
    run = config("run", preview_every=2, preview_images=(str(held_out),), use_tensorboard=True)
    Pretrainer(run).train(last_step=2)
    folder = Path(run.run.output_dir)
    assert board(folder).Tags()["images"] == ["preview/ema"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert 5 < lines[-1]["held_out/psnr_y_1"] < 100


def test_without_trackers_there_is_no_folder_and_an_old_run_may_begin_to_use_one(distillation):
    config = distillation(train={"steps": 4})
    Distiller(config).train(last_step=2)
    assert not (Path(config.run.output_dir) / "tensorboard").exists()
    Distiller(changed(config, run={"use_tensorboard": True, "project": "other"})).train()
    assert [event.step for event in board(Path(config.run.output_dir)).Scalars("loss")] == [4]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_named_tracker_that_is_not_installed_is_refused(distillation, monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else found(package))
    with pytest.raises(ConfigError, match=rf"run\.trackers names '{name}' and the package {name} is not installed"):
        Distiller(distillation(run={"trackers": [name]}))


def test_tensorboard_that_is_not_installed_costs_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    notes = []
    assert Trackers(RunConfig(output_dir=str(tmp_path)), {}, notes.append).opened == {}
    assert notes == ["no TensorBoard log: pip install tensorboard accelerate, or set run.use_tensorboard = false"]


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(tmp_path):
    pytest.importorskip("tensorboard")
    notes = []
    trackers = Trackers(RunConfig(output_dir=str(tmp_path)), {}, notes.append)
    trackers.opened = {"gone": object(), **trackers.opened}  # it has none of the methods
    for step in (1, 2):
        trackers.log(step, {"loss": 1.0 / step})
        trackers.image("picture", step, np.zeros((4, 5, 3), np.uint8))
    trackers.close()
    assert [note.split(" (")[0] for note in notes] == ["gone lacks values of this run"]
    assert [event.value for event in board(tmp_path).Scalars("loss")] == [1.0, 0.5]


def test_wandb_keeps_a_resumed_run_in_one(distillation, held_out, monkeypatch):
    """Offline: the service's own files hold what would be sent."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = distillation(run={"trackers": ["wandb"], "preview_every": 2, "preview_images": [str(held_out)],
                               "log_every": 1}, train={"steps": 4})  # fmt: skip
    Distiller(config).train(last_step=2)
    Distiller(config).train()
    folder = Path(config.run.output_dir)
    identity = (folder / "wandb_id.txt").read_text()
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert {run.name.rpartition("-")[2] for run in runs} == {identity}
    assert all(list(run.glob("files/media/images/preview/ema_*.png")) for run in runs)
    plain = distillation("plain", train={"steps": 4})
    Distiller(plain).train()
    assert_equal(newest(config, 4), newest(plain, 4))


def test_trackio_has_the_run_on_this_computer(distillation, held_out, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, at the import
    pytest.importorskip("trackio")
    config = distillation(run={"trackers": ["trackio"], "project": "tiny", "preview_every": 2, "log_every": 1,
                               "preview_images": [str(held_out)]}, train={"steps": 2})  # fmt: skip
    Distiller(config).train()
    files = [name for _, _, names in os.walk(tmp_path / "trackio") for name in names]
    assert any(name.startswith("tiny") and name.endswith(".db") for name in files), files
    assert any(name.endswith(".png") for name in files), files


def test_the_histogram_counts_every_value_in_its_bucket(tmp_path):
    histogram = DifferenceHistogram()
    assert histogram.draw(tmp_path / "none.png") is False
    assert not (tmp_path / "none.png").exists()
    delta = torch.tensor([[[[0.0, 0.1, -9.0]]], [[[9.0, 0.0, 0.0]]]])  # (2, 1, 1, 3)
    histogram.add(torch.tensor([0.1, 0.9]), delta)
    assert histogram.counts.sum(1).tolist() == [3, 0, 0, 0, 3]
    assert histogram.counts[0, 0] == 1 and histogram.counts[4, BARS - 1] == 1  # beyond reach: the outermost bars
    assert histogram.draw(tmp_path / "chart.png") is True
    assert histogram.counts.sum() == 0
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > 4 * picture.height
