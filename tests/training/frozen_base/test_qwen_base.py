"""`distill` on a Qwen-Image from disk: a tiny one, real classes, as folder and as single file, held in every way."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from helpers.tiny import run as tiny_run
from teasr_core.errors import ConfigError, InputError, ModelFileError
from teasr_core.restorer import load_qwen_restorer
from teasr_core.weight_files.lora_file import fingerprint, read_lora
from teasr_core.weight_files.qwen_file import read_qwen
from teasr_core.weight_files.safetensors_reader import read_tensors
from training.config.distill import AdapterConfig, BaseConfig, DistillConfig, TrainConfig
from training.config.shared import DataConfig, DistillOptimConfig, RunConfig
from training.distill.trainer import Distiller
from training.export.lora import export_lora
from training.frozen_base.load import load_training_base
from training.frozen_base.prompt_file import write_prompt
from training.frozen_base.qwen_base import file_weights
from training.memory.config import MemoryConfig
from training.memory.groups import group_of
from training.memory.quantised_linear import FrozenLinear
from training.run.checkpoint import list_checkpoints


@pytest.fixture
def qwen(tmp_path):
    """(config of three steps, folder of the tiny Qwen-Image)"""
    folder = tiny_qwen.write_vae(tiny_qwen.write_folder(tmp_path / "Qwen-Image"))
    prompt = tmp_path / "prompt.safetensors"
    write_prompt(prompt, tiny.prompt_embeds(tiny_qwen.ARCHITECTURE, seed=5), "", "tiny")
    config = DistillConfig(
        run=RunConfig(
            output_dir=str(tmp_path / "run"), threads=1, workers=0, autocast=False, device="cpu", use_tensorboard=False
        ),
        base=BaseConfig(path=str(folder), prompt=str(prompt), dtype="fp32"),
        adapter=AdapterConfig(rank=4, alpha=4.0),
        data=DataConfig((str(tiny_run.write_photos(tmp_path / "photos")),), cache_mb=20),
        train=TrainConfig(steps=2, crop_px=32, batch_size=2),
        optim=DistillOptimConfig(lr=1e-3, lr_end=1e-3),
    )
    return config, folder


def trained(config, name, **memory):
    """Tensors of the run's last checkpoint."""
    folder = f"{config.run.output_dir}_{name}"
    run = replace(config, run=replace(config.run, output_dir=folder), memory=MemoryConfig(**memory))
    distiller = Distiller(run)
    distiller.train()
    assert distiller.bad_steps.skipped == 0
    return read_tensors(list_checkpoints(distiller.folder)[-1])[0]


def adapter(tensors):
    return {key: value for key, value in tensors.items() if key.startswith("lora.")}


def test_a_lora_is_trained_exported_and_loaded(qwen, tmp_path, capsys):
    config, folder = qwen
    tensors = trained(config, "plain")
    moved = [key for key, value in adapter(tensors).items() if ".lora_B." in key and float(value.abs().max()) > 0]
    assert len(moved) == len(adapter(tensors)) // 2
    assert "modulation rows" in capsys.readouterr().err  # the plan, before the weights are read

    output = tmp_path / "qwen.safetensors"
    export_lora(tmp_path / "run_plain", output, weights="raw")
    lora = read_lora(output)
    assert (lora.base, lora.prediction) == ("Qwen-Image", "velocity")
    assert lora.base_fingerprint == fingerprint(tiny_qwen.weights())
    assert torch.equal(lora.prompt_embeds, tiny.prompt_embeds(tiny_qwen.ARCHITECTURE, seed=5).bfloat16())
    restorer = load_qwen_restorer(folder, output, dtype="fp32")
    assert restorer.velocity.lora is not None


HELD = {
    "streamed": {"image_stream": "bf16 streamed", "text_stream": "bf16 streamed", "modulation": "bf16 streamed"},
    "swept": {"text_stream": "bf16 streamed", "modulation": "bf16 swept", "checkpointing": "all"},
    "offloaded": {"modulation": "bf16 swept", "checkpointing": "offload"},
}


@pytest.mark.parametrize("name", HELD)
def test_where_weights_are_does_not_change_what_is_trained(qwen, name):
    config, _ = qwen
    plain, held = adapter(trained(config, "plain")), adapter(trained(config, name, **HELD[name]))
    assert [key for key in plain if not torch.equal(plain[key], held[key])] == []


def test_quantised_weights_train_nearly_the_same(qwen):
    """After two steps of AdamW, whose first steps are the gradient's signs."""
    config, _ = qwen
    plain = adapter(trained(config, "plain"))
    fp8 = adapter(trained(config, "fp8", image_stream="fp8 resident", text_stream="fp8 streamed"))
    a, b = (torch.cat([x[key].flatten() for key in sorted(x) if ".lora_B." in key]) for x in (plain, fp8))
    assert not torch.equal(a, b)
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.95


def test_the_adapter_in_bf16_keeps_float32_on_the_host(qwen):
    config, _ = qwen
    config = replace(
        config,
        run=replace(config.run, autocast=True),
        base=replace(config.base, dtype="auto"),
        adapter=replace(config.adapter, dtype="bf16"),
        optim=replace(config.optim, kind="adamw-cpu"),
    )
    tensors = trained(config, "bf16", modulation="bf16 swept", checkpointing="all")
    name = next(key.removeprefix("lora.") for key in tensors if key.startswith("lora.") and ".lora_B." in key)
    master = tensors[f"optimizer.master.{name}"]
    assert (tensors[f"lora.{name}"].dtype, master.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(master.bfloat16(), tensors[f"lora.{name}"])
    assert not torch.equal(master.bfloat16().float(), master)


def test_comfyui_single_files_are_the_same_base(qwen, tmp_path):
    config, _ = qwen
    single = tiny_qwen.write_single(tmp_path / "qwen_image.safetensors", "model.diffusion_model.")
    vae = tiny_qwen.write_comfy_vae(tmp_path / "qwen_image_vae.safetensors")
    from_files = replace(config, base=replace(config.base, path=str(single), vae=str(vae)))
    plain, found = adapter(trained(config, "folder")), adapter(trained(from_files, "files"))
    assert all(torch.equal(plain[key], found[key]) for key in plain)


def write_packed(kind, tmp_path):
    """(file, VAE) of a base that packs its block weights."""
    if kind == "rotated":
        path = tiny_qwen.write_scaled(tmp_path / "rotated.safetensors", kind)[0]
    else:
        gguf_files = pytest.importorskip("helpers.gguf_files", reason="gguf is not installed: pip install gguf")
        path = tmp_path / f"{kind}.gguf"
        gguf_files.write(path, tiny_qwen.weights(), kind)
    return path, tiny_qwen.write_comfy_vae(tmp_path / "qwen_image_vae.safetensors")


PACKED_HELD = {
    "auto": {},
    "streamed": {"image_stream": "file streamed", "text_stream": "file streamed", "modulation": "file streamed"},
    "swept": {"text_stream": "file streamed", "modulation": "file swept", "checkpointing": "all"},
    "offloaded": {"modulation": "file swept", "checkpointing": "offload"},
}


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "rotated"])
def test_a_packed_base_trains_as_its_unpacked_weights(qwen, tmp_path, kind, capsys):
    """The gradient reaches the LoRA through packed layers, with and without checkpointing, wherever they are."""
    config, _ = qwen
    path, vae = write_packed(kind, tmp_path)
    config = replace(config, base=replace(config.base, path=str(path), vae=str(vae)))
    unpacked = ("image_stream", "text_stream", "modulation")
    plain = adapter(trained(config, "plain", **dict.fromkeys(unpacked, "bf16 resident")))
    assert "file resident" not in capsys.readouterr().err
    for name, held in PACKED_HELD.items():
        found = adapter(trained(config, name, **held))
        assert "file resident" in capsys.readouterr().err or name == "streamed"
        assert [key for key in plain if not torch.equal(plain[key], found[key])] == [], name
    moved = [key for key in plain if ".lora_B." in key and float(plain[key].abs().max()) > 0]
    assert len(moved) == len(plain) // 2


@pytest.mark.parametrize("kind", ["Q4_0", "rotated"])
def test_layers_of_a_packed_base_hold_the_bytes_of_the_file(qwen, tmp_path, kind):
    config, _ = qwen
    path, vae = write_packed(kind, tmp_path)
    config = replace(config, base=replace(config.base, path=str(path), vae=str(vae)))
    base = load_training_base(config, torch.device("cpu"), lambda _: None)
    layers = {name: one for name, one in base.velocity.transformer.named_modules() if isinstance(one, FrozenLinear)}
    packings = read_qwen(path).packings
    assert len(layers) == 28 and base.storage == read_qwen(path).kind.storage
    for name, layer in layers.items():
        held = sum(tensor.numel() * tensor.element_size() for tensor in layer.stored)
        assert held == packings[f"{name}.weight"].num_bytes
    file = file_weights(read_qwen(path))
    for group, sizes in file.block_bytes.items():
        of_group = [layer for name, layer in layers.items() if group_of(name) == group]
        assert sum(sizes) == sum(t.numel() * t.element_size() for layer in of_group for t in layer.stored)


def test_a_scaled_fp8_base_is_planned_as_before_unless_asked(qwen, tmp_path, capsys):
    config, _ = qwen
    path = tiny_qwen.write_scaled(tmp_path / "scaled.safetensors", "old")[0]
    vae = tiny_qwen.write_comfy_vae(tmp_path / "qwen_image_vae.safetensors")
    config = replace(config, base=replace(config.base, path=str(path), vae=str(vae)))
    plain = adapter(trained(config, "plain"))
    assert "file" not in capsys.readouterr().err.replace(str(tmp_path), "")
    kept = adapter(trained(config, "kept", **PACKED_HELD["swept"], image_stream="file resident"))
    assert {
        key: float((plain[key] - kept[key]).abs().max()) for key in plain if not torch.equal(plain[key], kept[key])
    } == {}


def test_a_gguf_base_without_the_package(qwen, tmp_path, monkeypatch):
    config, _ = qwen
    path, vae = write_packed("Q4_0", tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelFileError, match=r"needs the package gguf.*pip install gguf"):
        Distiller(replace(config, base=replace(config.base, path=str(path), vae=str(vae))))


def test_a_resumed_run_may_move_weights_but_not_quantise_them(qwen):
    config, _ = qwen
    first = replace(config, train=replace(config.train, steps=1))
    trained(first, "again")
    longer = replace(config, train=replace(config.train, steps=2))
    with pytest.raises(
        ConfigError, match=r"memory\.image_stream is planned in fp8, the checkpoint's run had it in bf16"
    ):
        trained(longer, "again", image_stream="fp8 resident")
    moved = adapter(trained(longer, "again", modulation="bf16 swept"))
    straight = adapter(trained(longer, "straight"))
    assert all(torch.equal(moved[key], straight[key]) for key in moved)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": {"prompt": ""}}, ConfigError, "base.prompt is empty.*cache-prompt"),
        ({"base": {"vae": "nowhere.safetensors"}}, ModelFileError, "nowhere.safetensors"),
        ({"train": {"crop_px": 48}}, ConfigError, "train.crop_px is 48: Qwen-Image takes multiples of 32"),
        ({"loss": {"loss_space": "pixel"}}, ConfigError, "loss.loss_space is 'pixel'"),
        ({"ablation": {"dtc": False}}, ConfigError, "ablation.dtc is false"),
        ({"adapter": {"trainable": "all"}}, ConfigError, 'adapter.trainable is "all"'),
        ({"base": {"dtype": "bf16"}}, ConfigError, "the base is bf16, the adapter fp32 and run.autocast is false"),
        ({"memory": {"vram_gb": 0.5}}, InputError, "the smallest plan needs"),
        (
            {"memory": {"modulation": "bf16 swept"}, "run": {"compile": True}},
            ConfigError, "run.compile is true and the memory plan holds modulation quantised or off the device",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(qwen, changes, error, message):
    config, _ = qwen
    for section, values in changes.items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    with pytest.raises(error, match=message):
        Distiller(config)
