"""A distillation resumes exactly, after a stop or a signal, and refuses what would make it another run (T10)."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from helpers.tiny.distill_run import assert_equal, changed, newest
from teasr_core.cli.terminal import STOP_SIGNALS
from teasr_core.errors import ConfigError, ModelFileError
from teasr_core.weight_files.base_file import base_metadata
from teasr_core.weight_files.lora_file import PROMPT_KEY
from training.config.toml import to_mapping
from training.distill.resume import check_resumable
from training.distill.schedule import loss_weights, rectify_ramp
from training.distill.trainer import Distiller
from training.run.checkpoint import list_checkpoints

# Exactly


def test_six_steps_equal_three_and_three(distillation):
    whole, parts = distillation("whole"), distillation("parts")
    Distiller(whole).train()
    Distiller(parts).train(last_step=3)
    newest(parts, 3)  # it is there
    Distiller(changed(parts, run={"workers": 1})).train()
    wanted = newest(whole, 6)
    assert_equal(newest(parts), wanted)
    states = {key.split(".")[1] for key in wanted[0] if key.startswith("optimizer.")}
    assert states == {"step", "exp_avg", "exp_avg_sq"}
    assert all(bool(value.any()) for key, value in wanted[0].items())


@pytest.mark.parametrize("options", [
    {"adapter": {"trainable": "all"}, "optim": {"lr": 1e-3}},
    {"train": {"steps": 4, "layout": "rotate", "accumulation": 2}},
    {"train": {"steps": 4, "layout": "batched", "batch_size": 2}, "run": {"autocast": True}},
    {"ablation": {"tar": False}, "memory": {"checkpointing": "all"}},
    {"optim": {"kind": "adamw-cpu"}},
    {"optim": {"kind": "adamw-cpu"}, "adapter": {"dtype": "bf16"}, "run": {"autocast": True}},
    {"optim": {"kind": "adamw-8bit"}, "adapter": {"rank": 128}},
    {"optim": {"kind": "prodigy", "lr": 1.0, "lr_end": 0.0, "weight_decay": 0.01}},
    {"optim": {"kind": "adafactor", "schedule": "cosine", "lr_end": 0.0}},
], ids=["all", "rotate", "batched", "no tar", "adamw-cpu", "bf16 adapter", "adamw-8bit", "prodigy",
        "adafactor"])  # fmt: skip
def test_four_steps_equal_two_and_two(distillation, options):
    packages = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt"}
    pytest.importorskip(packages.get(options.get("optim", {}).get("kind"), "torch"))
    options = {"train": {"steps": 4}} | options
    whole, parts = distillation("whole", **options), distillation("parts", **options)
    Distiller(whole).train()
    Distiller(parts).train(last_step=2)
    Distiller(parts).train()
    wanted = newest(whole, 4)
    assert wanted[1]["skipped"] == 0
    assert_equal(newest(parts), wanted)
    if whole.optim.kind == "adamw-8bit":  # of a rank that is large enough for 8 bits
        assert any(value.dtype == torch.uint8 for value in wanted[0].values())


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_saves_after_the_step_and_the_run_resumes(distillation, signum):
    whole, parts = (distillation(name, train={"steps": 4}) for name in ("whole", "parts"))
    Distiller(whole).train()
    trainer, before = Distiller(parts), signal.getsignal(signum)
    parameter = next(iter(trainer.parameters.values()))
    handle = parameter.register_hook(lambda _: os.kill(os.getpid(), signum) if trainer.step == 1 else None)
    trainer.train()
    handle.remove()
    assert signal.getsignal(signum) == before
    newest(parts, 2)
    Distiller(parts).train()
    assert_equal(newest(parts, 4), newest(whole))


def test_a_finished_run_does_nothing_more(distillation, capsys):
    run = distillation(train={"steps": 1})
    Distiller(run).train()
    (path,) = list_checkpoints(Path(run.run.output_dir))
    written = path.stat().st_mtime_ns
    Distiller(run).train()
    assert "nothing to do" in capsys.readouterr().err
    assert path.stat().st_mtime_ns == written


def test_a_truncated_checkpoint_is_refused_and_an_older_one_taken(distillation):
    run = distillation(run={"checkpoint_every": 1}, train={"steps": 2})
    Distiller(run).train()
    path = list_checkpoints(Path(run.run.output_dir))[-1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=path.name):
        Distiller(run)
    path.unlink()  # as the message says
    assert Distiller(run).step == 1


# Changed configs


def description(**changes):
    return {"lora": {"prediction": "lq_residual", "base_fingerprint": "a"} | changes, "precision": {"image": "bf16"}}


def state_of(config, step=3, micro_steps=None):
    """The state of a checkpoint of this config."""
    count = config.train.accumulation if micro_steps is None else micro_steps
    return {"config": to_mapping(config), "step": step, "micro_steps": count, **description()}


def check(saved, wanted, step=3, micro_steps=None, now=None, **model):
    """check_resumable of a checkpoint of `saved` under the config `wanted`."""
    now = wanted.train.accumulation if now is None else now
    check_resumable(state_of(saved, step, micro_steps), wanted, now, description(**model))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "seed", 1), ("run", "autocast", True), ("adapter", "rank", 8), ("adapter", "alpha", 4.0),
        ("adapter", "targets", ["attn.to_k"]), ("adapter", "trainable", "all"), ("adapter", "init", "gaussian"),
        ("ablation", "tar", False), ("data", "presets", {"heavy": 1.0}), ("data", "folders", ["other"]),
        ("train", "batch_size", 2), ("train", "layout", "batched"), ("train", "steps", 9), ("train", "accumulation", 2),
        ("loss", "rectify", 0.5), ("loss", "loss_space", "latent"), ("optim", "lr", 1e-4),
        ("optim", "kind", "adamw-cpu"), ("optim", "ema_decay", 0.5),
    ],
)  # fmt: skip
def test_a_changed_field_is_named(distillation, section, field, value):
    run = distillation()
    with pytest.raises(ConfigError, match=rf"^{section}\.{field} is "):
        check(run, changed(run, **{section: {field: value}}))


def test_a_run_says_so_when_it_is_built(distillation):
    run = distillation()
    Distiller(run).train(last_step=1)
    with pytest.raises(ConfigError, match=r"^loss\.flow is 0\.5, the checkpoint has 1\.0: restore the old value"):
        Distiller(changed(run, loss={"flow": 0.5}))


def test_bookkeeping_may_change_and_files_may_move(distillation, tmp_path):
    run = distillation()
    Distiller(run).train(last_step=1)
    (tmp_path / "moved").mkdir()
    moved = tiny.write_base(tmp_path / "moved" / "tiny_base.safetensors")
    bookkeeping = {"log_every": 1, "checkpoint_every": 7, "keep_checkpoints": 1, "workers": 2, "preview_every": 3}
    assert Distiller(changed(run, run=bookkeeping, base={"path": str(moved)})).step == 1


def test_accumulation_and_processes_may_be_traded(distillation):
    two, one = distillation(train={"accumulation": 2}), distillation()
    check(two, one, micro_steps=2, now=2)  # one step of two processes
    check(one, two, micro_steps=2, now=2)
    with pytest.raises(ConfigError, match=r"accumulation x processes is 4, the checkpoint has 2"):
        check(two, two, micro_steps=2, now=4)


def test_another_model_is_refused(distillation):
    run = distillation()
    check(run, run)
    with pytest.raises(ConfigError, match=r"base\.path names another model .*lora differs"):
        check(run, run, base_fingerprint="b")


def test_another_base_of_the_same_name_is_refused(distillation, tmp_path):
    run = distillation()
    Distiller(run).train(last_step=1)
    other = tmp_path / "tiny_base.safetensors"
    tensors = load_file(run.base.path)
    tensors["proj_out.bias"] += 1
    save_file(tensors, other, metadata=base_metadata(tiny.ARCHITECTURE, "lq_residual", True, tiny.codec(), {}))
    with pytest.raises(ConfigError, match=r"base\.path names another model"):
        Distiller(changed(run, base={"path": str(other)}))


@pytest.mark.parametrize(
    ("saved", "wanted", "step", "lr_end", "allowed"),
    [
        (6, 9, 3, 1e-2, True),  # neither has a ramp
        (6, 9, 3, 1e-3, False),  # the learning rate of every step would differ
        (6, 10, 1, 1e-2, False),  # a ramp of one step is still to come
        (6, 10, 2, 1e-2, True),  # it would be over
        (100, 200, 39, 1e-2, False),
        (100, 200, 40, 1e-2, True),
        (200, 100, 39, 1e-2, False),
        (10_000, 50_000, 5, 1e-2, True),  # both ramps have their greatest length, 1000
        (9_000, 50_000, 1999, 1e-2, False),
        (9_000, 50_000, 2000, 1e-2, True),
    ],
)
def test_the_length_may_change_where_nothing_to_come_depends_on_it(distillation, saved, wanted, step, lr_end, allowed):
    old = distillation(train={"steps": saved}, optim={"lr": 1e-2, "lr_end": lr_end})
    new = changed(old, train={"steps": wanted})
    to_come = [step, step + 1, 2 * step, 2500]
    same = lr_end == 1e-2 and all(loss_weights(old, k) == loss_weights(new, k) for k in to_come)
    assert same == allowed  # the rule is what the schedule says
    if allowed:
        check(old, new, step)
    else:
        with pytest.raises(ConfigError, match=r"train\.steps"):
            check(old, new, step)


def test_a_run_made_longer_is_the_long_run(distillation):
    long = distillation("long", train={"steps": 4}, optim={"lr_end": 1e-2})
    short = distillation("short", train={"steps": 2}, optim={"lr_end": 1e-2})
    Distiller(long).train()
    Distiller(short).train()
    Distiller(changed(short, train={"steps": 4})).train()
    assert_equal(newest(short), newest(long, 4))


def test_the_ramp_is_a_tenth_of_the_run_and_at_most_a_thousand_steps():
    assert [rectify_ramp(steps) for steps in (1, 9, 10, 199, 5000, 10_000, 50_000)] == [0, 0, 1, 19, 500, 1000, 1000]


def test_a_field_younger_than_the_checkpoint_counts_as_its_default(distillation):
    run = distillation()
    state = state_of(run)
    del state["config"]["loss"]["w_max"], state["config"]["ablation"]
    check_resumable(state, run, 1, description())
    with pytest.raises(ConfigError, match=r"loss\.w_max"):
        check_resumable(state, changed(run, loss={"w_max": 5.0}), 1, description())


def test_a_folder_of_pretraining_is_refused(distillation, config):
    from training.pretrain.trainer import Pretrainer

    run = distillation("pretrained")
    Pretrainer(config("pretrained")).train(last_step=1)
    with pytest.raises(ConfigError, match=r"pretrained' holds a checkpoint that distill did not write, .*stages"):
        Distiller(run)


def test_pretraining_refuses_a_folder_of_distillation(distillation, config):
    from training.pretrain.trainer import Pretrainer

    Distiller(distillation("distilled")).train(last_step=1)
    with pytest.raises(ConfigError, match=r"distilled' holds a checkpoint that pretrain did not write, .*adapter"):
        Pretrainer(config("distilled"))


def test_another_prompt_is_refused(distillation, tmp_path):
    run = distillation()
    Distiller(run).train(last_step=1)
    other = tmp_path / "tiny_base.safetensors"
    tensors = load_file(run.base.path)
    tensors[PROMPT_KEY] += 1
    save_file(tensors, other, metadata=base_metadata(tiny.ARCHITECTURE, "lq_residual", True, tiny.codec(), {}))
    with pytest.raises(ConfigError, match=r"base\.prompt names another prompt"):
        Distiller(changed(run, base={"path": str(other)}))
