"""Checkpoints are whole or absent, kept in number, and hold everything (T10)."""

import os

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.cli.commands import main as core_main
from teasr_core.errors import LoraFileError, ModelFileError
from teasr_core.weight_files.lora_file import read_lora
from teasr_core.weight_files.safetensors_writer import write_atomically
from training.run.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from training.run.ema import Ema


def tensors():
    return {"model.a": torch.randn(3, 5, generator=tiny.generator(0)), "optimizer.step.a": torch.tensor(7.0)}


def test_round_trip(tmp_path):
    state = {"config": {"run": {"seed": 1}}, "seconds": 0.1 + 0.2, "samples": 2**40}
    path = save_checkpoint(tmp_path / "run", 12, tensors(), state, keep=2)
    assert path.name == "step_00000012.safetensors"
    found, found_state = load_checkpoint(path)
    assert found_state == {"step": 12, **state}
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[key], value) for key, value in tensors().items())


def test_the_newest_are_kept_and_listed_in_order(tmp_path):
    for step in (5, 100, 20, 99999999):
        save_checkpoint(tmp_path, step, tensors(), {}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_00000100.safetensors",
        "step_99999999.safetensors",
    ]
    assert list_checkpoints(tmp_path / "none") == []


def test_temporary_and_foreign_files_are_never_listed(tmp_path):
    for name in (
        ".step_00000009.safetensors.123.tmp",
        "step_9.safetensors",
        "step_00000009.safetensors.tmp",
        "log.jsonl",
    ):
        (tmp_path / name).write_bytes(b"")
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("moment", ["save_file", "replace"])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, moment):
    from teasr_core.weight_files import safetensors_writer

    path = save_checkpoint(tmp_path, 1, tensors(), {"x": 1}, keep=2)
    before = path.read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors_writer if moment == "save_file" else os, moment, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, {"model.a": torch.zeros(1)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["truncated", "empty", "no metadata"])
def test_damaged_checkpoints_are_refused(tmp_path, damage):
    path = save_checkpoint(tmp_path, 1, tensors(), {}, keep=2)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        write_atomically(path, tensors(), {})
    with pytest.raises(ModelFileError) as caught:
        load_checkpoint(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


# The moving average


def test_ema_follows_its_formula():
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float32))
    ema, wanted = Ema([("w", weight)], decay=0.9), torch.zeros(3)
    for step in range(1, 200):
        with torch.no_grad():
            weight.add_(1)
        ema.update([("w", weight)], step)
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * weight.detach()
    assert torch.allclose(ema.shadow["w"], wanted, rtol=1e-5)
    assert float(weight.detach()[0] - ema.shadow["w"][0]) == pytest.approx(9, rel=1e-3)  # lags by 1/(1-d) - 1 steps


def test_ema_does_not_share_memory_with_the_weights():
    weight = torch.nn.Parameter(torch.ones(2))
    ema = Ema([("w", weight)], decay=0.5)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(ema.shadow["w"], torch.ones(2))


@pytest.mark.parametrize(("key", "what"), [("lora.x", "a LoRA"), ("model.x", "a whole base")])
def test_info_says_what_a_checkpoint_is_and_how_to_export_it(tmp_path, capsys, key, what):
    names = (key, f"optimizer.exp_avg.x.lora_A.{key}")  # which looks like an ordinary LoRA
    path = save_checkpoint(tmp_path, 12, {name: torch.zeros(2) for name in names}, {"config": {}}, keep=1)
    assert core_main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"training checkpoint of TEASR, {what} at step 12" in out
    assert f'python -m training export "{path}" ' in out
    with pytest.raises(LoraFileError, match=r"training checkpoint.*python -m training export"):
        read_lora(path)
