"""Pretraining with a condition encoder: first it alone, then the transformer behind it; starting from a base file."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers.tiny import model as tiny
from helpers.tiny.run import ALL_ROLES, MODEL
from teasr_core.errors import ConfigError
from teasr_core.weight_files.base_file import encoder_tensors, read_base
from teasr_core.weight_files.safetensors_reader import read_tensors
from training.cli.commands import main
from training.config.pretrain import ModelConfig, StageConfig, load_config
from training.export.base import export_base
from training.objective.texture import lattice_loss
from training.pretrain.blend import blend_encoder
from training.pretrain.losses import pretrain_losses
from training.pretrain.model import PretrainModel
from training.pretrain.schedule import learning_rate
from training.pretrain.trainer import Pretrainer

WITH_ENCODER = dataclasses.replace(MODEL, encoder_blocks=2, encoder_width=8)
ENCODER = StageConfig(steps=3, trains="encoder", crop_px=32, batch_size=4, lr_start=2e-3, lr_end=1e-3)
TRANSFORMER = dataclasses.replace(ALL_ROLES, steps=3)
TINY = dataclasses.replace(MODEL, prompt_tokens=tiny.PROMPT_TOKENS)  # the size of `tiny.write_base`


@pytest.fixture
def encoder_run(config):
    """encoder_run(folder, model, stages): the config of a run that trains an encoder and then a transformer."""

    def make(name="run", model=WITH_ENCODER, stages=(ENCODER, TRANSFORMER)):
        return dataclasses.replace(config(name, stages=stages), model=model)

    return make


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}


def changed(before, trainer):
    """Parts of the model that differ from `before`: encoder, transformer, prompt_embeds."""
    return {name.split(".")[0] for name, p in trainer.parameters.items() if not torch.equal(p, before[name])}


def test_each_stage_trains_its_own_part(encoder_run):
    trainer = Pretrainer(encoder_run())
    start = weights(trainer)
    trainer.train(last_step=3)
    assert changed(start, trainer) == {"condition_encoder"}
    middle = weights(trainer)
    trainer.train()
    assert changed(middle, trainer) == {"transformer", "prompt_embeds"}


def test_the_encoders_loss_is_that_of_its_own_picture():
    model, codec = PretrainModel(WITH_ENCODER, seed=0), tiny.codec()
    model.condition_encoder.load_state_dict(tiny.condition_encoder().state_dict())
    lq, hq = torch.rand(2, 4, 3, 32, 32, generator=tiny.generator(1))
    found = pretrain_losses(model, codec, (lq, hq), ENCODER, "pixel", None, tiny.generator(2))
    picture = codec.decode(tiny.condition_encoder()(codec.encode(lq)))
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(
        {"data": float((2 * picture - 2 * hq).square().mean())}, rel=1e-5
    )
    found["data"].backward()
    parts = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert parts == {"condition_encoder"}


def test_the_encoder_is_under_autocast_while_it_is_trained():
    """It is the network of its stage; the codec on both sides of it is not."""
    model, codec, inside = PretrainModel(WITH_ENCODER, seed=0), tiny.codec(), []
    lq = torch.rand(4, 3, 32, 32, generator=tiny.generator(1))
    encoder = model.condition_encoder
    encoder.register_forward_pre_hook(lambda _, z: inside.append((torch.is_autocast_enabled("cpu"), z[0])))
    bf16 = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    found = pretrain_losses(model, codec, (lq, lq), ENCODER, "pixel", None, tiny.generator(2), bf16)
    assert [flag for flag, _ in inside] == [True]
    assert torch.equal(inside[0][1], codec.encode(lq))
    assert float(found["data"].detach()) < 1e-12  # untrained it changes nothing


@pytest.mark.parametrize(
    "part", [ENCODER, dataclasses.replace(ALL_ROLES, data_share=1.0, flow_share=0.0, cons_share=0.0)]
)
def test_lpips_and_lattice_join_where_a_stage_asks_for_them(part):
    model, codec = PretrainModel(WITH_ENCODER, seed=0), tiny.codec()
    codec.condition_encoder = model.condition_encoder
    lq, hq = torch.rand(2, 4, 3, 32, 32, generator=tiny.generator(1))

    def perceptual(x_fake, x_0):
        return (x_fake - x_0).abs().mean((1, 2, 3))

    stage = dataclasses.replace(part, perceptual_weight=0.5, lattice_weight=2.0)
    found = pretrain_losses(model, codec, (lq, hq), stage, "pixel", perceptual, tiny.generator(2))
    assert set(found) == {"data", "lpips", "lattice"}
    assert float(found["lattice"].detach()) == pytest.approx(
        2 * float(lattice_loss(2 * lq, 2 * hq)), rel=1e-3
    )  # untrained
    without = pretrain_losses(model, codec, (lq, hq), stage, "pixel", None, tiny.generator(2))
    assert set(without) == {"data", "lattice"}


def test_the_transformer_sees_the_encoded_condition():
    model, lq, hq = PretrainModel(WITH_ENCODER, seed=0), *torch.rand(2, 4, 3, 32, 32, generator=tiny.generator(1))
    plain, encoded = tiny.codec(), tiny.codec()
    encoded.condition_encoder = tiny.condition_encoder()
    one_step = dataclasses.replace(ALL_ROLES, data_share=1.0, flow_share=0.0, cons_share=0.0)
    found = pretrain_losses(model, encoded, (lq, hq), one_step, "pixel", None, tiny.generator(2))["data"]
    untrained = (2 * encoded.decode(encoded.encode_lq(lq)) - 2 * hq).square().mean()  # it returns its condition
    assert float(found) == pytest.approx(float(untrained), rel=1e-4)
    without = pretrain_losses(model, plain, (lq, hq), one_step, "pixel", None, tiny.generator(2))["data"]
    assert float(without) == pytest.approx(float((2 * lq - 2 * hq).square().mean()), rel=1e-4)


def test_the_rate_warms_up_where_training_turns_to_another_part(encoder_run):
    stages = (ENCODER, dataclasses.replace(ENCODER, steps=2), dataclasses.replace(ALL_ROLES, steps=5))
    run = encoder_run(stages=stages)  # warm-up of 4 steps
    plain = [
        rate for s in stages for rate in (s.lr_start + (s.lr_end - s.lr_start) * k / s.steps for k in range(s.steps))
    ]
    factors = [0.25, 0.5, 0.75, 1, 1, 0.25, 0.5, 0.75, 1, 1]
    expected = [rate * factor for rate, factor in zip(plain, factors, strict=True)]
    assert [learning_rate(run, step) for step in range(10)] == pytest.approx(expected)


def test_a_run_resumes_exactly_in_either_stage(encoder_run):
    whole = Pretrainer(encoder_run("whole"))
    whole.train()
    for step in (2, 3, 5):
        Pretrainer(encoder_run("parts")).train(last_step=step)
    parts = Pretrainer(encoder_run("parts"))
    parts.train()
    assert parts.step == whole.step == 6
    assert changed(weights(whole), parts) == set()
    assert all(torch.equal(parts.ema.shadow[name], value) for name, value in whole.ema.shadow.items())


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_an_exported_file_has_the_encoder(encoder_run, tmp_path, which):
    run = encoder_run()
    trainer = Pretrainer(run)
    trainer.train()
    export_base(Path(run.run.output_dir), tmp_path / "base.safetensors", which)
    found = read_base(tmp_path / "base.safetensors").codec
    model = trainer.ema_model() if which == "ema" else trainer.model
    z = tiny.latents()[1]
    with torch.no_grad():
        wanted = model.condition_encoder(z) - z
    assert float((found.condition_encoder(z) - z - wanted).norm() / wanted.norm()) < 0.02  # bf16 weights


def test_an_exported_encoder_can_be_blended_with_a_base_files(encoder_run, tmp_path):
    run = encoder_run()
    Pretrainer(run).train()
    folder, files = Path(run.run.output_dir), {name: tmp_path / f"{name}.safetensors" for name in ("ema", "raw", "mix")}
    export_base(folder, files["ema"], "ema")
    export_base(folder, files["raw"], "raw")
    summary = export_base(folder, files["mix"], "ema", partial(blend_encoder, name=str(files["raw"]), share=0.25))
    assert summary["blend"] == {"encoder": "raw.safetensors", "share": 0.25}
    encoders = {name: read_base(path).codec.condition_encoder.state_dict() for name, path in files.items()}
    for key, value in encoders["mix"].items():
        wanted = 0.25 * encoders["raw"][key] + 0.75 * encoders["ema"][key]
        assert torch.allclose(value, wanted, rtol=0.01, atol=1e-6)  # bf16
    assert any(not torch.equal(encoders["ema"][key], encoders["raw"][key]) for key in encoders["ema"])
    others = [read_base(files[name]).tensors for name in ("ema", "mix")]
    assert all(torch.equal(others[0][key], others[1][key]) for key in others[0])


@pytest.mark.parametrize(
    ("share", "message"),
    [("0.5", "--blend-encoder: teasr_builtin.* has a condition encoder of"), ("half", "the share is 'half', expected"),
     ("2", "the share is 2, expected a number from 0 to 1")],
)  # fmt: skip
def test_what_cannot_be_blended_is_refused(encoder_run, tmp_path, capsys, share, message):
    run = encoder_run()
    Pretrainer(run).train()
    output = tmp_path / "base.safetensors"
    assert main(["export", run.run.output_dir, str(output), "--blend-encoder", "builtin", share]) == 2
    assert re.search(message, capsys.readouterr().err) and not output.exists()


def test_previews_show_the_averaged_encoder(encoder_run, photos, tmp_path, monkeypatch):
    seen = []
    Image.open(next(photos.iterdir())).resize((160, 140)).save(tmp_path / "held_out.png")
    monkeypatch.setattr(
        "training.pretrain.trainer.write_preview", lambda _path, _velocity, codec, *_rest: seen.append(codec)
    )
    run = encoder_run()
    shown = dataclasses.replace(run.run, preview_every=3, preview_images=(str(tmp_path / "held_out.png"),))
    trainer = Pretrainer(dataclasses.replace(run, run=shown))
    trainer.train(last_step=3)
    assert len(seen) == 1
    for name, value in encoder_tensors(seen[0]).items():
        assert torch.equal(value, trainer.ema.shadow[name])


# Starting from a base file


def test_a_run_starts_from_a_base_file(encoder_run, tmp_path):
    path = tiny.write_base(tmp_path / "start.safetensors", encoder=tiny.condition_encoder())
    run = encoder_run(model=dataclasses.replace(TINY, encoder_blocks=2, encoder_width=8, start=str(path)))
    trainer = Pretrainer(run)
    base, own = read_base(path), trainer.model.transformer.state_dict()
    assert all(torch.equal(own[name], value) for name, value in base.tensors.items())
    assert torch.equal(trainer.model.prompt_embeds, base.prompt_embeds)
    assert torch.equal(trainer.codec.std, base.codec.std)
    z = tiny.latents()[1]
    assert torch.equal(trainer.model.condition_encoder(z), base.codec.condition_encoder(z))
    assert torch.equal(trainer.ema.shadow["prompt_embeds"], base.prompt_embeds)
    trainer.train(last_step=1)
    Pretrainer(run)  # resumes, and does not start again
    assert trainer.step == 1


def test_an_encoder_may_come_from_a_base_file_with_another_transformer(encoder_run, tmp_path):
    path = tiny.write_base(tmp_path / "other.safetensors", encoder=tiny.condition_encoder())
    own = dataclasses.replace(TINY, encoder_blocks=2, encoder_width=8, num_layers=1)
    trainer = Pretrainer(encoder_run(model=dataclasses.replace(own, encoder_start=str(path))))
    base, z = read_base(path), tiny.latents()[1]
    assert torch.equal(trainer.model.condition_encoder(z), base.codec.condition_encoder(z))
    assert torch.equal(trainer.codec.std, base.codec.std)
    assert trainer.model.architecture.num_layers == 1


@pytest.mark.parametrize("source", ["none", "other", "builtin"])
def test_an_encoder_that_is_not_there_or_of_another_size_is_refused(encoder_run, tmp_path, source):
    width = 16 if source == "other" else 8
    path = tiny.write_base(tmp_path / "base.safetensors", encoder=tiny.condition_encoder() if width == 16 else None)
    start = source if source == "builtin" else str(path)
    model = dataclasses.replace(TINY, encoder_blocks=2, encoder_width=width, encoder_start=start)
    with pytest.raises(ConfigError, match=r"model\.encoder_start (is|has a condition encoder of) "):
        Pretrainer(encoder_run(model=model))


def test_encoder_and_transformer_of_other_statistics_are_refused(encoder_run, tmp_path):
    """The transformer would read a latent that it was not trained on."""
    start = tiny.write_base(tmp_path / "start.safetensors", encoder=tiny.condition_encoder())
    tensors, metadata = read_tensors(start)
    codec = json.loads(metadata["teasr.codec"])
    codec["std"] = [2 * value for value in codec["std"]]
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, metadata | {"teasr.codec": json.dumps(codec)})
    model = dataclasses.replace(TINY, encoder_blocks=2, encoder_width=8, start=str(start), encoder_start=str(other))
    with pytest.raises(ConfigError, match="other statistics of the latent"):
        Pretrainer(encoder_run(model=model))


def test_a_new_encoder_may_go_before_an_old_transformer(encoder_run, tmp_path):
    path = tiny.write_base(tmp_path / "start.safetensors")
    run = encoder_run(model=dataclasses.replace(TINY, encoder_blocks=2, encoder_width=8, start=str(path)))
    z = tiny.latents()[1]
    assert torch.equal(Pretrainer(run).model.condition_encoder(z), z)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 1}, "give .model. the same"),
        ({"prompt_tokens": 5}, "prompt_tokens"),
        ({"encoder_width": 16}, "condition encoder"),
        ({"encoder_blocks": 0}, "asks for none: set encoder_blocks = 2"),
    ],
)
def test_a_start_of_another_size_is_refused(encoder_run, tmp_path, change, message):
    path = tiny.write_base(tmp_path / "start.safetensors", encoder=tiny.condition_encoder())
    model = dataclasses.replace(TINY, **{"encoder_blocks": 2, "encoder_width": 8, "start": str(path)} | change)
    with pytest.raises(ConfigError, match=message):
        Pretrainer(encoder_run(model=model))


# Config


def test_the_defaults_have_no_encoder():
    assert ModelConfig().encoder_blocks == 0
    assert StageConfig().trains == "transformer"
    assert PretrainModel(MODEL, seed=0).condition_encoder is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[stages]]\ntrains = "vae"', "transformer or encoder"),
        ('[[stages]]\ntrains = "encoder"', "encoder_blocks above 0"),
        ('[model]\nencoder_blocks = 2\n[[stages]]\ntrains = "encoder"\ndata_share = 0\ncons_share = 1', "data rows"),
        ("[[stages]]\ntexture_weight = 0.1\ncrop_px = 32", "crop_px is 32: expected at least 48"),
        ('[model]\nencoder_blocks = 2\n[[stages]]\ntrains = "encoder"\ndata_steps = [1, 4]', "takes no steps"),
        ('[model]\nencoder_blocks = 2\n[[stages]]\ntrains = "encoder"\ntexture_weight = 0.1', "takes no steps"),
        ("[[stages]]\ndata_steps = []", "data_steps is .*: expected numbers of steps from 1 to 30"),
        ("[[stages]]\ndata_steps = [1, 31]", r"data_steps\[1\] is 31: expected 1 to 30"),
        ("[[stages]]\nboundary_time = 1.5", "boundary_time is 1.5: expected 0, or a time above 1/30"),
        ("[model]\nencoder_blocks = -1", "encoder_blocks is -1: expected at least 0"),
    ],
)  # fmt: skip
def test_config_refusals(tmp_path, text, message):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)
