"""A distillation brings its losses down and writes what it should: log, previews, checkpoints."""

import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import model as tiny
from helpers.tiny.distill_run import assert_equal, changed, log_lines, newest
from helpers.tiny.run import write_photos
from teasr_core.errors import ConfigError
from teasr_core.image.labelled_sheet import GAP_PX, TEXT_PX
from training.data.dataset import batches
from training.distill.schedule import learning_rate, loss_weights
from training.distill.trainer import Distiller
from training.objective.difference_log import BUCKETS
from training.objective.draws import draw
from training.objective.objective import Batch, LossWeights
from training.run.checkpoint import list_checkpoints
from training.run.preview import CROP_PX

LOSSES = {"data", "lpips", "flow", "cons", "adv", "rectify"}
NEW_LOSSES = {"data": 1.3, "lpips": 0.7, "flow": 0.9, "cons": 1.1, "adv": 0.6, "rectify": 0.4}  # no two weights alike


def held_out_losses(trainer):
    """Mean losses over samples that no step draws, the same ones each time."""
    samples = batches(trainer.config.data, 32, 4, seed=123, first_sample=0, count=2, workers=0)
    totals = dict.fromkeys(LOSSES, 0.0)
    for index, (lq, hq) in enumerate(samples):
        batch = Batch.encode(trainer.model.codec, lq, hq)
        draws = draw(tuple(batch.z_0.shape), tiny.generator(index))  # type: ignore[arg-type]
        for name, value in trainer.objective.backward(batch, draws, LossWeights()).losses.items():
            totals[name] += value / 2
    trainer.optimizer.zero_grad()
    return totals


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.velocity.transformer.state_dict().items()}


# Training


def test_an_adapter_brings_every_loss_down_and_leaves_its_base_alone(distillation):
    trainer = Distiller(distillation(train={"steps": 24, "batch_size": 2}, optim={"lr_end": 1e-2}))
    before, base = held_out_losses(trainer), weights_of(trainer)
    trainer.train()
    after = held_out_losses(trainer)
    assert all(after[name] < before[name] for name in ("data", "flow", "cons", "adv")), (before, after)
    assert all(torch.equal(base[name], value) for name, value in weights_of(trainer).items())
    assert not any(p.requires_grad for p in trainer.model.velocity.transformer.parameters())
    assert all(bool(value.any()) for value in trainer.parameters.values())  # B has left zero everywhere
    for name, average in trainer.ema.shadow.items():
        assert torch.isfinite(average).all() and not torch.equal(average, trainer.parameters[name])


def test_all_weights_of_a_small_base_can_be_trained(distillation):
    trainer = Distiller(distillation(train={"steps": 12}, adapter={"trainable": "all"}, optim={"lr": 3e-3}))
    before, base = held_out_losses(trainer), weights_of(trainer)
    trainer.train()
    after = held_out_losses(trainer)
    assert all(after[name] < before[name] for name in ("data", "flow", "cons", "adv")), (before, after)
    moved = [name for name, value in weights_of(trainer).items() if not torch.equal(base[name], value)]
    # what acts on nothing that is read out, and what the softmax cancels, has no gradient
    assert len(moved) > 0.8 * len(base)
    tensors, state = newest(trainer.config, 12)
    assert {key.split(".")[0] for key in tensors} == {"model", "ema", "optimizer"}
    assert "model.prompt_embeds" in tensors and "lora" not in state


@pytest.mark.parametrize("options", [
    {"train": {"layout": "rotate", "accumulation": 4, "steps": 2}},
    {"train": {"layout": "batched", "steps": 2}},
    {"run": {"autocast": True}, "train": {"steps": 2}},
    {"train": {"steps": 2}, "memory": {"checkpointing": "all"}},
    {"train": {"steps": 2}, "loss": {"loss_space": "latent", "w_max": math.inf}},
], ids=["rotate", "batched", "autocast", "checkpointed", "latent"])  # fmt: skip
def test_every_way_to_run_a_step(distillation, options):
    trainer = Distiller(distillation(**options))
    trainer.train()
    assert trainer.step == 2 and trainer.bad_steps.skipped == 0
    (line,) = log_lines(trainer.config)
    assert line.keys() >= LOSSES | {f"weighted/{name}" for name in LOSSES}
    assert all(math.isfinite(line[name]) for name in LOSSES)
    assert all(bool(value.any()) for value in trainer.parameters.values())


def test_layouts_and_recomputed_blocks_take_the_same_step(distillation):
    """The gradients' own test is in float64 (test_objective_gradients.py)."""

    def weights(name, **options):
        trainer = Distiller(distillation(name, **options))
        trainer.train(last_step=1)
        return trainer.parameters

    plain = weights("plain")
    for name, options in (
        ("batched", {"train": {"layout": "batched"}}),
        ("recomputed", {"memory": {"checkpointing": "all"}}),
    ):
        for key, value in weights(name, **options).items():
            assert torch.allclose(value, plain[key], rtol=1e-3, atol=1e-5), (name, key)


# Ablation


def test_without_tar_the_rectification_has_another_weight(distillation):
    with_tar, without = (Distiller(distillation(str(tar), ablation={"tar": tar})) for tar in (True, False))
    for trainer in (with_tar, without):
        trainer.train(last_step=2)
    lines = [log_lines(trainer.config)[-1] for trainer in (with_tar, without)]
    assert lines[0]["weighted/rectify"] > 0  # a run so short has no ramp
    assert lines[0]["rectify"] != lines[1]["rectify"]
    assert any(not torch.equal(value, without.parameters[name]) for name, value in with_tar.parameters.items())


def test_without_dtc_the_base_must_be_one_without(distillation, tmp_path):
    fused = tiny.write_base(tmp_path / "fused_base.safetensors", **{"teasr.use_dtc": "false"})  # type: ignore[arg-type]
    options = {"base": {"path": str(fused)}, "train": {"steps": 2}}
    trainer = Distiller(distillation("fused", ablation={"dtc": False}, **options))
    assert trainer.model.velocity.use_dtc is False
    trainer.train()
    assert trainer.bad_steps.skipped == 0 and all(bool(value.any()) for value in trainer.parameters.values())
    for name, wrong in (("a", options), ("b", {"ablation": {"dtc": False}})):
        with pytest.raises(ConfigError, match=r"ablation\.dtc is .*each arm its own base"):
            Distiller(distillation(name, **wrong))


# What it writes


def test_the_log_has_every_loss_raw_and_weighted(distillation):
    config = distillation(run={"log_every": 1}, train={"steps": 20}, loss=NEW_LOSSES)  # rectify: 0 to step 2, full at 4
    trainer = Distiller(config)
    trainer.train(last_step=5)
    lines = log_lines(config)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for step, line in enumerate(lines):
        weights = loss_weights(config, step)
        for name in LOSSES - {"lpips"}:
            assert line[f"weighted/{name}"] == pytest.approx(getattr(weights, name) * line[name], rel=1e-4), name
        assert line["loss"] == pytest.approx(sum(line[f"weighted/{name}"] for name in LOSSES), rel=1e-4)
        assert line["lpips"] == line["weighted/lpips"] == 0  # perceptual = "none"
        assert line["lr"] == pytest.approx(learning_rate(config, step), rel=1e-4)
        assert line["peak_memory_mb"] > 0 and 0 <= line["data_wait"] <= 1 and line["seconds_per_step"] > 0
        assert line["grad_norm"] > 0 and line["skipped"] == 0
    assert [loss_weights(config, step).rectify for step in (0, 2, 3, 4, 9)] == pytest.approx([0, 0, 0.2, 0.4, 0.4])


def test_the_log_says_how_large_the_score_difference_is_at_which_s(distillation):
    config = distillation(run={"log_every": 2}, train={"batch_size": 8, "layout": "batched"})
    Distiller(config).train(last_step=2)
    (line,) = log_lines(config)
    buckets = {f"s{low:g}-{high:g}" for low, high in itertools.pairwise(BUCKETS)}
    for kind in ("abs", "rms_w"):
        named = {key.removeprefix(f"delta/{kind}_") for key in line if key.startswith(f"delta/{kind}_")}
        assert named <= buckets and len(named) >= 4  # of 16 draws of s
        assert all(line[f"delta/{kind}_{bucket}"] > 0 for bucket in named)
    assert 0 <= line["delta/clamped"] <= 1


def test_a_mean_of_the_log_is_over_its_own_window(distillation):
    every, pairs = (distillation(str(n), run={"log_every": n}) for n in (1, 2))
    for config in (every, pairs):
        Distiller(config).train(last_step=4)
    single, double = log_lines(every), log_lines(pairs)
    assert [line["step"] for line in double] == [2, 4]
    for k, line in enumerate(double):
        for name in ("data", "flow", "weighted/adv", "gain_db"):
            mean = (single[2 * k][name] + single[2 * k + 1][name]) / 2
            assert line[name] == pytest.approx(mean, rel=1e-4)


def test_the_time_of_a_step_is_without_previews_and_saves(distillation, monkeypatch):
    config = distillation(run={"log_every": 1, "checkpoint_every": 1}, train={"steps": 3})
    trainer = Distiller(config)
    saved = trainer.save
    monkeypatch.setattr(trainer, "save", lambda: (time.sleep(0.5), saved()))
    begin = time.perf_counter()
    trainer.train()
    total = time.perf_counter() - begin
    assert sum(line["seconds_per_step"] for line in log_lines(config)) < total - 1.9  # four saves


def test_previews_show_raw_and_averaged_weights_and_do_not_change_the_run(distillation, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    photograph = tmp_path / "held_out.png"
    Image.open(next(write_photos(tmp_path / "photos", 1).iterdir())).resize((160, 140)).save(photograph)
    shown = distillation("shown", run={"preview_every": 2, "preview_images": [str(photograph)], "log_every": 1,
                                       "use_tensorboard": True}, train={"steps": 3})  # fmt: skip
    plain = distillation("plain", train={"steps": 3})
    for config in (shown, plain):
        Distiller(config).train()
    folder = Path(shown.run.output_dir)
    names = [f"preview_00000002_{kind}.jpg" for kind in ("ema", "raw")]
    assert sorted(path.name for path in folder.glob("*.jpg")) == names
    pictures = [np.asarray(Image.open(folder / name)).astype(int) for name in names]
    side = 2 * CROP_PX
    width = 6 * side + 5 * GAP_PX  # LQ, 1, 2, 4, 8, HQ
    assert all(picture.shape == (TEXT_PX + side, width, 3) for picture in pictures)
    inside = slice(16, side - 16)  # a block of the JPEG file reaches from one picture into the next
    lefts = range(0, width, side + GAP_PX)
    ema, raw = ([picture[TEXT_PX:, x : x + side][:, inside] for x in lefts] for picture in pictures)
    assert [np.array_equal(a, b) for a, b in zip(raw, ema, strict=True)] == [True, False, False, False, False, True]
    assert_equal(newest(shown, 3), newest(plain, 3))
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert {"preview/raw", "preview/ema", "delta/histogram"} == set(board.Tags()["images"])
    written = {event.step: event.value for event in board.Scalars("weighted/flow")}
    assert written == pytest.approx({line["step"]: line["weighted/flow"] for line in log_lines(shown)}, rel=1e-4)


def test_the_newest_checkpoints_are_kept(distillation):
    config = distillation(run={"checkpoint_every": 1, "keep_checkpoints": 3}, train={"steps": 5})
    Distiller(config).train()
    folder = Path(config.run.output_dir)
    kept = [f"step_{step:08d}.safetensors" for step in (3, 4, 5)]
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", *kept]
    tensors, state = newest(config, 5)
    assert {key.split(".")[0] for key in tensors} == {"prompt_embeds", "lora", "ema", "optimizer"}
    assert torch.equal(tensors["prompt_embeds"], tiny.prompt_embeds())
    assert (state["samples"], state["lora"]["rank"], state["lora"]["alpha"]) == (5, tiny.RANK, tiny.RANK / 2)
    fewer = Distiller(changed(config, run={"keep_checkpoints": 1}))
    fewer.save()
    assert [path.name for path in list_checkpoints(folder)] == kept[-1:]
