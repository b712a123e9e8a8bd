"""A run that was begun by the first trainer goes on; the file is one of its checkpoints, of a very small model."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny.run import write_photos
from training.config.pretrain import PretrainConfig
from training.config.toml import from_mapping
from training.pretrain.trainer import Pretrainer
from training.run.checkpoint import list_checkpoints, load_checkpoint

OLD = Path(__file__).parent / "data" / "first_format.safetensors"  # step 4 of 6: stages of 3 steps, 4 rows and 2 rows


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The config of that run, in whose folder the checkpoint lies."""
    monkeypatch.chdir(tmp_path)  # its folders are relative
    write_photos(tmp_path / "photos")
    config = from_mapping(PretrainConfig, load_checkpoint(OLD)[1]["config"], where="")
    Path(config.run.output_dir).mkdir()
    shutil.copyfile(OLD, Path(config.run.output_dir) / "step_00000004.safetensors")
    yield config
    torch.set_flush_denormal(False)  # the trainer switches it on


def test_all_of_its_state_is_taken_up_and_it_ends(run):
    trainer, old = Pretrainer(run), load_file(OLD)
    assert (trainer.step, trainer.samples, trainer.micro_step) == (4, 3 * 4 + 2, 4)
    for name, parameter in trainer.parameters.items():
        assert torch.equal(parameter, old[f"model.{name}"])
        assert torch.equal(trainer.ema.shadow[name], old[f"ema.{name}"])
    moments = {f"optimizer.{key}": value for key, value in trainer.optimizer.state_tensors().items()}
    assert moments.keys() == {key for key in old if key.startswith("optimizer.")}
    assert all(torch.equal(value, old[key]) for key, value in moments.items())
    trainer.train()
    tensors, state = load_checkpoint(list_checkpoints(trainer.folder)[-1])
    assert (state["step"], state["samples"]) == (6, 3 * 4 + 3 * 2)
    assert tensors.keys() == old.keys()  # in the same form
    assert not torch.equal(tensors["model.prompt_embeds"], old["model.prompt_embeds"])
