"""What goes wrong in a distillation: infinite gradients, a full disk, bad input on the command line (T6, T12)."""

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.tiny import run as tiny_run
from helpers.tiny.distill_run import assert_equal, changed, log_lines, newest, write_toml
from teasr_core.errors import InputError
from training.cli.commands import main
from training.distill.trainer import Distiller
from training.run.bad_steps import DivergedError
from training.run.checkpoint import list_checkpoints, load_checkpoint


def snapshot(trainer):
    """Everything a step may change."""
    kinds = {"weights": trainer.parameters, "ema": trainer.ema.shadow, "optimizer": trainer.optimizer.state_tensors()}
    return {f"{kind}.{k}": v.detach().clone() for kind, values in kinds.items() for k, v in values.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def plant(trainer, steps):
    """Make the gradient of one parameter infinite at these steps."""
    parameter = next(iter(trainer.parameters.values()))
    parameter.register_hook(lambda grad: grad * math.inf if trainer.step in steps else grad)


# Gradients that are not finite


def test_a_bad_step_leaves_the_weights_alone_and_the_run_goes_on(distillation):
    run = distillation(run={"log_every": 1}, train={"steps": 4})
    trainer = Distiller(run)
    plant(trainer, {2})
    trainer.train(last_step=2)
    before = snapshot(trainer)
    trainer.train(last_step=3)
    assert same(snapshot(trainer), before)
    assert (trainer.step, trainer.bad_steps.in_a_row, trainer.bad_steps.skipped) == (3, 1, 1)
    trainer.train()
    assert not same(snapshot(trainer), before)
    assert all(torch.isfinite(value).all() for value in snapshot(trainer).values())
    assert (trainer.bad_steps.in_a_row, trainer.bad_steps.skipped) == (0, 1)
    (path,) = Path(run.run.output_dir).glob("bad_step_*.json")
    report = json.loads(path.read_text())
    assert path.name == "bad_step_00000002.json"
    assert (report["step"], report["first_sample"]) == (2, 2) and report["grad_norm"] in ("inf", "nan")
    assert report.keys() >= {"lr", "data", "flow", "weighted/flow", "loss"}
    assert [line["skipped"] for line in log_lines(run)] == [0, 0, 1, 1]
    assert "flow" not in log_lines(run)[2]  # nothing of a step that did not count


@pytest.mark.parametrize(("section", "field", "value"), [("loss", "flow", 1e39), ("optim", "lr", math.inf)])
def test_a_run_that_stays_bad_stops_and_its_last_good_checkpoint_stays(distillation, capsys, section, field, value):
    run = distillation(run={"checkpoint_every": 1}, train={"steps": 9, "max_bad_steps": 3})
    Distiller(run).train(last_step=2)
    good = newest(run, 2)
    worse = changed(run, run={"output_dir": run.run.output_dir + "_worse"}, **{section: {field: value}})
    trainer = Distiller(worse)
    start = snapshot(trainer)
    with pytest.raises(DivergedError, match=r"3 steps in a row .* the last one is step 2: .*bad_step_\*\.json"):
        trainer.train()
    assert same(snapshot(trainer), start)
    assert len(list(Path(worse.run.output_dir).glob("bad_step_*.json"))) == 3
    assert "the weights stay as they are" in capsys.readouterr().err

    trainer = Distiller(run)  # the same in the middle of a good run
    plant(trainer, range(2, 9))
    with pytest.raises(DivergedError, match="the last one is step 4"):
        trainer.train()
    found = newest(run)
    assert found[1]["step"] == 4 and found[1]["bad_steps"] == 2
    assert all(torch.equal(value, found[0][key]) for key, value in good[0].items())
    resumed = Distiller(run)
    plant(resumed, range(2, 9))
    with pytest.raises(DivergedError, match="the last one is step 4"):  # it still knows of the two before
        resumed.train()


# A full disk


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_good_checkpoint(distillation, monkeypatch, call):
    whole, parts = (distillation(name, run={"checkpoint_every": 2}, train={"steps": 4}) for name in ("whole", "parts"))
    Distiller(whole).train()
    Distiller(parts).train(last_step=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(
            InputError, match=r"step_00000004\.safetensors cannot be written \(No space left on device\).*to resume"
        ):
            Distiller(parts).train()
    folder = Path(parts.run.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "step_00000002.safetensors"]
    Distiller(parts).train()
    assert_equal(newest(parts, 4), newest(whole))


def test_a_disk_that_fills_up_under_the_command(forks, distillation, tmp_path):
    """The operating system itself refuses to make a file larger than half a checkpoint."""
    whole, parts = (distillation(name, run={"checkpoint_every": 2}, train={"steps": 4}) for name in ("whole", "parts"))
    Distiller(whole).train()
    Distiller(parts).train(last_step=2)
    (path,) = list_checkpoints(Path(parts.run.output_dir))
    toml = write_toml(tmp_path / "run.toml", parts)
    pid = forks.start("helpers.tiny.distill_run:command_with_small_files", str(toml), path.stat().st_size // 2)
    assert forks.wait(pid) == 2
    assert "step_00000004.safetensors cannot be written (" in forks.log.read_text()
    assert list_checkpoints(path.parent) == [path] and list(path.parent.glob(".*")) == []
    assert load_checkpoint(path)[1]["step"] == 2
    assert main(["distill", str(toml)]) == 0
    assert_equal(newest(parts, 4), newest(whole))


# Bad input on the command line


@pytest.fixture
def command(tmp_path, distillation, capsys):
    """command(*overrides, **sections) -> (exit code, stderr) of `distill` on a tiny config."""

    def run(*overrides, **sections):
        options = {"train": {"steps": 1}} | sections
        toml = write_toml(tmp_path / "run.toml", distillation(**options))
        code = main(["distill", str(toml), *overrides])
        return code, capsys.readouterr().err

    return run


def refused(result):
    code, err = result
    assert code == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def folder_of(tmp_path, **sizes):
    """A folder of good photographs, and others of the sizes given."""
    folder = tiny_run.write_photos(tmp_path / "mine")
    for name, size in sizes.items():
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
    return folder


def test_an_empty_folder(command, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(command(data={"folders": [str(tmp_path / "empty")]}))
    assert "no image in it" in line and str(tmp_path / "empty") in line
    assert "data.folders is empty" in refused(command(data={"folders": []}))
    assert "there is no such folder" in refused(command(data={"folders": [str(tmp_path / "none")]}))


def test_an_unreadable_image_among_good_ones_is_skipped_counted_and_named(command, tmp_path):
    folder = folder_of(tmp_path)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (folder / "text.png").write_text("hello")
    code, err = command(data={"folders": [str(folder)]})
    assert code == 0
    assert "2 of 4 images usable" in err
    assert "skipped, unreadable: 2 (broken.jpg, text.png)" in err


def test_an_image_smaller_than_the_crop(command, tmp_path):
    code, err = command(data={"folders": [str(folder_of(tmp_path, small=(63, 80)))]})
    assert code == 0
    assert "skipped, smaller than 64 px a side: 1 (small.png)" in err  # 32 px and a margin of 16 px around them
    for path in (tmp_path / "mine").glob("[01].png"):
        path.unlink()
    line = refused(command(data={"folders": [str(tmp_path / "mine")]}))
    assert "no readable photograph of at least 64 px a side among 1" in line and "small.png" in line


def test_an_unknown_key_names_the_nearest(command):
    assert "unknown config key 'train.layuot': did you mean 'layout'?" in refused(command("train.layuot=rotate"))
    assert "unknown config key 'adaptor': did you mean 'adapter'?" in refused(command("adaptor.rank=4"))
    assert "train.layout is 'sideways': expected sequential, rotate or batched" in refused(
        command("train.layout=sideways")
    )


def test_a_missing_perceptual_backbone_says_which_option_and_where_to_get_it(command, tmp_path):
    line = refused(command("loss.perceptual=lpips-squeeze"))
    assert "loss.perceptual_backbone is empty" in line and "docs/training/start.md" in line
    nowhere = tmp_path / "none.safetensors"
    line = refused(command("loss.perceptual=lpips-squeeze", f"loss.perceptual_backbone={nowhere}"))
    assert "perceptual_backbone: no file at" in line and str(nowhere) in line and "torchvision" in line
    assert "docs/training/start.md" in line
    nowhere.write_bytes(b"not safetensors")
    assert "cannot be read" in refused(command("loss.perceptual=lpips-vgg", f"loss.perceptual_backbone={nowhere}"))
    assert "loss.perceptual is 'vgg': expected none, lpips-squeeze" in refused(command("loss.perceptual=vgg"))


def test_a_missing_base(command, tmp_path):
    line = refused(command(f"base.path={tmp_path / 'none.safetensors'}"))
    assert "none.safetensors" in line


def test_a_resumed_run_under_another_config(command):
    assert command()[0] == 0
    assert "adapter.alpha is 4.0, the checkpoint has 2.0" in refused(command("adapter.alpha=4.0"))
    assert "train.steps is 10, the checkpoint has 1" in refused(command("train.steps=10"))
