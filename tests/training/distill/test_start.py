"""`adapter.start`: a run begins as the LoRA that it goes on from, records it, and refuses one that does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from helpers.tiny import odtsr as tiny_odtsr
from helpers.tiny import qwen as tiny_qwen
from helpers.tiny.distill_run import assert_equal, changed, newest, write_toml
from teasr_core.errors import ConfigError, LoraFileError, ModelFileError
from teasr_core.model.branch_lora import BLOCK_TARGETS, BranchLora
from teasr_core.model.recipe import Recipe
from teasr_core.restorer import load_qwen_restorer
from teasr_core.weight_files.base_file import LORA_NAME, build_velocity, read_base
from teasr_core.weight_files.lora_file import PREFIX, read_lora
from teasr_core.whole_file import file_sha256
from training.distill.start import read_start
from training.distill.trainer import Distiller
from training.doctor.config import examine
from training.doctor.finding import MISSING, OK
from training.export.lora import export_lora
from training.frozen_base.new_adapter import new_adapter


@pytest.fixture
def lora(tmp_path):
    """A random LoRA of the tiny base, with a prompt embedding that is not the base's."""
    return tiny.write_lora(tmp_path / "lora.safetensors")


def call(velocity):
    z_t, z_lq = tiny.latents()
    with torch.no_grad():
        return velocity(z_t, torch.tensor([0.9, 0.5]), z_lq, torch.tensor([0.2, -0.3]))


def loaded(config, lora):
    """What base and LoRA give as files, without the trainer."""
    return call(build_velocity(read_base(Path(config.base.path)), read_lora(lora)))


# The first step


@pytest.mark.parametrize(("alpha", "tolerance"), [(4.0, 0.0), (2.0, 0.0), (3.0, 1e-5)])
def test_step_0_is_the_output_of_the_loaded_lora(distillation, lora, alpha, tolerance):
    """Whatever alpha / rank the run multiplies by; to the bit where that is a power of two."""
    config = distillation(adapter={"start": str(lora), "alpha": alpha})
    trainer = Distiller(config)
    wanted, found = loaded(config, lora), call(trainer.model.velocity)
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())
    assert trainer.step == 0 and not torch.allclose(found, call(tiny.velocity()), atol=1e-2)
    assert all(torch.equal(trainer.ema.shadow[name], value) for name, value in trainer.parameters.items())


def test_the_parameters_have_the_order_of_a_new_adapter_s(distillation, lora):
    config = distillation(adapter={"start": str(lora), "targets": list(reversed(BLOCK_TARGETS))})
    start, before = read_start(config), torch.get_rng_state()
    names = [name for name, _ in start.adapter(tiny.ARCHITECTURE, config.adapter).named_parameters()]
    assert torch.equal(torch.get_rng_state(), before)
    new = new_adapter(tiny.velocity().transformer, tiny.ARCHITECTURE, config.adapter, seed=0)
    assert names == [name for name, _ in new.named_parameters()]


def test_a_run_goes_on_from_what_another_one_exported(distillation, tmp_path):
    """Twice as far: what was learnt stays, and every exported file names the one before it."""
    first, exported = distillation("first"), tmp_path / "mine.safetensors"
    Distiller(first).train()
    export_lora(Path(first.run.output_dir), exported, "raw")
    second = distillation("second", adapter={"start": str(exported), "alpha": 8.0})
    trainer = Distiller(second)
    assert torch.equal(call(trainer.model.velocity), loaded(second, exported))
    trainer.train()
    record = {
        "file": "mine.safetensors", "sha256": file_sha256(exported), "steps": 6, "base": "tiny",
        "base_fingerprint": read_lora(exported).base_fingerprint,
    }  # fmt: skip
    assert newest(second)[1]["start"] == record and "start" not in newest(first)[1]
    export_lora(Path(second.run.output_dir), tmp_path / "more.safetensors")
    made = read_lora(tmp_path / "more.safetensors").config
    assert made["export"]["start"] == record and made["adapter"]["start"] == "mine.safetensors"
    assert "start" not in read_lora(exported).config["export"]


def test_the_run_trains_with_the_prompt_of_the_lora(distillation, lora):
    run = distillation(adapter={"start": str(lora)}, train={"steps": 1})
    Distiller(run).train()
    prompt = newest(run)[0]["prompt_embeds"]
    assert torch.equal(prompt, read_lora(lora).prompt_embeds) and not torch.equal(prompt, tiny.prompt_embeds())


def test_the_shipped_lora_is_called_builtin(distillation):
    run = distillation(base={"path": "builtin"}, adapter={"start": "builtin", "rank": 32})
    assert read_start(run).record["file"] == LORA_NAME
    with pytest.raises(ConfigError, match=rf"adapter\.rank is 4, adapter\.start {LORA_NAME} has rank 32: set"):
        read_start(changed(run, adapter={"rank": 4}))


# Resume


@pytest.mark.parametrize("options", [{}, {"optim": {"kind": "adamw-cpu"}, "adapter": {"dtype": "bf16"},
                                          "run": {"autocast": True}}], ids=["float32", "bf16"])  # fmt: skip
def test_four_steps_equal_two_and_two_though_the_file_is_gone(distillation, lora, options):
    options = {**options, "train": {"steps": 4}, "adapter": {**options.get("adapter", {}), "start": str(lora)}}
    whole, parts = distillation("whole", **options), distillation("parts", **options)
    Distiller(whole).train()
    Distiller(parts).train(last_step=2)
    lora.unlink()
    Distiller(parts).train()
    assert_equal(newest(parts), newest(whole, 4))
    assert newest(parts)[1]["start"]["file"] == lora.name


def test_another_start_is_another_run(distillation, lora, tmp_path):
    plain, run = distillation("plain"), distillation("started", adapter={"start": str(lora)})
    Distiller(plain).train(last_step=1)
    Distiller(run).train(last_step=1)
    other = tiny.write_lora(tmp_path / "other.safetensors")
    for saved, wanted in ((plain, str(lora)), (run, ""), (run, str(other))):
        with pytest.raises(ConfigError, match=r"^adapter\.start is .*, the checkpoint has .*new run\.output_dir"):
            Distiller(changed(saved, adapter={"start": wanted}))


def test_a_truncated_checkpoint_is_named(distillation, lora):
    run = distillation(adapter={"start": str(lora)})
    Distiller(run).train(last_step=1)
    path = Path(run.run.output_dir) / "step_00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=rf"{path.name} .*delete it to resume"):
        Distiller(run)


# What does not fit


def written_with(lora, tmp_path, **metadata):
    """The same LoRA with other metadata; only the tensors of its targets."""
    targets = json.loads(metadata.get("teasr.targets", json.dumps(BLOCK_TARGETS)))
    kept = {k: v for k, v in load_file(lora).items() if not k.startswith(f"{PREFIX}transformer") or
            any(f".{target}.lora" in k for target in targets)}  # fmt: skip
    path = tmp_path / "changed.safetensors"
    save_file(kept, path, metadata=tiny.lora_file_metadata(**metadata))
    return str(path)


@pytest.mark.parametrize(("adapter", "message"), [
    ({"rank": 8}, r"^adapter\.rank is 8, adapter\.start lora\.safetensors has rank 4: set adapter\.rank to 4"),
    ({"targets": ["attn.to_q", "attn.to_k"]}, r'^adapter\.targets is \["attn\.to_q", "attn\.to_k"\], adapter\.start '
                                              r'lora\.safetensors has others: set adapter\.targets=\["attn\.to_q", '),
])  # fmt: skip
def test_another_rank_or_other_targets_are_refused(distillation, lora, adapter, message):
    with pytest.raises(ConfigError, match=message):
        Distiller(distillation(adapter={"start": str(lora), **adapter}))


def test_a_file_with_few_targets_is_refused_and_taken_when_the_config_has_them(distillation, lora, tmp_path):
    targets = ["attn.to_k", "img_mod.1"]
    few = written_with(lora, tmp_path, **{"teasr.targets": json.dumps(targets)})
    with pytest.raises(ConfigError, match=r'set adapter\.targets=\["attn\.to_k", "img_mod\.1"\]'):
        Distiller(distillation(adapter={"start": few}))
    run = distillation(adapter={"start": few, "targets": targets[::-1]})
    assert torch.equal(call(Distiller(run).model.velocity), loaded(run, Path(few)))


def test_another_base_is_refused_unless_the_config_allows_it(distillation, lora, tmp_path):
    other = written_with(lora, tmp_path, **{"teasr.base_fingerprint": "0" * 64, "teasr.base": "elsewhere"})
    with pytest.raises(LoraFileError, match=r"trained on 'elsewhere' .*allow_other_base"):
        Distiller(distillation("a", adapter={"start": other}))
    run = distillation("b", adapter={"start": other, "allow_other_base": True})
    assert torch.equal(call(Distiller(run).model.velocity), loaded(run, lora))
    velocity = written_with(lora, tmp_path, **{"teasr.prediction": "velocity"})
    with pytest.raises(LoraFileError, match="predicts 'velocity', the model 'lq_residual'"):
        Distiller(distillation("c", adapter={"start": velocity, "allow_other_base": True}))


def test_what_is_no_lora_is_refused(distillation, lora, tiny_base, tmp_path):
    for start, error, message in (
        (tmp_path / "none.safetensors", ModelFileError, "no weight file at .*none"),
        (tmp_path, ConfigError, r"is a folder: .*training export .* my_lora\.safetensors"),
        (tiny_base, LoraFileError, "expected a TEASR LoRA"),
    ):
        with pytest.raises(error, match=message):
            Distiller(distillation(adapter={"start": str(start)}))


def test_the_doctor_says_what_distill_would(distillation, lora, tmp_path):
    run = distillation(adapter={"start": str(lora)})
    toml = write_toml(tmp_path / "config.toml", run)

    def said(*overrides):
        return [(one.level, one.text) for one in examine(toml, overrides).findings if one.name == "adapter.start"]

    assert said() == [(OK, "lora.safetensors: rank 4, 7 steps, it fits")]
    ((level, text),) = said("adapter.rank=8")
    assert level == MISSING and text.startswith("adapter.rank is 8, adapter.start lora.safetensors has rank 4")
    Distiller(run).train(last_step=1)
    lora.unlink()
    assert said() == []  # it is not read again


# On Qwen-Image


def test_a_lora_of_qwen_image_brings_the_prompt(distillation, tmp_path):
    folder = tiny_qwen.write_vae(tiny_qwen.write_folder(tmp_path / "Qwen-Image"))
    lora = tiny_qwen.write_lora(tmp_path / "qwen_lora.safetensors")
    run = distillation(
        base={"path": str(folder), "dtype": "fp32"}, adapter={"start": str(lora), "alpha": 4.0},
        train={"steps": 2}, loss={"loss_space": "latent"},
    )  # fmt: skip
    trainer = Distiller(run)
    wanted = tiny_qwen.velocity(tiny_qwen.weights())
    file = read_lora(lora)
    wanted.lora = BranchLora.from_tensors({key: value.float() for key, value in file.tensors.items()})
    wanted.prompt_embeds = file.prompt_embeds
    assert torch.equal(tiny_qwen.output(trainer.model.velocity), tiny_qwen.output(wanted))
    trainer.train()
    assert Distiller(run).step == 2  # the prompt comes from the checkpoint
    bare = tiny_qwen.write_lora(tmp_path / "bare.safetensors", use_prompt=False)
    wrong = replace(changed(run, adapter={"start": str(bare)}), run=replace(run.run, output_dir=str(tmp_path / "new")))
    with pytest.raises(ConfigError, match=r"^base\.prompt is empty and adapter\.start bare\.safetensors holds no"):
        Distiller(wrong)


def test_an_imported_lora_goes_on_as_one_of_teasr(distillation, tmp_path, capsys):
    """At t_tar = t_cur the first step is the file's own velocity; other target times count, and img_in is trained."""
    files = tiny_odtsr.write_files(tmp_path)
    base = {"path": str(files.base), "vae": str(files.vae), "dtype": "fp32"}
    adapter = {"start": str(files.lora), "alpha": 4.0, "targets": [*BLOCK_TARGETS, "img_in"]}
    run = distillation(base=base, adapter=adapter, train={"steps": 2}, loss={"loss_space": "latent"})
    with pytest.raises(ConfigError, match=r'set adapter\.targets=\[.*"img_in".*\]'):
        Distiller(changed(run, adapter={"targets": BLOCK_TARGETS}))
    trainer, file = Distiller(run), read_lora(files.lora)
    said = f"condition_time current becomes target, start_time {file.recipe.start_time} becomes 1.0"
    assert f"odtsr.safetensors is of another scheme: {said}" in capsys.readouterr().err
    theirs, ours = load_qwen_restorer(files.base, files.lora, files.vae, "fp32").velocity, trainer.model.velocity
    z_t, z_lq = tiny_qwen.latents()
    t, later = torch.tensor([0.9, 0.5]), torch.tensor([0.2, -0.3])
    with torch.no_grad():
        wanted = theirs(z_t, t, z_lq, t)
        assert tiny_qwen.difference(ours(z_t, t, z_lq, t), wanted) < 1e-6
        assert tiny_qwen.difference(ours(z_t, t, z_lq, later), wanted) > 1e-3
    trainer.train()
    export_lora(trainer.folder, tmp_path / "mine.safetensors", "raw")
    made = read_lora(tmp_path / "mine.safetensors")
    assert made.recipe == Recipe(gelu=file.recipe.gelu, velocity_scale=file.recipe.velocity_scale) != Recipe()
    assert not torch.equal(made.tensors["img_in.lora_B.weight"], file.tensors["img_in.lora_B.weight"].bfloat16())
    again = Distiller(run)
    assert again.step == 2 and again.model.velocity.recipe == made.recipe
