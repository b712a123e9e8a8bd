"""Losses to the photograph and to a target picture, each with its weight, and the border that none of them sees."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import model as tiny
from helpers.tiny import run as tiny_run
from teasr_core.errors import ConfigError
from training.config.stage import StageConfig, check_stage
from training.data.photographs import HR_FOLDER, LR_FOLDER, TARGET_FOLDER
from training.objective import losses
from training.pretrain.losses import picture_losses
from training.pretrain.trainer import Pretrainer


def pictures(seed):
    return torch.rand(2, 3, 32, 48, generator=tiny.generator(seed), dtype=torch.float64)


def found(stage, perceptual=None):
    codec, clean = tiny.codec(), torch.randn(2, 48, 8, 12, generator=tiny.generator(0), dtype=torch.float64)
    parts = picture_losses(codec, clean, [pictures(1), pictures(2)], stage, perceptual, tiny.generator(3), share=0.5)
    return parts, 2 * codec.decode(clean) - 1


@pytest.mark.parametrize("border", [0, 8])
def test_each_loss_is_its_formula(border):
    stage = StageConfig(data_weight=2.0, l1_weight=3.0, gradient_weight=5.0, target_l1_weight=7.0,
                        target_gradient_weight=11.0, sharpness_weight=13.0, border_px=border)  # fmt: skip
    parts, x = found(stage)
    cut = np.s_[:, :, border : 32 - border, border : 48 - border]
    fake, hq, target = (value.numpy()[cut] for value in (x, 2 * pictures(1) - 1, 2 * pictures(2) - 1))

    def gradient(a, b):
        return sum(np.abs(np.diff(a, axis=axis) - np.diff(b, axis=axis)).mean() for axis in (2, 3))

    wanted = {
        "data": 2 * ((fake - hq) ** 2).mean(), "l1": 3 * np.abs(fake - hq).mean(), "gradient": 5 * gradient(fake, hq),
        "target_l1": 7 * np.abs(fake - target).mean(), "target_gradient": 11 * gradient(fake, target),
        "sharpness": -13 * gradient(fake, np.zeros_like(fake)),
    }  # fmt: skip
    assert parts.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(parts[name]) == pytest.approx(0.5 * value, rel=1e-6)


def test_a_weight_of_zero_computes_nothing():
    parts, _ = found(StageConfig(data_weight=0.0, target_l1_weight=1.0))
    assert parts.keys() == {"target_l1"}


def test_lpips_is_compared_with_each_at_one_offset():
    seen = []

    def perceptual(fake, real):
        seen.append((fake, real))
        return (fake - real).square().mean(dim=(1, 2, 3))

    stage = StageConfig(perceptual_weight=1.0, target_perceptual_weight=3.0)
    parts, x = found(stage, perceptual)
    offset = losses.perceptual_offset(tiny.generator(3))
    window = losses.perceptual_window(x, offset)
    for (fake, real), picture in zip(seen, (pictures(1), pictures(2)), strict=True):
        assert torch.equal(fake, x[window])
        assert torch.equal(real, (2 * picture - 1)[window])
    assert parts["target_lpips"] == pytest.approx(1.5 * float((seen[1][0] - seen[1][1]).square().mean()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_weight": 0.0}, "has data rows and no loss"),
        ({"border_px": 12}, "multiple of 8"),
        ({"border_px": 32}, "leaves some of crop_px"),
        ({"border_px": 16, "perceptual_weight": 1.0}, "with 16 px left out"),
        ({"border_px": 16, "target_perceptual_weight": 1.0}, "with 16 px left out"),
    ],
)
def test_stages_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_stage("stages[0]", StageConfig(crop_px=64, **changes), has_encoder=True, has_perceptual=True)


def test_a_target_weight_of_lpips_needs_the_network():
    with pytest.raises(ConfigError, match=r"target_perceptual_weight is 1 and loss\.perceptual is 'none'"):
        check_stage("stages[0]", StageConfig(target_perceptual_weight=1.0), has_encoder=True, has_perceptual=False)


def test_an_encoder_learns_the_targets_and_not_the_photographs(tmp_path):
    """The target is the photograph made darker: after a few steps the encoder's picture is nearer to it."""
    for index in range(2):
        coarse = np.random.default_rng(index).integers(100, 256, (8, 8, 3), dtype=np.uint8)
        high = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        made = {HR_FOLDER: high, LR_FOLDER: high.resize((24, 24)), TARGET_FOLDER: high.point(lambda level: level // 2)}
        for folder, picture in made.items():
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "pairs" / folder / f"{index}.png")
    stage = StageConfig(steps=40, trains="encoder", crop_px=32, batch_size=2, data_weight=0.0, target_l1_weight=1.0,
                        target_gradient_weight=0.2, lr_start=4e-3, lr_end=4e-3)  # fmt: skip
    config = tiny_run.config(tmp_path, tmp_path / "run", (stage,))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, folders=(), pairs=(str(tmp_path / "pairs"),), pair_scales={"4": 1.0, "2": 1.0}
        ),
        model=dataclasses.replace(config.model, encoder_kind="rrdb", encoder_blocks=1, encoder_width=8),
    )
    trainer = Pretrainer(config)
    lq, _, target = next(trainer._loader(1))[0]
    before = float((trainer.codec.decode(trainer.codec.encode_lq(lq)) - target).abs().mean())
    trainer.train()
    after = float((trainer.codec.decode(trainer.codec.encode_lq(lq)) - target).abs().mean())
    assert after < 0.5 * before
