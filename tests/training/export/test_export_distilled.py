"""Export of what the real distillation trainer has saved: an adapter, or with `trainable = "all"` a base."""

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from teasr_core.weight_files.base_file import build_velocity, read_base
from teasr_core.weight_files.lora_file import check_base, fingerprint, read_lora
from training.cli.commands import main
from training.config.distill import AdapterConfig, BaseConfig, DistillConfig, TrainConfig
from training.config.shared import DataConfig, DistillOptimConfig, RunConfig
from training.distill.trainer import Distiller
from training.export.lora import export_lora


@pytest.fixture
def distilled(tmp_path, photos):
    """distilled(trainable): a run of two steps on the tiny base; its trainer."""

    def run(trainable, encoder=None):
        config = DistillConfig(
            RunConfig(output_dir=str(tmp_path / "run"), threads=1, workers=0, autocast=False, log_every=100),
            BaseConfig(path=str(tiny.write_base(tmp_path / "tiny_base.safetensors", encoder=encoder))),
            AdapterConfig(trainable=trainable, rank=tiny.RANK, alpha=tiny.RANK / 2),
            data=DataConfig((str(photos),), cache_mb=20),
            train=TrainConfig(steps=2, crop_px=32),
            optim=DistillOptimConfig(lr=1e-2),
        )
        trainer = Distiller(config)
        trainer.train()
        return trainer

    yield run
    torch.set_flush_denormal(False)  # the trainer switches it on


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_adapter_of_a_run(distilled, tmp_path, weights):
    trainer, out = distilled("lora"), tmp_path / "lora.safetensors"
    assert main(["export", str(trainer.folder), str(out), "--weights", weights]) == 0
    lora = read_lora(out)
    base = read_base(tmp_path / "tiny_base.safetensors")
    check_base(lora, base.architecture, base.prediction, base.tensors)
    trained = trainer.ema.shadow if weights == "ema" else trainer.parameters
    assert lora.tensors.keys() == trained.keys()
    for key, value in trained.items():
        scale = 0.5 if ".lora_B." in key else 1.0
        assert torch.equal(lora.tensors[key], (value.detach() * scale).bfloat16())
    assert any(bool(value.any()) for key, value in lora.tensors.items() if ".lora_B." in key)
    assert torch.equal(lora.prompt_embeds, base.prompt_embeds.bfloat16())
    assert (lora.base, lora.step, lora.config["export"]["samples"]) == ("tiny", 2, 2)
    assert str(tmp_path) not in str(lora.config)


def test_a_whole_model_becomes_a_base(distilled, tmp_path, capsys):
    trainer, out = distilled("all"), tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="no LoRA"):
        export_lora(trainer.folder, out)
    assert main(["export", str(trainer.folder), str(out), "--weights", "raw"]) == 0
    assert "base, 2 steps" in capsys.readouterr().out
    base, before = read_base(out), read_base(tmp_path / "tiny_base.safetensors")
    assert (base.architecture, base.prediction, base.use_dtc) == (before.architecture, "lq_residual", True)
    assert torch.equal(base.codec.mean, before.codec.mean)
    assert base.training["distilled_from"] == fingerprint(before.tensors)
    for name, parameter in trainer.model.velocity.transformer.named_parameters():
        assert torch.equal(base.tensors[name], parameter.detach().bfloat16())
    z_t, z_lq = tiny.latents(batch=1)
    assert build_velocity(base)(z_t, torch.ones(1), z_lq, torch.zeros(1)).isfinite().all()


def test_a_whole_model_keeps_its_condition_encoder(distilled, tmp_path):
    trainer, out = distilled("all", tiny.condition_encoder()), tmp_path / "out.safetensors"
    assert main(["export", str(trainer.folder), str(out), "--weights", "ema"]) == 0
    z = tiny.latents()[1]
    found, wanted = read_base(out).codec.condition_encoder, tiny.condition_encoder()
    assert float((found(z) - wanted(z)).abs().max()) < 0.05  # bf16 weights


def test_tiny_distill_writes_what_the_trainer_writes(distilled, tmp_path):
    """The checkpoints that other tests make have the keys and the state of real ones."""
    from helpers.tiny import distill as tiny_distill
    from training.run.checkpoint import load_checkpoint, newest_checkpoint

    tensors, state = load_checkpoint(newest_checkpoint(distilled("lora").folder))
    made, made_state = load_checkpoint(newest_checkpoint(tiny_distill.write_run(tmp_path / "made")))

    def shapes(values):
        return {key: value.shape for key, value in values.items() if not key.startswith("optimizer.")}

    assert shapes(made) == shapes(tensors)
    assert made_state.keys() <= state.keys()
    assert made_state["lora"] == state["lora"]
