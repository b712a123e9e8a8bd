"""kill -9 at any moment changes nothing, and no checkpoint that can be found is partial (T10)."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from tiny_distill_run import assert_equal, newest

from training.checkpoint import list_checkpoints, load_checkpoint
from training.toml_config import to_mapping

KILLS = 20
SEED = 0  # of the moments
STEPS = 40


@pytest.fixture
def short_run(distillation):
    """short_run(name): the smallest run that saves after every step."""
    return lambda name, steps: distillation(name, run={"checkpoint_every": 1}, train={"steps": steps})


def check_files(folder: Path, shapes: dict) -> int:
    """Every checkpoint that is listed loads whole; the step of the newest, 0 without one."""
    step = 0
    for path in list_checkpoints(folder):
        tensors, state = load_checkpoint(path)
        step = state["step"]
        assert {key: value.shape for key, value in tensors.items()} == shapes
        assert path.stem == f"step_{step:08d}"
    return step


def test_kill_9_at_random_moments_changes_nothing(forks, short_run):
    whole, killed = short_run("whole", STEPS), short_run("killed", STEPS)
    values, folder = to_mapping(killed), Path(killed.run.output_dir)
    begin = time.perf_counter()
    assert forks.wait(forks.start("tiny_distill_run:train", to_mapping(whole))) == 0
    seconds_per_step = (time.perf_counter() - begin) / STEPS
    wanted = newest(whole, STEPS)
    shapes = {key: value.shape for key, value in wanted[0].items()}

    moments, met, log = random.Random(SEED), [], []
    for _ in range(KILLS):
        pid = forks.start("tiny_distill_run:train", values)
        before = check_files(folder, shapes)
        start = time.perf_counter()
        # One in four may die before its first step; the others have saved something of their own.
        if moments.random() < 0.75:
            while check_step(folder) == before and time.perf_counter() - start < 30:
                time.sleep(0.0005)
        time.sleep(moments.uniform(0, 2 * seconds_per_step))
        os.kill(pid, signal.SIGKILL)
        assert forks.wait(pid) == -signal.SIGKILL, forks.log.read_text()[-2000:]  # it was still at work
        met.append(check_files(folder, shapes))
        log.append((round(time.perf_counter() - start, 3), sorted(p.name for p in folder.glob(".*"))))
    print(seconds_per_step, met, log)
    assert met == sorted(met)
    assert 0 < met[-1] < STEPS
    assert forks.wait(forks.start("tiny_distill_run:train", values)) == 0
    assert_equal(newest(killed, STEPS), wanted)


def check_step(folder: Path) -> int:
    checkpoints = list_checkpoints(folder)
    return int(checkpoints[-1].stem.removeprefix("step_")) if checkpoints else 0
