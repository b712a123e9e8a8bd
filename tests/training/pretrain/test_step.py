"""What a pretraining step computes, that it learns, and the file that comes out."""

import dataclasses
import itertools
import multiprocessing
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.tiny import model as tiny
from helpers.tiny.run import ALL_ROLES, MODEL
from teasr_core.errors import InputError
from teasr_core.model.flow import interpolate
from teasr_core.sampling.sampler import initial_noise, sample
from teasr_core.sampling.schedule import linear_taus
from teasr_core.weight_files import base_file
from training.cli.commands import main
from training.config.pretrain import PretrainConfig, StageConfig
from training.config.toml import to_mapping
from training.data.dataset import CropDataset
from training.export.base import export_base
from training.objective import time_sampling
from training.objective.losses import consistency_target
from training.objective.texture import lattice_loss, texture_loss
from training.pretrain import trainer as pretrain
from training.pretrain.losses import pretrain_losses
from training.pretrain.model import PretrainModel
from training.pretrain.schedule import learning_rate
from training.pretrain.trainer import Pretrainer, split_roles
from training.run.bad_steps import DivergedError
from training.run.checkpoint import list_checkpoints, save_checkpoint

ROOT = Path(__file__).parents[3]


def test_roles_of_a_batch():
    assert split_roles(ALL_ROLES) == (2, 1, 1)
    assert split_roles(StageConfig(batch_size=10, data_share=0.34, flow_share=0.33, cons_share=0.33)) == (4, 3, 3)
    assert split_roles(StageConfig(batch_size=10, data_share=0.5, flow_share=0.3, cons_share=0.2)) == (5, 3, 2)
    assert split_roles(StageConfig()) == (32, 0, 0)


def test_the_learning_rate_warms_up_and_runs_linearly(config):
    run = config(stages=(ALL_ROLES, dataclasses.replace(ALL_ROLES, steps=4, lr_start=8e-4, lr_end=4e-4)))
    rates = [learning_rate(run, step) for step in range(10)]
    plain = [2e-3 - 1e-3 * step / 6 for step in range(6)] + [8e-4 - 1e-4 * step for step in range(4)]
    assert rates == pytest.approx([rate * min(1, (step + 1) / 4) for step, rate in enumerate(plain)])


@pytest.fixture
def random_model():
    """Every weight random: at its start proj_out is zero and most of the network without effect."""
    model = PretrainModel(MODEL, seed=0)
    shapes = {key: value.shape for key, value in model.transformer.state_dict().items()}
    model.transformer.load_state_dict(tiny.random_weights(shapes, seed=0))
    return model


@pytest.mark.parametrize("loss_space", ["pixel", "latent"])
def test_the_losses_of_a_batch_are_those_written_down(random_model, loss_space):
    lq, hq = torch.rand(2, 4, 3, 32, 32, generator=tiny.generator(1))
    codec, velocity = tiny.codec(), random_model.velocity()
    found = pretrain_losses(random_model, codec, (lq, hq), ALL_ROLES, loss_space, None, tiny.generator(2))

    source = tiny.generator(2)  # the same draws, in the same order
    z_0, z_lq = codec.encode(hq), codec.encode(lq)
    noise = torch.randn(z_0.shape, generator=source)
    t_flow = time_sampling.flow_times(1, source)
    t_cons, s_cons = time_sampling.consistency_times(1, source)
    weight = codec.pixel_weights if loss_space == "pixel" else 1.0

    x_fake = codec.decode(noise[:2] - velocity(noise[:2], torch.ones(2), z_lq[:2], torch.zeros(2)))
    data = (2 * x_fake - 2 * hq[:2]).square().mean() / 2  # half of the rows
    z_t = interpolate(z_0[2:3], noise[2:3], t_flow)
    v = velocity(z_t, t_flow, z_lq[2:3], t_flow)
    flow = (weight * (v - (noise - z_0)[2:3]) ** 2).mean() * max(float(t_flow), 0.1) ** 2 / 4
    z_t = interpolate(z_0[3:], noise[3:], t_cons)
    target = consistency_target(velocity, z_t, t_cons, z_lq[3:], s_cons)
    v = velocity(z_t, t_cons, z_lq[3:], s_cons)
    cons = (weight * (v - target) ** 2).mean() * max(float(t_cons), 0.1) ** 2 / 4
    assert {k: float(v.detach()) for k, v in found.items()} == pytest.approx(
        {"data": float(data.detach()), "flow": float(flow.detach()), "cons": float(cons.detach())}, rel=1e-4
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_data_rows_compare_the_result_of_several_steps_and_differentiate_the_last(random_model, steps):
    lq, hq = torch.rand(2, 2, 3, 48, 48, generator=tiny.generator(1))
    codec, velocity = tiny.codec(), random_model.velocity()
    stage = StageConfig(batch_size=2, crop_px=48, data_steps=(steps,), lattice_weight=2.0, texture_weight=0.5)
    found = pretrain_losses(random_model, codec, (lq, hq), stage, "pixel", None, tiny.generator(2))
    found["data"].backward()
    gradient = random_model.transformer.proj_out.weight.grad.clone()
    random_model.zero_grad()

    z_lq, taus = codec.encode(lq), linear_taus(steps)
    noise = torch.randn(z_lq.shape, generator=tiny.generator(2))
    with torch.no_grad():
        restored = 2 * codec.decode(sample(velocity, noise, z_lq, taus)) - 1
        whole, lattice = (restored - (2 * hq - 1)).square().mean(), lattice_loss(restored, 2 * hq - 1)
        texture = texture_loss(restored, 2 * hq - 1)
        z_t = sample(velocity, noise, z_lq, taus[:-1]) if steps > 1 else noise
    assert float(found["data"].detach()) == pytest.approx(float(whole), rel=1e-5)
    assert float(found["lattice"].detach()) == pytest.approx(2 * steps * float(lattice), rel=1e-4)  # once a step
    assert ("texture" in found) == (steps > 1)  # one step is for fidelity alone
    if steps > 1:
        assert float(found["texture"].detach()) == pytest.approx(0.5 * (steps - 1) * float(texture), rel=1e-4)
    t = taus[-2].expand(2)
    x_fake = codec.decode(z_t - taus[-2] * velocity(z_t.clone(), t, z_lq, torch.zeros(2)))
    (2 * x_fake - 2 * hq).square().mean().backward()
    assert torch.allclose(random_model.transformer.proj_out.weight.grad, gradient, rtol=1e-4, atol=1e-7)


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def test_autocast_covers_the_network_alone(random_model):
    """Latents, condition and decoding are those of float32, bit for bit; LPIPS is asked outside of it."""
    lq, hq = torch.rand(2, 4, 3, 48, 48, generator=tiny.generator(1))
    codec, seen, outside = tiny.codec(), [], []
    codec.condition_encoder = tiny.condition_encoder()
    random_model.transformer.register_forward_pre_hook(
        lambda *call: seen.append((call[2]["hidden_states"], torch.is_autocast_enabled("cpu"))), with_kwargs=True
    )

    def perceptual(x_fake, x_0):
        outside.append(torch.is_autocast_enabled("cpu"))
        return (x_fake - x_0).abs().mean((1, 2, 3))

    stage = dataclasses.replace(ALL_ROLES, data_steps=(2,), perceptual_weight=0.5, lattice_weight=1.0)
    arguments = random_model, codec, (lq, hq), stage, "pixel", perceptual
    exact = pretrain_losses(*arguments, tiny.generator(2))
    plain, seen[:] = list(seen), []
    found = pretrain_losses(*arguments, tiny.generator(2), autocast)
    assert [inside for _, inside in plain + seen] == [False] * 4 + [True] * 4  # a step, the batch, two halves
    z_lq = seen[1][0][:, seen[1][0].shape[1] // 2 :]  # (B, N, C*p*p), the condition's tokens
    assert torch.equal(z_lq, plain[1][0][:, plain[1][0].shape[1] // 2 :])
    assert torch.equal(seen[1][0][2:], plain[1][0][2:])  # z_t of the flow and cons rows, which no network made
    assert outside == [False] * 2
    for name, value in exact.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=0.05), name
        assert found[name].dtype == torch.float32


def test_a_perfect_result_has_no_loss_under_autocast():
    """An untrained model returns its condition, after any step; with LQ equal to HQ that is the exact latent."""
    model, hq = PretrainModel(MODEL, seed=0), torch.rand(2, 3, 48, 48, generator=tiny.generator(1))
    stage = StageConfig(batch_size=2, crop_px=48, data_steps=(2,), texture_weight=1.0)
    arguments = model, tiny.codec(), (hq, hq), stage, "pixel", None, tiny.generator(2), autocast
    found = {name: float(value.detach()) for name, value in pretrain_losses(*arguments).items()}
    assert found["data"] < 1e-12
    assert found["texture"] < 1e-5


def test_a_run_enters_its_autocast_there(config, monkeypatch):
    monkeypatch.setattr("training.run.precision.choose_dtype", lambda *_: torch.bfloat16)  # as on a CPU that has it
    trainer, seen = Pretrainer(config(stages=(dataclasses.replace(ALL_ROLES, steps=1),), autocast=True)), []
    network, decode = trainer.model.transformer, trainer.codec.decode
    network.register_forward_pre_hook(lambda *_: seen.append(("network", torch.is_autocast_enabled("cpu"))))
    monkeypatch.setattr(
        trainer.codec, "decode", lambda z: (seen.append(("codec", torch.is_autocast_enabled("cpu"))), decode(z))[1]
    )
    trainer.train()
    assert set(seen) == {("network", True), ("codec", False)}


def test_every_number_of_data_steps_comes_up():
    source = tiny.generator(0)
    drawn = [time_sampling.one_of((1, 2, 8), source) for _ in range(300)]
    assert {n: pytest.approx(drawn.count(n), abs=40) for n in (1, 2, 8)} == dict.fromkeys((1, 2, 8), 100)
    before = source.get_state()
    assert time_sampling.one_of((4,), source) == 4
    assert torch.equal(source.get_state(), before)


def test_every_weight_is_trained(random_model):
    lq, hq = torch.rand(2, 4, 3, 32, 32, generator=tiny.generator(1))
    losses = pretrain_losses(random_model, tiny.codec(), (lq, hq), ALL_ROLES, "pixel", None, tiny.generator(2))
    sum(losses.values()).backward()
    dead = {name for name, p in random_model.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0}
    # In the last block the text tokens act through keys and values alone, and those need no more than these.
    last = "transformer.transformer_blocks.1."
    assert {name.removeprefix(last).removesuffix(".weight").removesuffix(".bias") for name in dead} == {
        "attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2"
    }  # fmt: skip


def test_an_untrained_model_returns_the_lq_image():
    model, z_lq = PretrainModel(MODEL, seed=0), tiny.latents(1, 8, 8)[1]
    with torch.no_grad():
        found = sample(model.velocity(), initial_noise(0, 48, 8, 8), z_lq, linear_taus(4))
    assert torch.allclose(found, z_lq, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("workers", [0, 1])
def test_losses_that_stay_infinite_stop_the_run(config, monkeypatch, bad, workers):
    """With the weights as they were, without a checkpoint, and without data processes that keep the command alive."""
    run = config(workers=workers)
    trainer = Pretrainer(dataclasses.replace(run, optim=dataclasses.replace(run.optim, max_bad_steps=3)))
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    losses = pretrain.pretrain_losses
    monkeypatch.setattr(pretrain, "pretrain_losses", lambda *a: {k: v * bad for k, v in losses(*a).items()})
    with pytest.raises(DivergedError, match=r"3 steps in a row .* the last one is step 2: .*lower lr_start") as caught:
        trainer.train()
    assert (
        multiprocessing.active_children() == []
    )  # while `caught` holds the frames, as the interpreter does at its end
    assert caught.traceback
    assert all(torch.equal(p, before[name]) for name, p in trainer.parameters.items())
    assert list_checkpoints(trainer.folder) == []
    assert len(list(trainer.folder.glob("bad_step_*.json"))) == 3


def test_a_perfect_result_can_be_logged(config, monkeypatch):
    """LQ equal to HQ and a model that returns the LQ image: no error before, none after."""
    flat = torch.full((4, 3, 32, 32), 0.5)
    monkeypatch.setattr(pretrain, "batches", lambda *_: (pair for pair in [(flat, flat)] * 2))
    trainer = Pretrainer(config(stages=(dataclasses.replace(ALL_ROLES, steps=2),), log_every=1))
    trainer.codec = tiny.codec()
    trainer.train()
    assert trainer.step == 2


def test_it_learns(config, monkeypatch):
    """60 steps on two crops, eight times each batch: the one-step error falls at least five-fold (27-fold measured)."""
    stage = StageConfig(steps=60, crop_px=32, batch_size=8, lr_start=3e-3, lr_end=7e-4)
    run = config(stages=(stage,))
    crops = CropDataset(dataclasses.replace(run.data, scales={"4": 1.0}), 32, seed=0)
    lq, hq = (torch.stack(images * 4) for images in zip(crops[0], crops[1], strict=True))
    monkeypatch.setattr(pretrain, "batches", lambda *_: ((lq, hq) for _ in itertools.count()))
    trainer = Pretrainer(run)

    def error(model, steps):
        z_lq = trainer.codec.encode(lq[:2])
        restored = sample(model.velocity(), initial_noise(99, *z_lq.shape[1:]), z_lq, linear_taus(steps))
        return float((trainer.codec.decode(restored) - hq[:2]).square().mean())

    before = error(trainer.model, 1)
    assert before == pytest.approx(float((lq[:2] - hq[:2]).square().mean()), rel=1e-3)
    trainer.train()
    assert error(trainer.model, 1) < before / 5
    assert error(trainer.ema_model(), 1) < before / 2  # the average lags behind


# Export


def test_an_exported_file_is_the_averaged_model(config, tmp_path):
    run = config()
    trainer = Pretrainer(run)
    trainer.train()
    summary = export_base(Path(run.run.output_dir), tmp_path / "base.safetensors")
    assert summary["steps"] == 6
    base = base_file.read_base(tmp_path / "base.safetensors")
    assert (base.prediction, base.use_dtc, base.training["samples"]) == ("lq_residual", True, 24)
    assert torch.equal(base.codec.std, trainer.codec.std)
    assert all(tensor.dtype == torch.bfloat16 for tensor in base.tensors.values())
    z_t, z_lq = tiny.latents()
    arguments = z_t, torch.tensor([1.0, 0.5]), z_lq, torch.tensor([0.0, 0.2])
    found = base_file.build_velocity(base).clean(*arguments) - z_lq  # what the network says
    wanted, raw = (m.velocity().clean(*arguments) - z_lq for m in (trainer.ema_model(), trainer.model))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02  # bf16 weights
    assert float((found - raw.detach()).norm() / wanted.norm()) > 0.05  # and not the raw ones


def test_export_refusals(config, tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        export_base(tmp_path / "none", tmp_path / "base.safetensors")
    run = config(stages=(dataclasses.replace(ALL_ROLES, steps=1),))
    Pretrainer(run).train()
    with pytest.raises(InputError, match=r"\.safetensors"):
        export_base(Path(run.run.output_dir), tmp_path / "base.pt")
    (only,) = list_checkpoints(Path(run.run.output_dir))
    before = only.read_bytes()
    with pytest.raises(InputError, match="is the file to read"):
        export_base(Path(run.run.output_dir), only.parent / ".." / only.parent.name / only.name)
    assert only.read_bytes() == before
    assert not list(tmp_path.glob("base*"))


def test_an_existing_file_is_replaced_only_when_asked(config, tmp_path, capsys):
    run = config(stages=(dataclasses.replace(ALL_ROLES, steps=1),))
    Pretrainer(run).train()
    out = tmp_path / "base.safetensors"
    out.write_text("mine")
    command = ["export", run.run.output_dir, str(out)]
    assert main(command) == 2
    assert "exists already: give another name or pass --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert base_file.read_base(out).training["steps"] == 1


def test_a_base_of_any_size_is_exported(tmp_path):
    """48 MB is the limit of the shipped files (docs/decisions.md#built-in-files), not of a user's own model."""
    model = dataclasses.replace(MODEL, encoder_blocks=25, encoder_width=256)  # 56 MiB in bf16
    untrained = PretrainModel(model, seed=0)
    codec, config = tiny.codec(), to_mapping(PretrainConfig(model=model))
    tensors = {f"ema.{name}": parameter for name, parameter in untrained.named_parameters()}
    state = {"config": config, "codec": base_file.codec_to_json(codec), "samples": 0, "seconds": 0.0}
    save_checkpoint(tmp_path, 1, tensors, state, keep=1)
    export_base(tmp_path, tmp_path / "base.safetensors")
    assert (tmp_path / "base.safetensors").stat().st_size > 48 * 2**20
    assert base_file.read_base(tmp_path / "base.safetensors").codec.condition_encoder.blocks == 25


# The command


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "none.toml"],
        ["pretrain"],
        ["pretrain", "training/configs/pretrain/smoke.toml", "run.sede=1"],
        ["export", "no", "x"],
    ],
)
def test_bad_commands_are_one_line(arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_the_smoke_config_trains_with_photographs_named_on_the_command_line(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    smoke = str(ROOT / "training" / "configs" / "pretrain" / "smoke.toml")
    assert main(["pretrain", smoke, f'data.folders=["{photos}"]', "run.workers=0"]) == 0
    assert "step 20" in capsys.readouterr().out
    assert list_checkpoints(tmp_path / "runs" / "smoke")[-1].name == "step_00000020.safetensors"
    assert len((tmp_path / "runs" / "smoke" / "log.jsonl").read_text().splitlines()) == 4
    assert main(["pretrain", smoke, 'run.output_dir="runs/none"']) == 2  # no photographs named
    assert "data.folders is empty" in capsys.readouterr().err


def test_photographs_that_fit_the_crops_alone_are_enough(photos, tmp_path, capsys):
    """80 px for crops of 32: the codec is measured on crops of that size too."""
    for path in photos.iterdir():
        Image.open(path).resize((80, 80)).save(tmp_path / path.name)
    smoke = str(ROOT / "training" / "configs" / "pretrain" / "smoke.toml")
    options = ["run.workers=0", "stages.0.steps=1", "stages.1.steps=1", f"run.output_dir={tmp_path / 'run'}"]
    assert main(["pretrain", smoke, f'data.folders=["{tmp_path}"]', *options]) == 0
    assert "2 of 2 images usable" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrain", "distill"])
def test_an_output_folder_that_cannot_be_made(photos, tmp_path, capsys, name):
    (tmp_path / "file").write_text("hello")
    smoke = str(ROOT / "training" / "configs" / name / "smoke.toml")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main([name, smoke, f'data.folders=["{photos}"]', f"run.output_dir={folder}"]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: run.output_dir is {folder}, where nothing can be written (")
        assert len(line.splitlines()) == 1
