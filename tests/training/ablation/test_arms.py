"""The ablation's three arms: the right switches, bases and steps; what is there stays, what was interrupted goes on."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.tiny.run import model_toml
from teasr_core.errors import ConfigError, InputError
from teasr_core.weight_files.base_file import build_velocity, read_base
from teasr_core.weight_files.lora_file import check_base, fingerprint, read_lora
from training.ablation.arms import ARMS, train_arms
from training.distill.trainer import Distiller
from training.pretrain import model as pretrain_model
from training.pretrain.trainer import Pretrainer
from training.run.checkpoint import list_checkpoints, load_checkpoint

RUN = 'threads = 1\nworkers = 0\nautocast = false\nlog_every = 100\nuse_tensorboard = false\ndevice = "cpu"\n'
BASE = f"""
{model_toml(2)}
[[stages]]
steps = 3
crop_px = 32
batch_size = 4
data_share = 0.5
flow_share = 0.25
cons_share = 0.25
lr_start = 2e-3
"""
DISTILL = """
[adapter]
rank = 4
alpha = 4.0

[train]
steps = 3
crop_px = 32

[loss]
loss_space = "pixel"
rectify = 1.0

[optim]
lr = 1e-2
"""
TITLES = ["baseline", "+DTC", "+DTC+TAR"]


@pytest.fixture(scope="module", autouse=True)
def _few_crops():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_model, "STATISTICS_CROPS", 8)
        yield
    torch.set_flush_denormal(False)  # the trainers switch it on


def write(folder, photos):
    """The .toml of a tiny ablation in a new folder, where its runs go too."""
    folder.mkdir()
    data = f'[data]\nfolders = ["{photos}"]\ncache_mb = 20\n'
    (folder / "base.toml").write_text(f"[run]\n{RUN}\n{data}\n{BASE}")
    (folder / "distill.toml").write_text(f"[run]\n{RUN}\n{data}\n{DISTILL}")
    (folder / "ablation.toml").write_text(f'output_dir = "{folder / "runs"}"\n')
    return folder / "ablation.toml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos):
    """An ablation trained in one go: (its .toml, arms, notes)."""
    notes = []
    path = write(tmp_path_factory.mktemp("ablation") / "whole", photos)
    return path, train_arms(path, notes.append), notes


@pytest.fixture
def whole(trained, tmp_path, photos):
    """The trained one in a folder of its own, which a test may damage."""
    path = write(tmp_path / "whole", photos)
    shutil.copytree(trained[0].parent / "runs", path.parent / "runs")
    folder = path.parent / "runs"
    arms = [replace(arm, base=folder / arm.base.name, lora=folder / arm.lora.name) for arm in trained[1]]
    return path, arms, trained[2]


def files(arms):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for arm in arms for path in (arm.base, arm.lora)}


def tensors(arms):
    return [read_lora(arm.lora).tensors for arm in arms]


def same(found, wanted):
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(found, wanted))  # noqa: B905


def test_the_arms_are_those_of_table_3():
    assert [(arm.title, arm.dtc, arm.tar) for arm in ARMS] == list(
        zip(TITLES, (False, True, True), (False, False, True), strict=True)
    )
    assert len({arm.name for arm in ARMS}) == 3


def test_every_arm_trains_with_its_switches_on_a_base_of_its_own_dtc(whole):
    _, arms, notes = whole
    assert [arm.settings for arm in arms] == list(ARMS)
    assert notes == [
        "pretraining base_without_dtc", "pretraining base_with_dtc", *(f"distilling {title}" for title in TITLES)
    ]  # fmt: skip
    bases = [read_base(arm.base) for arm in arms]
    for arm, base in zip(arms, bases, strict=True):
        assert base.use_dtc == arm.settings.dtc and build_velocity(base).use_dtc == arm.settings.dtc
        lora = read_lora(arm.lora)
        check_base(lora, base.architecture, base.prediction, base.tensors)
        assert lora.base_fingerprint == fingerprint(base.tensors)
        assert lora.config["ablation"] == {"dtc": arm.settings.dtc, "tar": arm.settings.tar}
        assert lora.step == 3 and any(bool(v.any()) for k, v in lora.tensors.items() if ".lora_B." in k)
    assert arms[1].base == arms[2].base != arms[0].base


def test_the_arms_differ_in_their_switches_alone(whole):
    path, arms, _ = whole
    configs = [dict(read_lora(arm.lora).config) for arm in arms]
    pretrained = [load_checkpoint(list_checkpoints(p)[-1])[1]["config"] for p in (
        path.parent / "runs" / "base_without_dtc", path.parent / "runs" / "base_with_dtc")]  # fmt: skip
    for config in configs:
        del config["ablation"]
        config["run"].pop("output_dir", None)
        config["base"].pop("path", None)
    assert configs[0] == configs[1] == configs[2]
    assert [config["model"].pop("use_dtc") for config in pretrained] == [False, True]
    assert pretrained[0]["run"].pop("output_dir") != pretrained[1]["run"].pop("output_dir")
    assert pretrained[0] == pretrained[1]
    _, dtc, tar = tensors(arms)
    assert not same([dtc], [tar])  # TAR acts, on the same base


def test_what_is_there_is_not_trained_again(whole):
    path, arms, _ = whole
    before, notes = files(arms), []
    assert train_arms(path, notes.append) == arms
    assert notes == [] and files(arms) == before


@pytest.mark.parametrize("is_run_kept", [True, False])
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("base.toml", "lr_start = 2e-3", "lr_start = 3e-3", r"base_without_dtc.*another config: stages\[0\] has begun"),
        ("base.toml", "steps = 3", "steps = 2", r"base_without_dtc.*another config: stages\[0\] has begun"),
        ("base.toml", "lr_start = 2e-3", "lr_start = 2e-3\n[[stages]]\nsteps = 1", "steps add up to 4.* has taken 3"),
        ("base.toml", "num_layers = 2", "num_layers = 3", r"model\.num_layers is 3, the checkpoint has 2"),
        ("distill.toml", "lr = 1e-2", "lr = 2e-2", r"baseline.*optim\.lr is 0\.02, the checkpoint has 0\.01"),
        ("distill.toml", "steps = 3", "steps = 5", r"baseline.*train\.steps is 5, .* 3"),
        ("distill.toml", "steps = 3", "accumulation = 2\nsteps = 3", r"train\.accumulation is 2, the checkpoint has 1"),
    ],
)
def test_a_file_of_another_config_is_refused(whole, file, old, new, message, is_run_kept):
    """And not taken up with the old figures; where the run's checkpoints are gone, by what the file remembers."""
    path, arms, _ = whole
    before = files(arms)
    config = path.parent / file
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    if not is_run_kept:
        for checkpoint in (path.parent / "runs").glob("*/step_*.safetensors"):
            checkpoint.unlink()
    with pytest.raises(ConfigError, match=message) as caught:
        train_arms(path, lambda _: None)
    assert "run.output_dir, here the output_dir of the ablation's own .toml" in str(caught.value)
    assert files(arms) == before


def test_files_without_their_runs_are_taken_up(whole):
    path, arms, _ = whole
    for arm in arms:
        shutil.rmtree(path.parent / "runs" / arm.settings.name)
        shutil.rmtree(path.parent / "runs" / arm.base.stem, ignore_errors=True)
    notes = []
    assert train_arms(path, notes.append) == arms and notes == []


def test_an_arm_of_another_base_is_refused(whole):
    """As when the bases were deleted and trained anew."""
    path, arms, _ = whole
    values = load_file(arms[1].base)
    values["proj_out.bias"] += 1
    with safe_open(arms[1].base, "pt") as file:
        metadata = file.metadata()
    save_file(values, arms[1].base, metadata)
    with pytest.raises(ConfigError, match=r"\+DTC: dtc\.safetensors was distilled of another base"):
        train_arms(path, lambda _: None)


def test_a_lost_file_is_made_again_from_its_run(whole):
    path, arms, _ = whole
    before, notes = tensors(arms), []
    arms[1].lora.unlink()
    kept = files([arms[0], arms[2]])
    train_arms(path, notes.append)
    assert notes == ["distilling +DTC"]
    assert same(tensors(arms), before) and files([arms[0], arms[2]]) == kept


def stopping(monkeypatch, trainer, at):
    """Every run of this trainer ends at a step, as SIGTERM would end it."""
    train = trainer.train
    monkeypatch.setattr(trainer, "train", lambda self: train(self, at))


@pytest.mark.parametrize(("trainer", "stopped"), [(Pretrainer, "base_without_dtc"), (Distiller, "baseline")])
def test_an_interrupted_ablation_goes_on_where_it_was(whole, photos, tmp_path, monkeypatch, trainer, stopped):
    path = write(tmp_path / "interrupted", photos)
    with monkeypatch.context() as patch:
        stopping(patch, trainer, 2)
        with pytest.raises(KeyboardInterrupt):
            train_arms(path, lambda _: None)
    folder = path.parent / "runs"
    assert load_checkpoint(list_checkpoints(folder / stopped)[-1])[1]["step"] == 2
    assert not (folder / f"{stopped}.safetensors").exists()
    assert same(tensors(train_arms(path, lambda _: None)), tensors(whole[1]))


def test_an_error_names_the_base_or_the_arm(whole, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"^ablation, base_without_dtc: .*empty"):
        train_arms(write(tmp_path / "no_photographs", empty), lambda _: None)
    path, arms, _ = whole
    for arm in arms[1:]:
        arm.lora.unlink()
    arms[1].base.write_bytes(arms[0].base.read_bytes())  # trained without DTC
    with pytest.raises(ConfigError, match=r"^ablation, \+DTC: .*ablation\.dtc is True"):
        train_arms(path, lambda _: None)


def test_an_unknown_key_names_the_nearest_known_one(tmp_path, photos):
    path = write(tmp_path / "one", photos)
    path.write_text('destill = "x.toml"\n')
    with pytest.raises(ConfigError, match="did you mean 'distill'"):
        train_arms(path)
