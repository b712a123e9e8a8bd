"""`doctor` names what is missing and the remedy, one line each, and fails for what is needed alone (T16)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.tiny import distill_run as tiny_distill_run
from helpers.tiny import qwen as tiny_qwen
from helpers.tiny import run as tiny_run
from teasr_core.errors import ConfigError
from teasr_core.weight_files import base_file
from teasr_core.weight_files.lora_file import fingerprint
from training.cli.commands import main
from training.config.pretrain import load_config
from training.config.toml import read_toml, to_mapping
from training.distill.trainer import Distiller
from training.doctor.config import examine
from training.doctor.finding import MISSING, NOTE, OK, Finding
from training.doctor.machine import builtin_finding, disk_finding
from training.doctor.packages import PACKAGES, Package, comfyui_findings, numbers, package_finding, python_finding
from training.frozen_base.prompt_file import write_prompt
from training.run.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[3]
MODULES = [package.module for package in PACKAGES]


@pytest.fixture
def toml(tmp_path, photos):
    """toml(extra, folders): the path of a small pretraining config."""

    def write(extra="", folders=None):
        path = tmp_path / "config.toml"
        named = [str(photos)] if folders is None else folders
        stage = "[[stages]]\nsteps = 4\ncrop_px = 32\nbatch_size = 2\n"
        path.write_text(
            f"[run]\noutput_dir = {str(tmp_path / 'run')!r}\n[data]\nfolders = {named!r}\n{extra}\n"
            + ("" if any(table in extra for table in ("[base]", "[adapter]", "[train]")) else stage)
        )
        return path

    return write


def found(report, name):
    """[(level, text)] of one name."""
    return [(finding.level, finding.text) for finding in report.findings if finding.name == name]


def levels(report):
    return {finding.level for finding in report.findings}


# The command


def test_base_use_in_lines_and_json(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "nothing is missing"
    assert all(re.match(r"(ok     |note   ) \S", line) for line in lines[:-1])
    names = [line.split()[1] for line in lines[:-1]]
    assert [name for name in names if name in MODULES] == MODULES
    assert {"python", "build", "cpu", "memory", "disk", "built-in"} <= set(names)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["missing"] == 0
    assert [finding["name"] for finding in report["findings"]] == names
    assert all(set(finding) == {"level", "name", "text", "fix"} for finding in report["findings"])
    assert all(finding["fix"] for finding in report["findings"] if finding["level"] != OK)


def test_a_config_that_lacks_something_gives_2(toml, capsys):
    assert main(["doctor", str(toml())]) == 0
    assert main(["doctor", str(toml(folders=[]))]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "1 missing"
    (line,) = [line for line in out if line.startswith("missing")]
    assert line.startswith("missing data         data.folders is empty: name at least one folder of photographs -> ")
    assert main(["doctor", str(toml(folders=[])), f'data.folders=["{ROOT}/none"]', "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["missing"] == 1


def test_it_runs_on_a_python_with_nothing_installed():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-S", "-m", "training", *arguments], capture_output=True, text=True, cwd=ROOT
        )

    bare = run("doctor", "training/configs/pretrain/smoke.toml")
    assert (bare.returncode, bare.stderr) == (2, "")
    for module in ("torch", "numpy", "PIL", "safetensors", "diffusers", "cv2", "scipy"):
        assert re.search(rf"^missing {module} +not installed: .* -> pip install \"", bare.stdout, re.M), module
    assert re.search(r"^note    pyiqa ", bare.stdout, re.M)
    other = run("pretrain", "training/configs/pretrain/smoke.toml")
    assert (other.returncode, other.stdout, len(other.stderr.splitlines())) == (2, "", 1)
    assert "the package 'torch' is not installed: pip install" in other.stderr


# Packages


def test_a_package_that_is_missing_old_or_broken(tmp_path, monkeypatch):
    absent = Package("teasr_absent", ("teasr-absent",), "1.2", "a test")
    assert package_finding(absent, True) == Finding(
        MISSING, "teasr_absent", "not installed: a test", 'pip install "teasr-absent>=1.2"'
    )
    assert package_finding(absent, False).level == NOTE
    old = package_finding(Package("numpy", ("numpy",), "999.1", "arrays"), True)
    assert (old.level, old.fix) == (MISSING, 'pip install "numpy>=999.1"')
    assert "expected 999.1 or newer: arrays" in old.text
    (tmp_path / "teasr_broken.py").write_text("raise OSError('libGL.so.1: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = Package("teasr_broken", ("numpy",), "1", "a test")
    assert package_finding(broken, True).level == MISSING
    assert "does not import (libGL.so.1: cannot open shared object file)" in package_finding(broken, True).text
    assert package_finding(broken, False).level == OK  # not imported: it may take long
    other = Package("numpy", ("teasr-absent", "numpy"), "1", "arrays")  # one of several distributions
    assert package_finding(other, True).level == OK


def test_versions_compare_by_their_numbers():
    assert [numbers(text) for text in ("2.11.0+cu130", "3", "0.6rc1", "x")] == [
        (2, 11, 0),
        (3, 0, 0),
        (0, 6, 0),
        (0,) * 3,
    ]
    assert numbers("0.9") < numbers("0.17.0") < numbers("1.0") and numbers("2.11") == numbers("2.11.0")
    assert python_finding((3, 10, 2)).level == OK and python_finding((3, 9, 18)).level == MISSING
    assert python_finding((4, 0, 0)).level == OK


def test_oldest_versions_are_those_of_pyproject():
    extras = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    wanted = [re.match(r"([\w-]+)>=([\d.]+)", text) for extra in extras.values() for text in extra]
    bounds = dict(match.groups() for match in wanted if match)
    assert len(bounds) > 8
    assert {p.module: p.oldest for p in PACKAGES} == {p.module: bounds.get(p.distributions[0], "") for p in PACKAGES}


def test_lines_stay_lines():
    assert Finding(NOTE, "a", "b\nc\r\nd", "e\nf").line() == "note    a            b c d -> e f"


# The machine


def test_the_built_in_model(monkeypatch, tmp_path):
    shipped = base_file.shipped_base()
    assert builtin_finding(True).text.startswith(
        f"{shipped.path.name} reads, fingerprint {fingerprint(shipped.tensors)[:12]}"
    )
    (tmp_path / base_file.BASE_NAME).write_bytes(shipped.path.read_bytes()[:5000])
    monkeypatch.setattr(base_file, "ASSETS", tmp_path)
    assert builtin_finding(True).level == MISSING and "safetensors" in builtin_finding(True).text
    assert builtin_finding(False).level == NOTE
    (tmp_path / base_file.BASE_NAME).unlink()
    assert "is missing from" in builtin_finding(True).text


def test_comfyui(tmp_path):
    def findings(text=None):
        if text is not None:
            (tmp_path / "comfyui_version.py").write_text(text)
        (finding,) = comfyui_findings({"COMFYUI_PATH": str(tmp_path)})
        return finding.level, finding.text

    assert not list(comfyui_findings({})) and not list(comfyui_findings({"COMFYUI_PATH": ""}))
    assert findings() == (NOTE, f"no checkout at {tmp_path}: tests/nodes, tests/host")
    assert findings('__version__ = "0.33.0"\n') == (OK, f"0.33.0 at {tmp_path}")
    assert findings('__version__ = "0.9.2"\n')[0] == NOTE
    assert findings("nothing\n")[0] == NOTE


def test_disk_is_looked_at_where_the_folder_will_be(tmp_path):
    finding = disk_finding(tmp_path / "not" / "yet")
    assert "GiB free at" in finding.text and finding.level in (OK, NOTE)
    assert not (tmp_path / "not").exists()


# A config


def test_a_good_config(toml, tmp_path, photos):
    report = examine(toml())
    assert levels(report) == {OK} and report.modules == set() and not report.uses_builtin
    assert found(report, "config") == [(OK, f"{tmp_path / 'config.toml'}: pretrain")]
    assert found(report, "data") == [(OK, f"'{photos}': 2 of 2 images usable")]
    assert found(report, "output_dir") == [(OK, f"{tmp_path / 'run'} can be written")]
    assert found(report, "pretrain") == [(OK, "the trainer imports")]
    assert not (tmp_path / "run").exists()  # looking leaves nothing behind
    assert examine(toml(), ["run.seed=3", "stages.0.crop_px=48"]).findings == report.findings


def test_a_config_that_does_not_parse(toml, tmp_path):
    for report in (examine(tmp_path / "none.toml"), examine(toml("[modle]\nx = 1")), examine(toml(), ["run.sede=1"])):
        ((level, text),) = found(report, "config")
        assert level == MISSING and ("none.toml" in text or "did you mean" in text)
        assert len(report.findings) == 1


def test_data_that_is_missing_small_or_damaged(toml, tmp_path):
    assert found(examine(toml(folders=[])), "data") == [
        (MISSING, "data.folders is empty: name at least one folder of photographs")
    ]
    ((level, text),) = found(examine(toml(folders=[str(tmp_path / "none")])), "data")
    assert level == MISSING and "no such folder" in text
    mixed = tiny_run.write_photos(tmp_path / "mixed")
    (mixed / "z.jpg").write_text("no image")
    report = examine(toml("[[stages]]\nsteps = 1\ncrop_px = 64\n", folders=[str(mixed)]))
    assert found(report, "data") == [
        (OK, f"'{mixed}': 2 of 3 images usable"),
        (NOTE, f"'{mixed}': skipped, unreadable: 1 (z.jpg)"),
    ]
    ((level, text),) = found(examine(toml(folders=[str(mixed)]), ["stages.0.crop_px=112"]), "data")
    assert level == MISSING and "at least 144 px a side" in text


def test_the_perceptual_backbone(toml, tmp_path):
    loss = '[loss]\nperceptual = "lpips-squeeze"\nperceptual_backbone = "{}"\n'
    path = tmp_path / "features.safetensors"
    report = examine(toml(loss.format(path)))
    assert {"lpips", "torchvision"} <= report.modules
    ((level, text),) = found(report, "perceptual")
    assert level == MISSING and f"no file at '{path}'" in text
    assert "squeezenet1_1" in next(finding.fix for finding in report.findings if finding.name == "perceptual")
    path.write_bytes(b"no features")
    ((level, text),) = found(examine(toml(loss.format(path))), "perceptual")
    assert level == MISSING and "cannot be read" in text
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    save_file(squeezenet1_1().features.state_dict(), path)
    assert found(examine(toml(loss.format(path))), "perceptual") == [(OK, f"lpips-squeeze: {path} reads")]


def test_output_that_cannot_be(toml, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        report = examine(toml(), [f"run.output_dir={str(tmp_path / place)!r}"])
        assert found(report, "output_dir") == [(MISSING, f"{tmp_path / 'file'} is a file")]
    ((level, text),) = found(examine(toml(), [f'run.preview_images=["{tmp_path}/none.png"]']), "preview")
    assert level == MISSING and "none.png" in text


def test_a_previous_run(toml, tmp_path):
    config = load_config(toml())
    folder = tmp_path / "run"

    def save(step, **state):
        return save_checkpoint(folder, step, {"x": torch.zeros(1)}, state, keep=5)

    save(2, config=to_mapping(config))
    ((level, text),) = found(examine(toml()), "previous run")
    assert (level, text) == (NOTE, "step_00000002.safetensors is there: the command goes on from step 2")
    ((level, text),) = found(examine(toml(), ["run.seed=9"]), "previous run")
    assert level == MISSING and "run.seed is 9, the checkpoint has 0" in text
    save(3, config={"train": {}})
    ((level, text),) = found(examine(toml()), "previous run")
    assert level == MISSING and "holds a run of distill, step 3" in text
    (folder / "step_00000004.safetensors").write_bytes(b"cut")
    ((level, text),) = found(examine(toml()), "previous run")
    assert level == MISSING and "step_00000004.safetensors cannot be read" in text


# A distillation's config


def test_a_distillation_is_known_by_its_tables(toml, tmp_path):
    report = examine(toml('[base]\npath = "builtin"\n[optim]\nkind = "adamw-8bit"\n[train]\ncrop_px = 32\n'))
    assert report.uses_builtin and {"accelerate", "peft", "bitsandbytes"} <= report.modules
    assert found(report, "config") == [(OK, f"{tmp_path / 'config.toml'}: distill")]
    assert found(report, "data")[0][0] == OK
    other = examine(toml("[adapter]\nrank = 4\n[train]\ncrop_px = 96\n"))
    assert other.uses_builtin and "bitsandbytes" not in other.modules
    assert found(other, "data")[0][0] == MISSING  # 130 x 110 photographs give no crop of 96 + 32


@pytest.mark.parametrize("table", ["base", "adapter", "train", "ablation", "memory"])
def test_one_table_of_its_own_is_enough(tmp_path, photos, table):
    path = tmp_path / "config.toml"
    path.write_text(f"[data]\nfolders = {[str(photos)]!r}\n[{table}]\n")
    ((level, text),) = found(examine(path, [f"run.output_dir={str(tmp_path / 'run')!r}"]), "config")
    assert (level, text) == (OK, f"{path}: distill")


def test_a_previous_distillation(distillation, tmp_path):
    """What the trainer refuses is missing, in its words."""
    config = distillation()
    path = tiny_distill_run.write_toml(tmp_path / "config.toml", config)
    Distiller(config).train(last_step=1)

    def said(*overrides):
        ((level, text),) = found(examine(path, overrides), "previous run")
        return level, text

    there = "step_00000001.safetensors is there: the command goes on from step 1"
    assert said() == said("run.log_every=3") == (NOTE, there)
    refused = "step 1 of another run: adapter.rank is 8, the checkpoint has 4: restore the old value"
    assert said("adapter.rank=8")[0] == MISSING and said("adapter.rank=8")[1].startswith(refused)
    with pytest.raises(ConfigError, match=r"adapter\.rank is 8, the checkpoint has 4"):
        Distiller(tiny_distill_run.changed(config, adapter={"rank": 8}))
    assert said("train.accumulation=2")[1].startswith("step 1 of another run: train.accumulation is 2")
    Distiller(distillation("two", train={"accumulation": 2})).train(last_step=1)
    assert said(f"run.output_dir={str(tmp_path / 'two')!r}") == (NOTE, f"{there}, with 2 processes")


def test_the_parts_of_a_large_base(toml, tmp_path):
    extra = '[base]\npath = "{0}/qwen"\nvae = "{0}/vae"\nprompt = "{0}/prompt.safetensors"\n[train]\ncrop_px = 32\n'
    report = examine(toml(extra.format(tmp_path)))
    assert not report.uses_builtin
    for name in ("base.path", "base.vae", "base.prompt"):
        ((level, text),) = found(report, name)
        assert level == MISSING and text.startswith("nothing at ")
    tiny_qwen.write_folder(tmp_path / "qwen")
    (tmp_path / "vae").mkdir()
    (tmp_path / "prompt.safetensors").write_bytes(b"cut")
    report = examine(toml(extra.format(tmp_path)))
    assert [found(report, f"base.{name}")[0][0] for name in ("path", "vae", "prompt")] == [OK, OK, MISSING]
    write_prompt(tmp_path / "prompt.safetensors", torch.ones(5, 8), "", "x")
    assert found(examine(toml(extra.format(tmp_path))), "base.prompt")[0][0] == OK


def test_a_base_is_looked_at_with_the_eyes_of_distill(toml, tmp_path, tiny_base):
    """Which refuses at once what is no base, and settings that do not go with the one that is there."""

    def said(*overrides):
        report = examine(toml("[train]\ncrop_px = 32\n"), overrides)
        return [(name, level, text) for name in ("base.path", "base") for level, text in found(report, name)]

    (tmp_path / "README.md").write_text("# not a model\n" * 20)
    ((name, level, _),) = said(f"base.path={tmp_path / 'README.md'}", "base.prompt=", "train.crop_px=48")
    assert (name, level) == ("base.path", MISSING)
    assert said(f"base.path={tiny_base}") == [("base.path", OK, f"{tiny_base} is there")]
    assert said() == []  # the built-in one has a finding of its own
    for base in (f"base.path={tiny_base}", "base.path=builtin"):
        name, level, text = said(base, "ablation.dtc=false")[-1]
        assert (name, level) == ("base", MISSING) and text.startswith("ablation.dtc is False")
    folder = tiny_qwen.write_vae(tiny_qwen.write_folder(tmp_path / "Qwen-Image"))
    there, wrong = said(f"base.path={folder}", "base.prompt=", "run.autocast=true")
    assert there == ("base.path", OK, f"{folder} is there")
    assert wrong[:2] == ("base", MISSING) and wrong[2].startswith("base.prompt is empty")
    assert said(f"base.path={folder}", "base.prompt=none", "train.crop_px=48")[1][2].startswith("train.crop_px is 48")
    assert said(f"base.path={folder}", "base.prompt=none", "loss.loss_space=latent") == [there]
