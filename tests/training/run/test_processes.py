"""Two gloo processes do what one does with twice the accumulation; only the first writes (T13)."""

import dataclasses
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from helpers.tiny.distill_run import changed, log_lines, newest
from helpers.tiny.run import ALL_ROLES, MODEL
from training.config.pretrain import StageConfig
from training.config.toml import to_mapping
from training.distill.trainer import Distiller
from training.pretrain.trainer import Pretrainer
from training.run.checkpoint import list_checkpoints
from training.run.processes import Processes

LIMIT = 1e-6  # of |difference| / |weights|, over all trained weights and their averages
RATE = 8e-4  # as the shipped model was distilled with; Adam enlarges rounding errors of small gradients by it
STEPS = 4


@pytest.fixture
def pair(forks):
    """pair(config of rank 0, config of rank 1): starts both with `train` of a helper; their process ids."""

    def start(*configs, helper="helpers.tiny.distill_run"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pids = []
        for rank, config in enumerate(configs):
            env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            pids.append(forks.start(f"{helper}:train", to_mapping(config), env=env))
        return pids

    return start


@pytest.fixture
def two_and_one(distillation):
    """(config of two processes, that of one with twice the accumulation)."""
    return tuple(
        distillation(name, train={"steps": STEPS, "accumulation": count}, run={"log_every": 1},
                     optim={"lr": RATE, "lr_end": RATE})
        for name, count in (("two", 1), ("one", 2))
    )  # fmt: skip


def distance(found, wanted):
    assert found[0].keys() == wanted[0].keys()
    names = [name for name in wanted[0] if name.split(".")[0] in ("lora", "model", "ema")]
    a, b = (torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (found[0], wanted[0]))
    return float((a - b).norm() / b.norm())


def test_two_processes_equal_one_with_accumulation_2(forks, pair, two_and_one):
    two, one = two_and_one
    second = changed(two, run={"output_dir": two.run.output_dir + "_of_the_second"})
    codes = [forks.wait(pid) for pid in pair(two, second)]
    assert codes == [0, 0], forks.log.read_text()[-3000:]
    Distiller(one).train()
    found, wanted = newest(two, STEPS), newest(one, STEPS)
    measured = distance(found, wanted)
    assert measured <= LIMIT
    half = changed(one, run={"output_dir": one.run.output_dir + "_half"}, train={"accumulation": 1})
    Distiller(half).train()
    assert distance(newest(half, STEPS), wanted) > 1000 * LIMIT  # every micro-step counts
    assert found[1]["samples"] == wanted[1]["samples"] == 2 * STEPS
    assert not Path(second.run.output_dir).exists()  # the second process wrote nothing
    assert [line["step"] for line in log_lines(two)] == list(range(1, STEPS + 1))
    for a, b in zip(log_lines(two), log_lines(one), strict=True):  # the gradient is the mean's, the losses the first's
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_two_processes_pretrain_as_one_with_accumulation_2(forks, pair, config):
    """Across a stage that leaves half of the parameters without a gradient."""
    encoder = StageConfig(steps=2, trains="encoder", crop_px=32, batch_size=2, lr_start=2e-3, lr_end=1e-3)
    stages = encoder, dataclasses.replace(ALL_ROLES, steps=2)
    model = dataclasses.replace(MODEL, encoder_blocks=1, encoder_width=8)
    two = dataclasses.replace(config("two", stages=stages, log_every=1), model=model)
    doubled = tuple(dataclasses.replace(stage, accumulation=2) for stage in stages)
    one = dataclasses.replace(config("one", stages=doubled, log_every=1), model=model)
    assert [forks.wait(pid) for pid in pair(two, two, helper="helpers.tiny.run")] == [0, 0], forks.log.read_text()
    Pretrainer(one).train()
    found, wanted = newest(two, STEPS), newest(one, STEPS)
    measured = distance(found, wanted)
    assert measured <= LIMIT
    half = dataclasses.replace(config("half", stages=stages), model=model)
    Pretrainer(half).train()
    assert distance(newest(half, STEPS), wanted) > 1000 * LIMIT  # every micro-step counts
    assert found[1]["samples"] == wanted[1]["samples"] == 2 * (2 * 2 + 2 * 4)
    for a, b in zip(log_lines(two), log_lines(one), strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    Pretrainer(dataclasses.replace(two, stages=doubled))  # processes may be traded for accumulation


def test_a_signal_to_one_stops_both_at_one_step_and_one_process_goes_on(forks, pair, two_and_one):
    two, one = two_and_one
    long = changed(two, train={"steps": 60}, run={"checkpoint_every": 1})
    pids = pair(long, long)
    folder = Path(two.run.output_dir)
    while not list_checkpoints(folder):
        assert all(forks.running(pid) for pid in pids), forks.log.read_text()[-3000:]
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    assert [forks.wait(pid) for pid in pids] == [0, 0], forks.log.read_text()[-3000:]
    step = newest(long)[1]["step"]
    assert 1 <= step < 60
    alone = changed(long, train={"accumulation": 2}, run={"checkpoint_every": 100})
    resumed = Distiller(alone)
    assert resumed.step == step
    resumed.train(last_step=step + 1)
    whole = changed(alone, run={"output_dir": one.run.output_dir})
    Distiller(whole).train(last_step=step + 1)
    assert distance(newest(alone, step + 1), newest(whole, step + 1)) <= LIMIT


def test_one_process_alone(tmp_path):
    alone = Processes("cpu")
    assert (alone.count, alone.index, alone.is_main, alone.device.type) == (1, 0, True, "cpu")
    parameter = torch.nn.Parameter(torch.ones(3))
    alone.average_gradients([parameter])
    assert parameter.grad is None
    assert (alone.any(True), alone.any(False)) == (True, False)
