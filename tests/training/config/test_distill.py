"""A distillation's config: read strictly, checked value by value."""

import dataclasses
import json

import pytest

from helpers.tiny.distill_run import write_toml
from teasr_core.errors import ConfigError
from teasr_core.model.branch_lora import BLOCK_TARGETS
from training.config.distill import DistillConfig, load_distill_config
from training.config.toml import from_mapping, to_mapping


@pytest.fixture
def load(tmp_path):
    """load(text, *overrides) of a TOML text."""

    def call(text="", *overrides):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_distill_config(path, overrides)

    return call


def test_an_empty_file_is_the_defaults(load):
    assert load() == DistillConfig()


def test_the_defaults_are_the_paper_s():
    config = DistillConfig()
    assert (config.optim.lr, config.optim.betas, config.optim.weight_decay, config.optim.clip_norm) == (
        5e-5, (0.9, 0.99), 0.0, 1.0,
    )  # fmt: skip
    loss = config.loss
    assert (loss.data, loss.lpips, loss.flow, loss.cons, loss.adv, loss.rectify) == (1, 1, 1, 1, 1, 0.25)
    assert (config.ablation.dtc, config.ablation.tar, config.train.layout) == (True, True, "sequential")
    assert config.adapter.targets == BLOCK_TARGETS


def test_a_config_survives_json_and_toml(distillation, tmp_path):
    """As a checkpoint keeps it, and as a file."""
    config = distillation(adapter={"targets": ["attn.to_k", "img_mod.1"]}, loss={"perceptual_backbone": 'a "b".x'})
    assert from_mapping(DistillConfig, json.loads(json.dumps(to_mapping(config))), where="") == config
    assert load_distill_config(write_toml(tmp_path / "run.toml", config)) == config


def test_values_arrive_with_their_types(load):
    config = load(
        '[adapter]\nalpha = 8\ntargets = ["attn.to_k"]\n[loss]\nw_max = inf\n[optim]\nbetas = [0, 0.5]\n',
        "train.layout=rotate", "ablation.tar=false", "memory.checkpointing=every 2",
    )  # fmt: skip
    assert (config.adapter.alpha, type(config.adapter.alpha)) == (8.0, float)
    assert (config.adapter.targets, config.loss.w_max, config.optim.betas) == (("attn.to_k",), float("inf"), (0.0, 0.5))
    assert (config.train.layout, config.ablation.tar, config.memory.checkpointing) == ("rotate", False, "every 2")


@pytest.mark.parametrize(
    ("override", "wrong", "near"),
    [
        ("adapter.rnak=4", "adapter.rnak", "did you mean 'rank'"),
        ("optim.learning_rate=1", "optim.learning_rate", "known keys: betas, clip_norm"),
        ("train.crop=64", "train.crop", "did you mean 'crop_px'"),
        ("ablation.tra=false", "ablation.tra", "did you mean 'tar'"),
        ("loss.perceptual_backbon=x", "loss.perceptual_backbon", "did you mean 'perceptual_backbone'"),
        ("memmory.vram_gb=24", "memmory", "did you mean 'memory'"),
        ("stages.steps=3", "stages", "known keys: ablation, adapter, base, data"),
    ],
)
def test_an_unknown_key_names_the_nearest(load, override, wrong, near):
    with pytest.raises(ConfigError) as caught:
        load("", override)
    assert f"'{wrong}'" in str(caught.value) and near in str(caught.value)


WRONG = {
    "run.device=cuda": "run.device is 'cuda': expected auto or cpu",
    "run.seed=-1": "run.seed is -1: expected at least 0",
    "run.threads=-1": "run.threads is -1: expected at least 0",
    "run.workers=-1": "run.workers is -1: expected at least 0",
    "run.log_every=0": "run.log_every is 0: expected at least 1",
    "run.checkpoint_every=0": "run.checkpoint_every is 0",
    "run.keep_checkpoints=0": "run.keep_checkpoints is 0",
    "run.preview_every=0": "run.preview_every is 0",
    "base.dtype=fp16": "base.dtype is 'fp16': expected auto, fp32 or bf16",
    "adapter.dtype=fp16": "adapter.dtype is 'fp16': expected fp32 or bf16",
    "adapter.dtype=bf16": "set optim.kind to adamw-cpu",
    "adapter.start=1": "'adapter.start' is 1: expected text in quotes",
    "adapter.trainable=some": "adapter.trainable is 'some': expected lora or all",
    "adapter.init=zero": "adapter.init is 'zero': expected kaiming, gaussian or orthogonal",
    "adapter.rank=0": "adapter.rank is 0: expected at least 1",
    "adapter.alpha=0": "adapter.alpha is 0: expected more than 0",
    'adapter.targets=["proj_out"]': r"adapter.targets names ['proj_out']: expected some of attn.to_q",
    "adapter.targets=[]": "adapter.targets names []",
    "data.presets={medium = 1.0}": "medium",
    "data.scales={x4 = 1.0}": "data.scales names 'x4'",
    "data.pair_scales={x2 = 1.0}": "data.pair_scales names x2",
    "data.weights=[1.0]": "data.weights is [1.0]",
    "data.min_zoom=0.0": "data.min_zoom is 0",
    "train.steps=0": "train.steps is 0: expected at least 1",
    "train.batch_size=0": "train.batch_size is 0",
    "train.accumulation=0": "train.accumulation is 0",
    "train.max_bad_steps=0": "train.max_bad_steps is 0",
    "train.crop_px=40": "train.crop_px is 40: expected a multiple of 16",
    "train.crop_px=0": "train.crop_px is 0: expected a multiple of 16",
    "train.layout=joint": "train.layout is 'joint': expected sequential, rotate or batched",
    "loss.loss_space=wavelet": "loss.loss_space is 'wavelet': expected pixel or latent",
    "loss.perceptual=vgg": "loss.perceptual is 'vgg': expected none, lpips-squeeze",
    "loss.perceptual=lpips-vgg": "loss.perceptual_backbone is empty: name the local file",
    **{f"loss.{name}=-0.5": f"loss.{name} is -0.5: expected at least 0"
       for name in ("data", "lpips", "lattice", "flow", "cons", "adv", "rectify", "w_max")},
    "loss.boundary_time=0.03": "loss.boundary_time is 0.03: expected 0, or a time above 1/30 up to 1",
    "loss.rectify=nan": "loss.rectify is nan: expected at least 0",
    "optim.kind=sgd": "optim.kind is 'sgd': expected adamw, adamw-8bit, adamw-cpu, prodigy or adafactor",
    "optim.kind=prodigy": "optim.kind is 'prodigy' and optim.lr is 5e-05: Prodigy finds the rate itself",
    "optim.schedule=step": "optim.schedule is 'step': expected linear or cosine",
    'run.trackers=["mlflow"]': "run.trackers[0] is 'mlflow': expected tensorboard, wandb or trackio",
    "optim.lr=0": "optim.lr is 0: expected more than 0",
    "optim.lr=inf": "optim.lr is inf: expected more than 0, and finite",
    "optim.lr_end=-1e-5": "optim.lr_end is -1e-05: expected at least 0",
    "optim.warmup_steps=-1": "optim.warmup_steps is -1",
    "optim.betas=[0.9, 1.0]": "optim.betas[1] is 1.0: expected at least 0 and less than 1",
    "optim.eps=0": "optim.eps is 0: expected more than 0",
    "optim.weight_decay=-1.0": "optim.weight_decay is -1.0",
    "optim.clip_norm=0": "optim.clip_norm is 0: expected more than 0",
    "optim.ema_decay=1": "optim.ema_decay is 1: expected at least 0 and less than 1",
    "memory.vram_gb=-1": "memory.vram_gb is -1",
    "memory.modulation=int3 resident": "memory.modulation",
    "memory.checkpointing=some": "memory.checkpointing",
}  # fmt: skip


@pytest.mark.parametrize("override", WRONG)
def test_an_impossible_value_is_named(load, override):
    with pytest.raises(ConfigError) as caught:
        load("", override)
    assert WRONG[override] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_number_is_infinite_or_nan_but_two_limits(load, value):
    """inf as a limit means none."""
    numbers = {
        f"{section}.{name}"
        for section, fields in to_mapping(DistillConfig()).items()
        for name, default in fields.items()
        if isinstance(default, float)
    }
    limits = {"optim.clip_norm", "loss.w_max"} if value == "inf" else set()
    assert len(numbers) > 15 and limits < numbers
    for name in numbers - limits:
        with pytest.raises(ConfigError, match=rf"^{name} is {value}: expected [^\n]*$"):
            load("", f"{name}={value}")
    load("", *(f"{name}={value}" for name in limits))


def test_values_that_do_not_go_together(load):
    assert load("", "adapter.dtype=bf16", "optim.kind=adamw-cpu").adapter.dtype == "bf16"
    with pytest.raises(ConfigError, match=r"adapter\.start is 'a\.safetensors' and adapter\.trainable is"):
        load("", "adapter.start=a.safetensors", "adapter.trainable=all")
    with pytest.raises(
        ConfigError, match=r"adapter\.init is 'orthogonal' and adapter\.rank is 3: expected an even rank"
    ):
        load("", "adapter.init=orthogonal", "adapter.rank=3")
    backbone = ("loss.perceptual=lpips-alex", "loss.perceptual_backbone=alexnet.safetensors")
    assert load("", *backbone).loss.perceptual == "lpips-alex"
    with pytest.raises(ConfigError, match=r"train\.crop_px is 16: .* expects at least 32"):
        load("", *backbone, "train.crop_px=16")
    with pytest.raises(ConfigError, match=r"train\.crop_px is 32: .* expects at least 39"):
        load("", *backbone, "train.crop_px=32", "loss.perceptual_windows=true")


def test_every_field_that_may_be_wrong_is_checked():
    """A field that no check reads must take any value of its type; these do."""
    free = {
        "run": {"output_dir", "autocast", "compile", "use_tensorboard", "preview_images", "project"},
        "base": {"path", "vae", "prompt"}, "ablation": {"dtc", "tar"}, "adapter": {"allow_other_base"},
        "loss": {"perceptual_backbone", "perceptual_windows"},
        "data": {"folders", "pairs", "cache_mb"}, "memory": {"image_stream", "text_stream"},
    }  # fmt: skip
    named = {override.split("=")[0] for override in WRONG}
    for section, fields in to_mapping(DistillConfig()).items():
        unchecked = {field for field in fields if f"{section}.{field}" not in named}
        assert unchecked == free.get(section, set()), section


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DistillConfig().train.steps = 3  # type: ignore[misc]
