"""Export of a LoRA (docs/training/lora_format.md) from checkpoints and LoRA files, by function and by command."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.tiny import distill as tiny_distill
from helpers.tiny import model as tiny
from teasr_core.errors import InputError, ModelFileError, TeasrError
from teasr_core.model.branch_lora import BLOCK_TARGETS, BranchLora, target_paths
from teasr_core.weight_files.base_file import build_velocity, read_base
from teasr_core.weight_files.lora_file import PROMPT_KEY, check_base, fingerprint, read_lora
from training.cli.commands import main
from training.export.lora import export_lora, without_folders

KEYS = {
    f"{path}.lora_{half}.weight" for path in target_paths(tiny.ARCHITECTURE.num_layers, BLOCK_TARGETS) for half in "AB"
}


@pytest.fixture
def run(tmp_path):
    return tiny_distill.write_run(tmp_path / "run")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "mine.safetensors"


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def command(capsys, *arguments):
    capsys.readouterr()
    try:
        code = main(["export", *map(str, arguments)])
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


# What is written


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_file_is_the_trained_adapter_with_alpha_folded_in(run, out, weights):
    summary = export_lora(run, out, weights)
    stored = load_file(out)
    assert set(stored) == {f"teasr.{key}" for key in KEYS} | {PROMPT_KEY}
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    trained = tiny_distill.raw_lora() if weights == "raw" else tiny_distill.ema_lora()
    for key, value in tiny_distill.folded(trained).items():
        assert torch.equal(stored[f"teasr.{key}"], value.bfloat16())
    assert torch.equal(stored[PROMPT_KEY], tiny.prompt_embeds(seed=22).bfloat16())
    assert summary == {
        "weights": weights, "samples": 40, "hours": 2.0, "steps": 5, "rank": 4, "prefix": "teasr.", "has_prompt": True,
    }  # fmt: skip


def test_the_metadata_is_what_spec_2_lists(run, out):
    export_lora(run, out)
    metadata = metadata_of(out)
    config = json.loads(metadata.pop("teasr.config"))
    assert json.loads(metadata.pop("teasr.targets")) == list(BLOCK_TARGETS)
    assert metadata == {
        "teasr.format": "1",
        "teasr.scope": "condition",
        "teasr.positions": "shared",
        "teasr.prediction": "lq_residual",
        "teasr.rank": "4",
        "teasr.base": tiny.BASE_ID,
        "teasr.base_fingerprint": fingerprint(tiny.base_weights()),
        "teasr.step": "5",
    }
    assert config["adapter"] == tiny_distill.CONFIG["adapter"]
    assert config["export"] == {"weights": "ema", "samples": 40, "hours": 2.0}


def test_no_folder_of_the_trainer_s_machine_is_given_away(run, out):
    export_lora(run, out)
    config = read_lora(out).config
    assert config["run"]["output_dir"] == "distill"
    assert config["data"]["folders"] == ["LSDIR", "lists/train.txt"]
    assert "somebody" not in metadata_of(out)["teasr.config"]
    assert without_folders({"a": ["~/x/y.png", 3, None], "b": "Qwen/Qwen-Image-2512"}) == {
        "a": ["y.png", 3, None],
        "b": "Qwen/Qwen-Image-2512",
    }


def test_the_exported_file_restores_like_the_trained_adapter(run, out, tmp_path):
    """The velocity of base + file equals that of base + (A, B scaled by alpha/rank) up to bf16's rounding."""
    export_lora(run, out)
    base = read_base(tiny.write_base(tmp_path / "base.safetensors"))
    lora = read_lora(out)
    check_base(lora, base.architecture, base.prediction, base.tensors)
    z_t, z_lq = tiny.latents()
    times = torch.full((2,), 0.7), torch.full((2,), 0.2)
    velocities = {name: build_velocity(base, lora) for name in ("file", "trained", "unfolded")}
    velocities["trained"].lora = BranchLora.from_tensors(tiny_distill.folded(tiny_distill.ema_lora()))
    velocities["unfolded"].lora = BranchLora.from_tensors(tiny_distill.ema_lora())
    velocities["none"] = build_velocity(base)
    with torch.inference_mode():
        v = {name: velocity(z_t, times[0], z_lq, times[1]) for name, velocity in velocities.items()}
    distance = {name: float((value - v["trained"]).abs().max()) for name, value in v.items()}
    assert distance["file"] <= 0.02 * distance["none"]
    assert distance["unfolded"] > 0.2 * distance["none"]  # bite


def test_the_newest_checkpoint_is_taken_or_the_one_given(run, out):
    tiny_distill.write_run(run, step=9)
    assert export_lora(run, out)["steps"] == 9
    assert export_lora(run / "step_00000005.safetensors", out)["steps"] == 5  # replaces the file, like a base


def test_fewer_targets(tmp_path, out):
    targets = ["attn.to_k", "img_mod.1"]
    tensors = {
        key: value
        for key, value in tiny_distill.checkpoint_tensors().items()
        if key == "prompt_embeds" or any(f".{target}." in key for target in targets)
    }
    export_lora(tiny_distill.write_run(tmp_path / "few", tensors=tensors, targets=targets), out)
    assert read_lora(out).targets == tuple(targets)


# The ordinary prefixes


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_all_tokens_form_from_a_run_and_from_a_file_are_the_same(run, out, tmp_path, prefix):
    export_lora(run, out)
    unsafe, converted, back = (tmp_path / f"{name}.safetensors" for name in ("unsafe", "converted", "back"))
    summary = export_lora(run, unsafe, all_tokens_unsafe=prefix)
    assert summary["prefix"] == prefix
    assert not summary["has_prompt"]
    assert export_lora(out, converted, all_tokens_unsafe=prefix) == summary
    assert set(load_file(unsafe)) == {prefix + key for key in KEYS}
    assert all(torch.equal(value, load_file(converted)[key]) for key, value in load_file(unsafe).items())
    assert metadata_of(unsafe) == metadata_of(converted) == metadata_of(out)
    ours, read = read_lora(out), read_lora(unsafe)
    assert read.prompt_embeds is None
    assert all(torch.equal(read.tensors[key], ours.tensors[key]) for key in KEYS)
    assert (read.rank, read.targets, read.base_fingerprint) == (ours.rank, ours.targets, ours.base_fingerprint)
    assert not export_lora(unsafe, back)["has_prompt"]  # the safe keys again, without the prompt it had lost
    assert set(load_file(back)) == {f"teasr.{key}" for key in KEYS}


# What is refused, with nothing written


def without(part):
    return {key: value for key, value in tiny_distill.checkpoint_tensors().items() if part not in key}


def with_nan():
    tensors = tiny_distill.checkpoint_tensors()
    tensors["ema.transformer_blocks.0.attn.to_q.lora_A.weight"][1, 2] = float("nan")
    return tensors


def with_unknown_layer():
    tensors = tiny_distill.checkpoint_tensors()
    for half, shape in (("A", (4, 64)), ("B", (64, 4))):
        tensors[f"ema.transformer_blocks.0.attn.add_q_proj.lora_{half}.weight"] = torch.ones(shape)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (without("0.attn.to_q.lora_A"), "missing halves"),
        (without("0.attn.to_q."), "1 of 10 layers missing"),
        (without("transformer_blocks.1."), "unknown"),
        (with_unknown_layer(), "1 unknown"),
        (without("prompt_embeds"), "no 'prompt_embeds'"),
        (with_nan(), "diverged"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, out, tensors, match):
    with pytest.raises(ModelFileError, match=match):
        export_lora(tiny_distill.write_run(tmp_path / "bad", tensors=tensors), out)
    assert not out.exists()


def test_a_rank_that_is_not_the_tensors_is_refused(tmp_path, out):
    with pytest.raises(ModelFileError, match="expected rank 8"):
        export_lora(tiny_distill.write_run(tmp_path / "bad", rank=8), out)
    assert not out.exists()


@pytest.mark.parametrize("prefix", [None, "transformer."])
def test_a_whole_model_is_sent_to_the_base_export(tmp_path, out, prefix):
    whole = {f"model.{k}": v for k, v in tiny.base_weights().items()}
    whole |= {f"ema.{key}": value.clone() for key, value in whole.items()}
    run = tiny_distill.write_run(tmp_path / "whole", tensors=whole)
    with pytest.raises(InputError, match=r"python -m training export RUN OUT.* without --all-tokens-unsafe"):
        export_lora(run, out, all_tokens_unsafe=prefix)


def test_paths_that_cannot_be_used(run, out, tmp_path):
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    before = lora.read_bytes()
    base = tiny.write_base(tmp_path / "base.safetensors")
    plain = tmp_path / "plain.safetensors"
    save_file({f"transformer.{key}": value for key, value in tiny.lora_weights().items()}, plain)
    for source, target, prefix in [
        (run, tmp_path / "lora.pt", None),
        (run, out, "lycoris_"),
        (tmp_path, out, None),
        (tmp_path / "absent", out, None),
        (lora, lora, "transformer."),
        (base, out, None),
        (plain, out, None),
    ]:
        with pytest.raises(TeasrError) as caught:
            export_lora(source, target, all_tokens_unsafe=prefix)
        assert "\n" not in str(caught.value)
    assert not out.exists()
    assert lora.read_bytes() == before


# The command


def test_an_existing_file_is_replaced_only_when_asked(capsys, run, out):
    assert command(capsys, run, out)[0] == 0
    before = out.read_bytes()
    code, _, errors = command(capsys, run, out, "--weights", "raw")
    assert code == 2 and "exists already: give another name or pass --overwrite" in errors
    assert out.read_bytes() == before
    assert command(capsys, run, out, "--weights", "raw", "--overwrite")[0] == 0
    assert out.read_bytes() != before


def test_a_file_in_the_way_is_one_line(capsys, run, tmp_path):
    (tmp_path / "afile").write_text("")
    code, _, errors = command(capsys, run, tmp_path / "afile" / "deeper" / "o.safetensors")
    assert code == 2 and len(errors.splitlines()) == 1
    assert "afile is a file, expected a folder" in errors


def test_the_command_writes_a_lora_without_a_warning(capsys, run, out):
    code, printed, errors = command(capsys, run, out, "--weights", "raw")
    assert (code, errors) == (0, "")
    assert "LoRA, rank 4, 5 steps, keys teasr.*" in printed
    assert read_lora(out).config["export"]["weights"] == "raw"


@pytest.mark.parametrize(
    ("flag", "prefix"),
    [(["--all-tokens-unsafe"], "transformer."), (["--all-tokens-unsafe", "diffusion_model"], "diffusion_model.")],
)
def test_the_command_warns_of_the_all_tokens_form(capsys, run, out, flag, prefix):
    code, _, errors = command(capsys, run, out, *flag)
    assert code == 0
    first, second = errors.strip().splitlines()
    assert first.startswith("warning: a stock LoRA loader applies mine.safetensors to every token")
    assert "not what it was trained for" in first
    assert "no prompt embedding" in second
    assert all(key.startswith(prefix) for key in load_file(out))


def test_the_command_refuses_in_one_line(capsys, tmp_path, out):
    for arguments in ([tmp_path, out], [tiny.write_base(tmp_path / "b.safetensors"), out], [tmp_path, out, "--all"]):
        code, _, errors = command(capsys, *arguments)
        assert code == 2
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1


def test_the_command_writes_a_base_from_a_pretraining_run(capsys, config, out):
    from training.pretrain.trainer import Pretrainer

    run = config()
    trainer = Pretrainer(run)
    trainer.train()
    folder = run.run.output_dir
    code, printed, errors = command(capsys, folder, out)
    assert (code, errors) == (0, "")
    assert "base, 6 steps" in printed
    assert read_base(out).architecture.num_layers == 2
    other = out.with_name("other.safetensors")
    code, _, errors = command(capsys, folder, other, "--all-tokens-unsafe")
    assert code == 2
    assert "no LoRA" in errors
    assert not other.exists()


def test_an_encoder_is_blended_for_a_base_alone(capsys, run, out):
    code, _, errors = command(capsys, run, out, "--blend-encoder", "builtin", "0.5")
    assert code == 2 and "--blend-encoder is for a base" in errors and not out.exists()
