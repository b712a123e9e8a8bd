"""Pretraining resumes exactly, after a stop, a signal or kill -9, and refuses what would make it another run (T10)."""

import dataclasses
import json
import math
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from helpers.tiny.run import ALL_ROLES, model_toml
from teasr_core.cli.terminal import STOP_SIGNALS
from teasr_core.errors import ConfigError, ModelFileError
from training.config.pretrain import load_config
from training.pretrain.resume import check_resumable
from training.pretrain.trainer import Pretrainer
from training.run.bad_steps import DivergedError
from training.run.checkpoint import list_checkpoints, load_checkpoint


def checkpoint(config, step=None):
    """(tensors, state without the clock and the folder) of a run's newest checkpoint."""
    tensors, state = load_checkpoint(list_checkpoints(Path(config.run.output_dir))[-1])
    assert step is None or state["step"] == step
    del state["seconds"], state["config"]["run"]
    return tensors, state


def equal(a, b):
    """Bit for bit, every tensor and the rest of the state."""
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    different = [key for key, value in a[0].items() if not torch.equal(value, b[0][key])]
    assert different == []
    return True


# Resume


@pytest.mark.parametrize("autocast", [False, True])
def test_six_steps_equal_three_and_three(config, autocast):
    whole, parts = config("whole", autocast=autocast), config("parts", autocast=autocast)
    Pretrainer(whole).train()
    Pretrainer(parts).train(last_step=3)
    assert checkpoint(parts, step=3)
    Pretrainer(dataclasses.replace(parts, run=dataclasses.replace(parts.run, workers=1))).train()
    wanted = checkpoint(whole, step=6)
    assert equal(checkpoint(parts), wanted)
    kinds = {key.split(".")[0] + "." + key.split(".")[1] for key in wanted[0] if key.startswith("optimizer")}
    assert kinds == {"optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq"}
    assert {key.split(".")[0] for key in wanted[0]} == {"model", "ema", "optimizer"}
    assert all(float(wanted[0][key].abs().max()) > 0 for key in wanted[0] if "exp_avg." in key and "proj_out" in key)


def test_resume_across_stages(config):
    stages = (
        dataclasses.replace(ALL_ROLES, steps=2),
        dataclasses.replace(ALL_ROLES, steps=3, batch_size=2, crop_px=16),
    )
    whole, parts = config("whole", stages=stages), config("parts", stages=stages)
    Pretrainer(whole).train()
    for step in (1, 2, 4, 5):
        Pretrainer(parts).train(last_step=step)
    assert equal(checkpoint(parts), checkpoint(whole, step=5))


def test_a_bad_step_is_skipped_and_the_run_resumes_across_it(config, capsys):
    """Weights, averages and moments stay; the step and its samples count, in one run and in two."""

    def planted(run):
        trainer = Pretrainer(run)
        parameter = trainer.parameters["transformer.proj_out.weight"]
        parameter.register_hook(lambda grad: grad * math.inf if trainer.step in (2, 3) else grad)
        return trainer

    whole, parts = config("whole", log_every=1), config("parts", checkpoint_every=1)
    planted(whole).train()
    planted(parts).train(last_step=2)
    before = checkpoint(parts, step=2)
    planted(parts).train(last_step=3)
    after = checkpoint(parts, step=3)
    assert after[0].keys() == before[0].keys()
    assert all(torch.equal(value, before[0][key]) for key, value in after[0].items())
    assert (after[1]["samples"], after[1]["bad_steps"], after[1]["skipped"]) == (12, 1, 1)
    assert "step 2: the gradient's norm is" in capsys.readouterr().err
    planted(parts).train()
    assert equal(checkpoint(parts), checkpoint(whole, step=6))
    assert (checkpoint(whole)[1]["bad_steps"], checkpoint(whole)[1]["skipped"]) == (0, 2)
    folder = Path(whole.run.output_dir)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 2, 2, 2]
    assert ["data" in line for line in lines] == [True, True, False, False, True, True]
    report = json.loads((folder / "bad_step_00000003.json").read_text())
    assert (report["step"], report["first_sample"]) == (3, 12) and report["grad_norm"] in ("inf", "nan")

    fewer = dataclasses.replace(config("few"), optim=dataclasses.replace(parts.optim, max_bad_steps=2))
    planted(fewer).train(last_step=3)
    with pytest.raises(DivergedError, match=r"2 steps in a row .* step 3"):  # it still knows of the one before
        planted(fewer).train()


def test_a_finished_run_does_nothing_more(config):
    run = config(stages=(dataclasses.replace(ALL_ROLES, steps=1),))
    Pretrainer(run).train()
    wanted = checkpoint(run)
    Pretrainer(run).train()
    assert equal(checkpoint(run), wanted)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_saves_after_the_step_and_the_run_resumes(config, monkeypatch, signum):
    whole, parts = config("whole"), config("parts")
    Pretrainer(whole).train()
    update = Pretrainer._update

    def interrupted(self, *arguments):
        if self.step == 1:
            os.kill(os.getpid(), signum)
        return update(self, *arguments)

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "_update", interrupted)
        Pretrainer(parts).train()
    assert signal.getsignal(signum) == before
    assert checkpoint(parts, step=2)
    Pretrainer(parts).train()
    assert equal(checkpoint(parts), checkpoint(whole))


TOML = """
[run]
output_dir = {folder!r}
threads = 1
workers = 0
autocast = false
checkpoint_every = 1
use_tensorboard = false
[data]
folders = [{photos!r}]
{model}
[[stages]]
steps = 40
crop_px = 32
batch_size = 4
data_share = 0.5
flow_share = 0.25
cons_share = 0.25
"""


def test_kill_9_at_random_moments_changes_nothing(forks, photos, tmp_path):
    """The command itself, killed twice in the middle of its work, ends with the weights of an undisturbed run."""
    path, killed, whole = tmp_path / "run.toml", tmp_path / "killed", tmp_path / "whole"
    path.write_text(TOML.format(folder=str(killed), photos=str(photos), model=model_toml(1)))
    command, delays = ["pretrain", str(path)], []
    for floor in (2, 15):
        pid = forks.start("training.cli.commands:main", command)
        while not any(int(checkpoint.stem[5:]) >= floor for checkpoint in list_checkpoints(killed)):
            assert forks.running(pid), forks.log.read_text()[-2000:]
            time.sleep(0.01)
        delays.append(random.uniform(0, 0.2))
        time.sleep(delays[-1])
        os.kill(pid, signal.SIGKILL)
        assert forks.wait(pid) == -signal.SIGKILL  # it was still at work
    pid = forks.start("training.cli.commands:main", command)
    Pretrainer(load_config(path, [f"run.output_dir={whole}"])).train()
    assert forks.wait(pid) == 0, forks.log.read_text()[-2000:]
    found, wanted = (load_checkpoint(list_checkpoints(folder)[-1]) for folder in (killed, whole))
    assert found[1]["step"] == wanted[1]["step"] == 40
    different = [key for key, value in wanted[0].items() if not torch.equal(found[0][key], value)]
    assert different == [], delays


# Checkpoints and configs that do not fit


def test_a_truncated_checkpoint_is_refused(config):
    run = config(keep_checkpoints=2, checkpoint_every=1)
    Pretrainer(run).train(last_step=2)
    newest = list_checkpoints(Path(run.run.output_dir))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=newest.name):
        Pretrainer(run)
    newest.unlink()  # as the message says
    assert Pretrainer(run).step == 1


def test_the_newest_checkpoints_are_kept(config):
    run = config(keep_checkpoints=2, checkpoint_every=1)
    Pretrainer(run).train(last_step=4)
    files = sorted(path.name for path in Path(run.run.output_dir).iterdir() if path.suffix == ".safetensors")
    assert files == ["step_00000003.safetensors", "step_00000004.safetensors"]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "seed", 1), ("run", "autocast", True), ("data", "min_zoom", 0.9), ("data", "presets", {"heavy": 1.0}),
        ("model", "num_layers", 1), ("model", "prediction", "velocity"), ("optim", "ema_decay", 0.5),
        ("loss", "loss_space", "latent"),
    ],
)  # fmt: skip
def test_a_changed_config_names_the_field(config, section, field, value):
    run = config()
    Pretrainer(run).train(last_step=1)
    changed = dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **{field: value})})
    with pytest.raises(ConfigError, match=rf"{section}\.{field}"):
        Pretrainer(changed)


def test_bookkeeping_may_change(config):
    run = config()
    Pretrainer(run).train(last_step=1)
    changed = dataclasses.replace(run.run, log_every=1, checkpoint_every=7, keep_checkpoints=1, workers=2)
    assert Pretrainer(dataclasses.replace(run, run=changed)).step == 1


def test_stages_under_way_may_only_change_their_end():
    def values(*stages):
        sections = {name: {} for name in ("data", "model", "optim", "loss", "run")}
        return {**sections, "stages": [dataclasses.asdict(stage) for stage in stages]}

    first, second = dataclasses.replace(ALL_ROLES, steps=5), dataclasses.replace(ALL_ROLES, steps=5, crop_px=48)
    saved = values(first, second)
    for step, changed, allowed in (
        (3, (dataclasses.replace(first, steps=9), second), True),
        (3, (dataclasses.replace(first, lr_end=1e-5), second), True),
        (3, (dataclasses.replace(first, batch_size=8), second), False),
        (3, (first, dataclasses.replace(second, batch_size=8)), True),
        (5, (dataclasses.replace(first, steps=9), second), False),
        (5, (first,), True),
        (3, (dataclasses.replace(first, steps=3), second), True),
        (7, (first, dataclasses.replace(second, crop_px=32)), False),
        (7, (first,), False),
    ):
        if allowed:
            check_resumable(saved, values(*changed), step)
        else:
            with pytest.raises(ConfigError, match=r"stages\[\d\] has begun"):
                check_resumable(saved, values(*changed), step)


@pytest.mark.parametrize(("steps", "at_step"), [(2, 3), (1, 2)])
def test_a_stage_does_not_end_before_what_is_done(config, steps, at_step):
    stages = (dataclasses.replace(ALL_ROLES, steps=4), dataclasses.replace(ALL_ROLES, steps=3))
    Pretrainer(config(stages=stages)).train(last_step=at_step)
    shorter = (dataclasses.replace(stages[0], steps=steps), stages[1])
    with pytest.raises(ConfigError, match=rf"stages\[0\]\.steps is {steps}, the checkpoint has done {at_step} of them"):
        Pretrainer(config(stages=shorter))
    ended = (dataclasses.replace(stages[0], steps=at_step), stages[1])
    trainer = Pretrainer(config(stages=ended))
    trainer.train()
    assert trainer.step == at_step + 3


def test_no_stages(config):
    with pytest.raises(ConfigError, match="no \\[\\[stages\\]\\]"):
        Pretrainer(config(stages=()))
