"""Training configuration: strict, helpful, and every shipped file loads."""

from pathlib import Path, PureWindowsPath

import pytest

from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QWEN_IMAGE
from training.ablation.arms import AblationSettings
from training.config.distill import DistillConfig, load_distill_config
from training.config.pretrain import PretrainConfig, StageConfig, load_config
from training.config.toml import from_mapping, read_toml, to_mapping
from training.frozen_base.settings import memory_plan

CONFIGS = Path(__file__).parents[3] / "training" / "configs"
PRETRAIN = sorted([*CONFIGS.glob("pretrain/*.toml"), CONFIGS / "ablation" / "base.toml"])
DISTILL = sorted([*CONFIGS.glob("distill/*.toml"), CONFIGS / "ablation" / "distill.toml"])


@pytest.fixture
def load(tmp_path):
    """load(text, *overrides) of a TOML text."""

    def call(text="", *overrides):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return call


def refused(load, text, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_file_is_the_defaults(load):
    assert load() == PretrainConfig()


def test_values_arrive_with_their_types(load):
    config = load(
        '[run]\nseed = 7\nautocast = false\n[data]\nfolders = ["a", "b"]\npresets = {light = 1, heavy = 3}\n'
        "[model]\nrope_axes = [8, 12, 12]\n[optim]\nclip_norm = 2\n[[stages]]\nsteps = 5\n[[stages]]\nsteps = 6\n"
    )
    assert (config.run.seed, config.run.autocast, config.data.folders) == (7, False, ("a", "b"))
    assert config.data.presets == {"light": 1.0, "heavy": 3.0}
    assert config.model.rope_axes == (8, 12, 12)
    assert (config.optim.clip_norm, type(config.optim.clip_norm)) == (2.0, float)
    assert [stage.steps for stage in config.stages] == [5, 6]
    assert config.total_steps == 11
    assert to_mapping(config)["stages"][1]["steps"] == 6


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        ("[run]\nsede = 1", "run.sede", "seed"),
        ("[model]\nnum_layer = 1", "model.num_layer", "num_layers"),
        ("[[stages]]\ncrop = 64", "stages[0].crop", "crop_px"),
        ("[rum]\nseed = 1", "rum", "run"),
        ("[data]\nzzz = 1", "data.zzz", "known keys"),
    ],
)
def test_an_unknown_key_names_the_nearest(load, text, wrong, near):
    message = refused(load, text)
    assert f"'{wrong}'" in message
    assert near in message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[run]\nseed = 1.5", "run.seed"),
        ('[run]\nseed = "1"', "run.seed"),
        ("[run]\nseed = true", "run.seed"),
        ("[run]\nautocast = 1", "run.autocast"),
        ("[optim]\neps = true", "optim.eps"),
        ('[data]\nfolders = "photos"', "data.folders"),
        ("[data]\nfolders = [1]", "data.folders[0]"),
        ("[data]\npresets = 1", "data.presets"),
        ("[model]\nrope_axes = [8, 24]", "model.rope_axes"),
        ("[optim]\nbetas = [0.9]", "optim.betas"),
        ("run = 1", "run"),
        ("[stages]\nsteps = 1", "stages"),
    ],
)
def test_wrong_types_are_named(load, text, where):
    assert f"'{where}'" in refused(load, text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[[stages]]\ndata_share = 0.5", "add up to 0.5"),
        ("[[stages]]\n[[stages]]\ncons_share = 0.5", "stages[1]"),
        ("[[stages]]\ncrop_px = 24", "multiple of 16"),
        ("[[stages]]\ncrop_px = 0", "multiple of 16"),
        ("[[stages]]\nsteps = 0", "at least 1"),
        ("[[stages]]\nbatch_size = 0", "at least 1"),
        ("[[stages]]\nperceptual_weight = 0.5", "loss.perceptual"),
        ("[model]\nrope_axes = [28, 2, 2]", "model.rope_axes"),
        ('[loss]\nperceptual = "vgg"', "lpips-squeeze"),
        ('[loss]\nloss_space = "wavelet"', "pixel or latent"),
        ("[data]\npresets = {medium = 1.0}", "medium"),
        ("[data]\npresets = {}", "presets"),
        ("[data]\npresets = {light = -1.0}", "presets"),
        ("[data]\nscales = {x4 = 1.0}", "scales"),
        ("[data]\nscales = {4 = 0.0}", "scales"),
        ('[data]\nscales = {"0" = 1.0}', "scales"),
        ('[data]\npair_scales = {"2.5" = 1.0}', "pair_scales"),
        ("[data]\npair_scales = {4 = 0.0}", "pair_scales"),
        ("[data]\nmin_zoom = 0.0", "min_zoom"),
        ("[run]\nkeep_checkpoints = 0", "keep_checkpoints"),
        ("[run]\ncheckpoint_every = 0", "checkpoint_every"),
        ('[model]\nprediction = "x0"', "prediction"),
    ],
)
def test_impossible_values_are_named(load, text, part):
    assert part in refused(load, text)


WRONG = {
    "stages.0.data_share=1.25": "stages[0].data_share is 1.25: expected 0 to 1",
    "stages.0.flow_share=-0.25": "stages[0].flow_share is -0.25: expected 0 to 1",
    "stages.0.cons_share=nan": "stages[0].cons_share is nan: expected 0 to 1",
    "stages.0.lr_start=-1e-4": "stages[0].lr_start is -0.0001: expected more than 0",
    "stages.0.lr_end=inf": "stages[0].lr_end is inf: expected at least 0",
    **{f"stages.0.{name}_weight=-0.5": f"stages[0].{name}_weight is -0.5: expected at least 0"
       for name in ("perceptual", "lattice", "texture")},
    "optim.betas=[0.9, 1.0]": "optim.betas[1] is 1.0: expected at least 0 and less than 1",
    "optim.eps=0": "optim.eps is 0: expected more than 0",
    "optim.weight_decay=-1": "optim.weight_decay is -1: expected at least 0",
    "optim.clip_norm=0": "optim.clip_norm is 0: expected more than 0",
    "optim.warmup_steps=-1": "optim.warmup_steps is -1: expected at least 0",
    "optim.ema_decay=5": "optim.ema_decay is 5: expected at least 0 and less than 1",
    "optim.schedule=steps": "optim.schedule is 'steps': expected linear or cosine",
    "optim.max_bad_steps=0": "optim.max_bad_steps is 0: expected at least 1",
    "model.num_layers=0": "model.num_layers is 0: expected at least 1",
    "model.num_heads=0": "model.num_heads is 0: expected at least 1",
    "model.head_dim=-32": "model.head_dim is -32: expected at least 1",
    "model.text_width=0": "model.text_width is 0: expected at least 1",
    "model.prompt_tokens=0": "model.prompt_tokens is 0: expected at least 1",
    "model.rope_axes=[-4, 18, 18]": "model.rope_axes[0] is -4: expected at least 1",
}  # fmt: skip


@pytest.mark.parametrize("override", WRONG)
def test_values_out_of_range_are_named(load, override):
    assert WRONG[override] in refused(load, "[[stages]]\n", override)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_number_is_infinite_or_nan_but_one_limit(load, value):
    """clip_norm = inf means no clipping."""
    config = to_mapping(PretrainConfig())
    tables = {**{name: config[name] for name in ("data", "model", "optim")}, "stages.0": config["stages"][0]}
    numbers = {f"{table}.{name}" for table, fields in tables.items() for name in fields
               if isinstance(fields[name], float)}  # fmt: skip
    assert len(numbers) > 25
    for name in numbers - ({"optim.clip_norm"} if value == "inf" else set()):
        shown = name.replace(".0.", "[0].")
        assert refused(load, "[[stages]]\n", f"{name}={value}").startswith(f"{shown} is {value}: expected ")


def test_every_number_of_the_optimiser_is_checked():
    named = {override.split("=")[0] for override in WRONG}
    assert {f"optim.{field}" for field in to_mapping(PretrainConfig())["optim"]} <= named


@pytest.mark.parametrize(
    ("batch_size", "shares", "part"),
    [
        (2, (0.5, 0.25, 0.25), "flow_share = 0.25 of a batch of 2 comes to 0 rows, all shares to (2, 0, 0)"),
        (3, (0, 0.5, 0.5), "data_share = 0 of a batch of 3 comes to -1 rows"),
        (5, (0, 0.5, 0.5), "data_share = 0 of a batch of 5 comes to 1 rows"),
        (4, (0.1, 0.4, 0.5), "data_share = 0.1 of a batch of 4 comes to 0 rows"),
    ],
)
def test_a_share_without_rows_is_refused(load, batch_size, shares, part):
    names = zip(("data", "flow", "cons"), shares, strict=True)
    text = "\n".join(["[[stages]]", f"batch_size = {batch_size}", *(f"{k}_share = {v}" for k, v in names)])
    assert part in refused(load, text)


def test_lpips_needs_crops_that_its_windows_fit_in(load):
    text = '[loss]\nperceptual = "lpips-squeeze"\n[[stages]]\nperceptual_weight = 0.1\ncrop_px = '
    assert "crop_px is 32: LPIPS at random offsets expects at least 39" in refused(load, text + "32")
    assert load(text + "48").stages[0].crop_px == 48


def test_shares_that_add_up_are_fine(load):
    load("[[stages]]\ndata_share = 0.7\nflow_share = 0.2\ncons_share = 0.1\n")


# Overrides


def test_overrides_set_values_in_toml_syntax(load):
    config = load(
        "[[stages]]\nsteps = 5\n[[stages]]\nsteps = 6\n",
        "run.seed=3", "run.output_dir=runs/other", 'data.folders=["a"]', "stages.1.lr_end=1e-5", "data.presets.heavy=2",
        "model.rope_axes=[4, 30, 30]", "run.autocast=false",
    )  # fmt: skip
    assert (config.run.seed, config.run.output_dir, config.data.folders) == (3, "runs/other", ("a",))
    assert [stage.lr_end for stage in config.stages] == [StageConfig().lr_end, 1e-5]
    assert config.data.presets == {"heavy": 2.0}  # a table given by the override replaces the default
    assert config.model.rope_axes == (4, 30, 30)
    assert config.run.autocast is False


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("run.seed", "no '='"),
        ("run.sede=1", "did you mean 'seed'"),
        ("stages.5.steps=1", "no '5'"),
        ("run.seed.deeper=1", "not a table"),
        ("run.seed=high", "run.seed"),
        ("nothing=1", "nothing"),
    ],
)
def test_bad_overrides_are_named(load, override, part):
    assert part in refused(load, "[run]\nseed = 1\n[[stages]]\nsteps = 5\n", override)


# Windows' paths


@pytest.mark.parametrize(
    "text", [r"['C:\photos','D:\temp\new']", r"C:\photos", r"'C:\photos'", r"['\\server\share\photos']"]
)
def test_backslashes_in_single_quotes_and_bare_words_stay(load, text):
    found = load("", rf"data.folders={text}").data.folders
    assert found[0] == str(PureWindowsPath(found[0])) and PureWindowsPath(found[0]).name == "photos"
    assert "\t" not in "".join(found) and all("'" not in path for path in found)
    in_file = text if text.startswith("[") else rf"['{text.strip(chr(39))}']"
    assert load(f"[data]\nfolders = {in_file}").data.folders == found


@pytest.mark.parametrize("path", [r"C:\photos", r"C:\users\me", r"C:\temp", r"D:\new\best"])
def test_backslashes_in_double_quotes_are_explained(load, path):
    for message in (
        refused(load, "", f'data.folders=["{path}"]'),
        refused(load, "", f'run.output_dir="{path}"'),
        refused(load, f'[data]\nfolders = ["{path}"]'),
    ):
        assert "write a path in single quotes, or with /" in message
    doubled = path.replace("\\", "\\\\")
    assert load("", f'data.folders=["{doubled}"]').data.folders == (path,)


# Files


def test_files_that_cannot_be_read(tmp_path, load):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load_config(path)
    (tmp_path / "latin.toml").write_bytes(b'[run]\noutput_dir = "\xff"\n')
    with pytest.raises(ConfigError, match=r"latin\.toml"):
        load_config(tmp_path / "latin.toml")
    assert "not valid TOML" in refused(load, "[run\n")


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.name)
def test_every_shipped_pretraining_config_loads(path):
    config = load_config(path)
    assert config.stages
    if path.name == "smoke.toml":
        assert config.data.folders == ()  # to be named on the command line


@pytest.mark.parametrize("path", DISTILL, ids=lambda path: path.name)
def test_every_shipped_distillation_config_loads(path):
    config = load_distill_config(path)
    assert config.train.steps >= 1
    assert config.run.output_dir != DistillConfig().run.output_dir


@pytest.mark.parametrize("path", DISTILL, ids=lambda path: path.name)
def test_a_residual_base_is_held_to_the_photographs_and_a_velocity_is_the_papers(path):
    """docs/training/start.md: `boundary_time` for the built-in base's residual prediction, none for Qwen-Image."""
    config = load_distill_config(path)
    assert (config.loss.boundary_time > 0) == (config.base.path == "builtin")


@pytest.mark.parametrize("name", ["h200", "a100-80"])
def test_the_papers_settings_are_the_papers(name):
    """The paper's: batch 1, accumulation 2 on each of two cards; AdamW, 5e-5, rank 128, 47k steps of 512 px."""
    path = CONFIGS / "distill" / f"{name}.toml"
    assert "the paper's settings" in path.read_text(encoding="utf-8")
    config = load_distill_config(path)
    assert config.train.batch_size * config.train.accumulation == 4
    assert (config.train.crop_px, config.train.steps, config.adapter.rank) == (512, 47000, 128)
    assert (config.optim.lr, config.optim.lr_end, config.optim.betas, config.optim.clip_norm) == (
        5e-5, 5e-5, (0.9, 0.99), 1.0
    )  # fmt: skip


def test_every_preset_is_there():
    assert {path.stem for path in PRETRAIN} >= {"smoke", "builtin"}
    assert {path.stem for path in DISTILL} >= {"smoke", "builtin", "h200", "a100-80", "48gb", "24gb", "16gb"}


@pytest.mark.parametrize("name", ["h200", "a100-80", "48gb", "24gb", "16gb"])
def test_what_is_documented_of_a_card_is_what_its_preset_is_planned_to_take(name):
    config = load_distill_config(CONFIGS / "distill" / f"{name}.toml")
    found = memory_plan(config, QWEN_IMAGE, prompt_tokens=16)
    text = (CONFIGS.parents[1] / "docs" / "using" / "qwen_image.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {found.device_gib:.0f} | {found.host_gib:.0f} |" in text
    assert found.device_gib <= config.memory.vram_gb


def test_the_ablation_names_its_two_configs():
    config = from_mapping(AblationSettings, read_toml(CONFIGS / "ablation" / "ablation.toml"), where="")
    assert (CONFIGS / "ablation" / config.pretrain) in PRETRAIN
    assert (CONFIGS / "ablation" / config.distill) in DISTILL


def test_stage_at():
    config = PretrainConfig(stages=(StageConfig(steps=3), StageConfig(steps=2)))
    assert [config.stage_at(step)[::2] for step in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    with pytest.raises(ConfigError, match="beyond the last stage"):
        config.stage_at(5)
