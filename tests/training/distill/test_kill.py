"""kill -9 at any moment changes nothing, and no checkpoint that can be found is partial (T10)."""

import dataclasses
import os
import random
import signal
import time
from pathlib import Path

import pytest

from helpers.tiny import model as tiny
from helpers.tiny.distill_run import assert_equal, newest
from training.config.toml import to_mapping
from training.run.checkpoint import list_checkpoints, load_checkpoint

KILLS = 20
SEED = 0  # of the moments
EARLY = 0.25  # share of the kills that may come before the process has done a step


@pytest.fixture
def short_run(distillation, tmp_path):
    """short_run(name, steps): one block, and a checkpoint after every step."""
    one_block = dataclasses.replace(tiny.ARCHITECTURE, num_layers=1)
    base = {"path": str(tiny.write_base(tmp_path / "one_block_base.safetensors", one_block))}
    return lambda name, steps: distillation(name, base=base, run={"checkpoint_every": 1}, train={"steps": steps})


def newest_step(folder):
    checkpoints = list_checkpoints(folder)
    return int(checkpoints[-1].stem.removeprefix("step_")) if checkpoints else 0


def whole_checkpoints(folder, shapes):
    """Steps of the checkpoints that are listed, every one of them loaded in full."""
    steps = []
    for path in list_checkpoints(folder):
        tensors, state = load_checkpoint(path)
        assert {key: value.shape for key, value in tensors.items()} == shapes
        steps.append(state["step"])
    return steps


def shapes_of(checkpoint):
    return {key: value.shape for key, value in checkpoint[0].items()}


def test_kill_9_at_random_moments_changes_nothing(forks, short_run):
    """No process gets further than two steps, so that the run cannot end before the last kill."""
    steps = 2 * KILLS + 4
    whole, killed = short_run("whole", steps), short_run("killed", steps)
    folder, moments = Path(killed.run.output_dir), random.Random(SEED)
    begin = time.perf_counter()
    assert forks.wait(forks.start("helpers.tiny.distill_run:train", to_mapping(whole))) == 0
    step_seconds = (time.perf_counter() - begin) / steps
    wanted = newest(whole, steps)

    met = [0]
    for _ in range(KILLS):
        pid = forks.start("helpers.tiny.distill_run:train", to_mapping(killed))
        if moments.random() >= EARLY:
            while newest_step(folder) == met[-1]:
                assert forks.running(pid), forks.log.read_text()[-2000:]
                time.sleep(step_seconds / 50)
        end = time.perf_counter() + moments.uniform(0, 2 * step_seconds)
        while time.perf_counter() < end and newest_step(folder) < met[-1] + 2:
            time.sleep(step_seconds / 50)
        os.kill(pid, signal.SIGKILL)
        assert forks.wait(pid) == -signal.SIGKILL, forks.log.read_text()[-2000:]  # it was still at work
        met.append(max([0, *whole_checkpoints(folder, shapes_of(wanted))]))
    assert met == sorted(met)
    assert KILLS / 2 < met[-1] < steps
    assert forks.wait(forks.start("helpers.tiny.distill_run:train", to_mapping(killed))) == 0
    assert_equal(newest(killed, steps), wanted)


def test_kill_9_within_a_save_changes_nothing(forks, short_run):
    whole, killed = short_run("whole", 14), short_run("killed", 14)
    folder = Path(killed.run.output_dir)
    assert forks.wait(forks.start("helpers.tiny.distill_run:train", to_mapping(whole))) == 0
    wanted = newest(whole, 14)
    for moment, kept, leaves_temporary in (
        ("half", [1, 2], True),
        ("flushed", [3, 4], True),
        ("renamed", [5, 6], True),
        ("deleted", [7, 8, 9], False),
    ):
        pid = forks.start("helpers.tiny.distill_run:train_until_killed_in_a_save", to_mapping(killed), moment, 3)
        assert forks.wait(pid) == -signal.SIGKILL, forks.log.read_text()[-2000:]
        assert whole_checkpoints(folder, shapes_of(wanted)) == kept, moment
        assert bool(list(folder.glob(".step_*.tmp"))) == leaves_temporary, moment
    assert forks.wait(forks.start("helpers.tiny.distill_run:train", to_mapping(killed))) == 0
    assert_equal(newest(killed, 14), wanted)
    assert [path.name for path in folder.glob(".*")] == []
    assert whole_checkpoints(folder, shapes_of(wanted)) == [13, 14]
