"""`import-odtsr`: every key of the checkpoint is used or named, and anything unexpected is refused whole."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from contract import qwen_on_disk
from helpers.tiny import odtsr as tiny
from teasr_core.model.branch_lora import READABLE_TARGETS, target_paths
from teasr_core.weight_files.lora_file import UNKNOWN_BASE, fingerprint, read_lora
from teasr_core.weight_files.recipe_metadata import KEYS
from teasr_core.weight_files.safetensors_reader import read_header
from teasr_core.weight_files.start_encoder import comfy_encoder_key, read_start_encoder
from training.cli.commands import main
from training.export.odtsr import odtsr_recipe, schedule_times

LORA = "pipe.dit.transformer_blocks.0.attn.to_q.lora_"
ENCODER = "pipe.new_vae.encoder."


@pytest.fixture
def run(tmp_path, capsys):
    """run(checkpoint, *options): the exit code, and what was printed, for the tensors of a checkpoint."""

    def call(stored, *options):
        torch.save(stored, tmp_path / "net.pth")
        outputs = (tmp_path / "lora.safetensors", tmp_path / "encoder.safetensors")
        code = main(["import-odtsr", str(tmp_path / "net.pth"), *map(str, [*outputs, *options])])
        said = capsys.readouterr()
        return code, said.out, said.err, *outputs

    return call


def test_every_key_is_used_or_named(run):
    stored = tiny.checkpoint()
    code, out, err, lora_path, encoder_path = run(stored)
    assert code == 0
    lora, encoder = read_lora(lora_path), read_start_encoder(encoder_path)
    paths = target_paths(tiny.LAYERS, READABLE_TARGETS)
    assert {key.rsplit(".lora_", 1)[0] for key in lora.tensors} == set(paths) and "img_in" in paths
    for path in paths:
        for half in "AB":
            assert torch.equal(
                lora.tensors[f"{path}.lora_{half}.weight"], stored[f"pipe.dit.{path}.lora_{half}2.weight"]
            )
    convolutions = {key.removeprefix("pipe.new_vae."): value for key, value in stored.items() if ENCODER in key}
    assert encoder.tensors.keys() == {comfy_encoder_key(key) for key in convolutions}
    assert all(torch.equal(encoder.tensors[comfy_encoder_key(key)], value) for key, value in convolutions.items())
    used = len(lora.tensors) + len(encoder.tensors)
    named = [int(line.split()[2]) for line in out.splitlines() if line.startswith("left out ")]
    assert used + sum(named) == len(stored)
    assert "noise half" in out and "last block" in out
    assert "no prompt embedding" in err and "without --base" in err and "not zero" not in err


def test_what_their_scripts_fix_stands_in_the_file(run):
    code, _, _, lora_path, encoder_path = run(tiny.checkpoint())
    recipe = read_lora(lora_path).recipe
    assert code == 0
    assert recipe == odtsr_recipe("encoder.safetensors", read_start_encoder(encoder_path).sha256)
    assert recipe.condition_time == "current" and recipe.gelu == "sigmoid" and recipe.blend == "border"
    assert recipe.start_time == pytest.approx(0.4361254, abs=1e-7)
    assert recipe.start_time * recipe.velocity_scale == 0.435546875  # their step, rounded to bf16
    assert (recipe.tile_px, recipe.overlap_px) == (512, 128)


def test_the_schedule_is_theirs():
    """`sigmas` of DiffSynth's FlowMatchScheduler in float64, at the ends and at ODTSR's start."""
    times, linear = schedule_times(), torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1]
    shifted = linear.mul(0.8).exp().mul(0) + 1 / (
        1 + torch.exp(torch.tensor(-0.8, dtype=torch.float64)) * (1 / linear - 1)
    )
    expected = 1 - (1 - shifted) * (0.98 / (1 - shifted[-1]))
    assert len(times) == 1000 and times[0] == 1 and times[-1] == pytest.approx(0.02)
    assert torch.allclose(torch.tensor(times, dtype=torch.float64), expected, atol=1e-6)


@pytest.mark.parametrize("fidelity", [0.0, 0.05, 0.123, 0.37, 0.5, 0.998, 0.9981, 1.0])
def test_fidelity_takes_their_index(fidelity):
    index = int(750 + fidelity * (1000 - 750) + 0.5)
    expected = 0.0 if index == 1000 else schedule_times()[index]
    assert odtsr_recipe("e", "h").lq_time(fidelity) == expected


def test_the_base_is_named_where_it_is_given(run, tmp_path):
    base = qwen_on_disk.write_single(tmp_path / "base.safetensors", tiny.base())
    code, _, err, lora_path, _ = run(tiny.checkpoint(), "--base", base)
    assert code == 0 and "without --base" not in err
    assert read_lora(lora_path).base_fingerprint == fingerprint(tiny.base())


def test_a_base_of_another_shape_is_refused(run, tmp_path):
    base = qwen_on_disk.write_single(tmp_path / "base.safetensors", qwen_on_disk.weights(layers=2))
    code, _, err, *outputs = run(tiny.checkpoint(), "--base", base)
    assert code == 2 and "another architecture" in err
    assert not any(path.exists() for path in outputs)


def test_without_a_base_it_is_unknown(run):
    assert read_lora(run(tiny.checkpoint())[3]).base_fingerprint == UNKNOWN_BASE


def test_float32_stays_float32(run):
    stored = {key: value.float() * 1.001 for key, value in tiny.checkpoint().items()}
    path = run(stored)[3]
    found = load_file(path)["teasr.img_in.lora_A.weight"]
    assert found.dtype == torch.float32 and torch.equal(found, stored["pipe.dit.img_in.lora_A2.weight"])


def test_a_whole_encoder_is_taken_too(run):
    """Norms and attention of the second encoder, which ODTSR's code does not save, have their place."""
    stored = tiny.checkpoint()
    for name, value in tiny.vae().items():
        if name.startswith("encoder."):
            stored.setdefault(f"pipe.new_vae.{name}", value)
    code, _, _, _, encoder_path = run(stored)
    assert code == 0
    assert "encoder.middle.1.norm.gamma" in read_start_encoder(encoder_path).tensors


def test_a_noise_half_that_is_not_zero_is_left_out_with_a_warning(run):
    stored = tiny.checkpoint()
    stored[f"{LORA}B1.weight"] += 1
    code, _, err, lora_path, _ = run(stored)
    assert code == 0 and "the noise half is not zero" in err
    assert not any("lora_B1" in key for key in load_file(lora_path))


def without(key):
    return lambda stored: stored.pop(key)


def put(key, value):
    return lambda stored: stored.__setitem__(key, value)


REFUSED = {
    "another key": (put("pipe.dit.proj_out.weight", torch.zeros(2)), "1 others ['pipe.dit.proj_out.weight']"),
    "a prefix of DDP": (lambda s: s.update({f"module.{k}": s.pop(k) for k in list(s)}), "0 tensors of a LoRA"),
    "no encoder": (lambda s: [s.pop(k) for k in list(s) if ENCODER in k], "0 of a second VAE encoder"),
    "a layer less": (lambda s: [s.pop(k) for k in list(s) if LORA in k], "1 of 22 adapted layers are missing"),
    "another layer": (
        lambda s: s.update({k.replace("to_q", "add_q_proj"): v for k, v in s.items() if LORA in k}),
        "1 are unknown ['transformer_blocks.0.attn.add_q_proj']",
    ),
    "a half less": (without(f"{LORA}B2.weight"), "1 halves are missing"),
    "a noise half less": (without(f"{LORA}A1.weight"), "1 halves are missing"),
    "another rank": (put(f"{LORA}A2.weight", torch.zeros(3, 64)), "of rank 4"),
    "a number": (put("iteration", 7), "expected names and tensors alone"),
    "NaN": (put(f"{LORA}A2.weight", torch.full((4, 64), torch.nan)), "holds NaN or infinity"),
    "whole numbers": (put(f"{LORA}A2.weight", torch.zeros(4, 64, dtype=torch.int8)), "expected bf16, fp16 or fp32"),
    "a convolution less": (without(f"{ENCODER}down_blocks.0.conv1.bias"), "1 convolutions are missing"),
    "another convolution": (put(f"{ENCODER}down_blocks.99.conv1.bias", torch.zeros(8)), "tensors are unknown"),
    "another shape": (put(f"{ENCODER}conv_in.bias", torch.zeros(9)), "tensors are unknown or of another shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_unexpected_is_refused_whole(run, case):
    change, says = REFUSED[case]
    stored = tiny.checkpoint()
    change(stored)
    code, _, err, *outputs = run(stored)
    assert code == 2 and says in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not any(path.exists() for path in outputs)


class Harmful:
    """Runs a command when it is unpickled by a reader that allows it."""

    ran = False

    def __reduce__(self):
        return (setattr, (Harmful, "ran", True))


def test_only_tensors_are_unpickled(run):
    code, _, err, *_ = run({**tiny.checkpoint(), "x": Harmful()})
    assert code == 2 and "cannot be read as a checkpoint of plain tensors" in err
    assert not Harmful.ran


def test_no_file_is_written_over(run):
    assert run(tiny.checkpoint())[0] == 0
    code, _, err, *_ = run(tiny.checkpoint())
    assert code == 2 and "exists already" in err
    assert run(tiny.checkpoint(), "--overwrite")[0] == 0


def test_a_missing_file_and_one_of_another_kind(tmp_path, capsys):
    outputs = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    assert main(["import-odtsr", str(tmp_path / "none.pth"), *outputs]) == 2
    (tmp_path / "text.pth").write_text("no checkpoint")
    assert main(["import-odtsr", str(tmp_path / "text.pth"), *outputs]) == 2
    assert main(["import-odtsr", str(tmp_path / "text.pth"), outputs[0], outputs[0]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [says in line for says, line in zip(["no file at", "cannot be read", "named twice"], lines, strict=True)]
    assert len(lines) == 3


def test_exporting_the_file_again_keeps_its_recipe(run, tmp_path):
    path = run(tiny.checkpoint())[3]
    assert main(["export", str(path), str(tmp_path / "again.safetensors")]) == 0
    again, first = read_lora(tmp_path / "again.safetensors"), read_lora(path)
    assert again.recipe == first.recipe and again.targets == first.targets
    assert read_header(tmp_path / "again.safetensors")[1] == read_header(path)[1]


def test_a_file_that_says_nothing_of_a_recipe_has_teasrs_own(run):
    path = run(tiny.checkpoint())[3]
    recipe = read_lora(path).recipe
    tiny.change_metadata(path, **dict.fromkeys(KEYS.values()))
    plain = read_lora(path).recipe
    assert plain == type(recipe)()
    assert not any(getattr(plain, f.name) == getattr(recipe, f.name) for f in dataclasses.fields(plain))
