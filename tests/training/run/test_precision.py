"""`run.autocast = true` means bf16 where that is faster; a run keeps its precision; doctor says which."""

import dataclasses
from pathlib import Path

import pytest
import torch

from training.pretrain.trainer import Pretrainer
from training.run import precision
from training.run.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from training.run.precision import choose_autocast

CPU = torch.device("cpu")


@pytest.fixture
def faster(monkeypatch):
    """faster(dtype): what a measurement on this CPU would find."""
    return lambda dtype: monkeypatch.setattr(precision, "choose_dtype", lambda name, device: dtype)


@pytest.mark.parametrize(
    ("requested", "found", "mixes_dtypes", "expected", "text"),
    [
        (True, torch.bfloat16, False, True, "bf16, which is faster than fp32"),
        (True, torch.float32, False, False, "fp32, which is faster than bf16"),
        (True, torch.float32, True, True, "base and adapter differ in dtype"),
        (False, torch.bfloat16, False, False, "run.autocast is false"),
    ],
)
def test_on_a_cpu_the_faster_dtype_is_chosen(faster, requested, found, mixes_dtypes, expected, text):
    faster(found)
    chosen, line = choose_autocast(requested, CPU, mixes_dtypes)
    assert chosen == expected and text in line and "\n" not in line


def test_an_accelerator_is_not_timed(monkeypatch):
    monkeypatch.setattr(precision, "choose_dtype", None)  # calling it would fail
    assert choose_autocast(True, torch.device("cuda"))[0] and not choose_autocast(False, torch.device("cuda"))[0]


def test_a_run_on_a_cpu_without_bf16_trains_in_fp32_and_says_so(config, faster, capsys):
    faster(torch.float32)
    run, plain = config("run", autocast=True), config("plain", autocast=False)
    for one in (run, plain):
        Pretrainer(one).train(last_step=2)
    err = capsys.readouterr().err
    assert err.count("steps run in fp32, which is faster than bf16 on this CPU") == 1
    a, b = (load_checkpoint(list_checkpoints(Path(one.run.output_dir))[-1])[0] for one in (run, plain))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_a_run_keeps_its_precision_when_another_machine_goes_on(config, faster):
    run = config(autocast=True)
    faster(torch.bfloat16)
    Pretrainer(run).train(last_step=1)
    faster(torch.float32)
    assert Pretrainer(run).use_autocast


def test_a_checkpoint_without_the_entry_was_trained_as_requested(config, faster):
    run = config(autocast=True)
    faster(torch.float32)
    Pretrainer(run).train(last_step=1)
    assert not Pretrainer(run).use_autocast
    tensors, state = load_checkpoint(list_checkpoints(Path(run.run.output_dir))[-1])
    del state["autocast"]
    save_checkpoint(Path(run.run.output_dir), state.pop("step"), tensors, state, keep=1)
    assert Pretrainer(run).use_autocast
    assert not Pretrainer(dataclasses.replace(config("other", autocast=False))).use_autocast
