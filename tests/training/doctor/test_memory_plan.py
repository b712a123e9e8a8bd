"""`doctor` says how `distill` would hold the base of a config, packed files included, before it reads a weight."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from helpers.tiny import qwen as tiny_qwen
from training.doctor.config import examine
from training.doctor.finding import MISSING, NOTE, OK
from training.frozen_base.prompt_file import write_prompt
from training.memory.planner import GIB


@pytest.fixture
def planned(photos, tmp_path):
    """planned(base, *overrides): (level, text) of the finding, or None; the text comes without its first clause."""
    vae = tiny_qwen.write_comfy_vae(tmp_path / "qwen_image_vae.safetensors")
    prompt = tmp_path / "prompt.safetensors"
    write_prompt(prompt, torch.ones(5, 32), "", "hash")
    config = tmp_path / "config.toml"
    config.write_text(
        f"[run]\noutput_dir = {str(tmp_path / 'run')!r}\n[data]\nfolders = [{str(photos)!r}]\n[adapter]\nrank = 4\n"
        f"[train]\ncrop_px = 32\n[base]\nvae = {str(vae)!r}\nprompt = {str(prompt)!r}\n"
    )

    def call(base, *overrides):
        report = examine(config, [f"base.path={base}", *overrides])
        lines = [(one.level, one.text) for one in report.findings if one.name == "memory plan"]
        assert len(lines) <= 1
        return lines[0] if lines else None

    return call


def write(kind, folder):
    if kind == "folder":
        return tiny_qwen.write_vae(tiny_qwen.write_folder(folder / "Qwen-Image"))
    if kind in ("old", "rotated"):
        return tiny_qwen.write_scaled(folder / f"{kind}.safetensors", kind)[0]
    gguf_files = pytest.importorskip("helpers.gguf_files", reason="gguf is not installed: pip install gguf")
    gguf_files.write(folder / f"{kind}.gguf", tiny_qwen.weights(), kind)
    return folder / f"{kind}.gguf"


@pytest.mark.parametrize(("kind", "expected"), [
    ("folder", ": image stream bf16 resident, text stream bf16 resident"),
    ("Q4_0", ": all blocks as the file packs them (Q4_0), image stream file resident"),
    ("rotated", ": all blocks as the file packs them (int8 scaled), image stream file resident"),
    ("old", ": the file's weights (fp8_e4m3fn scaled) are unpacked while they are read, then image stream bf16"),
])  # fmt: skip
def test_every_kind_of_file_has_a_plan(planned, tmp_path, kind, expected):
    level, text = planned(write(kind, tmp_path), "memory.vram_gb=20")
    assert level == OK and text.startswith("for 20 GiB on the GPU" + expected)
    assert text.endswith(" GiB") and "; GPU " in text and ", host " in text


def test_a_packed_file_follows_the_config(planned, tmp_path):
    path = write("rotated", tmp_path)
    _, mixed = planned(path, "memory.image_stream=bf16 resident", "memory.text_stream=file streamed")
    assert "text stream and modulation as the file packs them" in mixed and "text stream file streamed" in mixed
    whole = [f"memory.{name}=bf16 resident" for name in ("image_stream", "text_stream", "modulation")]
    assert "are unpacked while they are read" in planned(path, *whole)[1]
    level, text = planned(path, "memory.vram_gb=0.5")
    assert level == MISSING and "the smallest plan needs" in text


def test_the_built_in_base_has_one_too(planned):
    level, text = planned("builtin", "train.crop_px=64")
    assert level == OK and "image stream bf16 resident" in text


def test_what_cannot_be_read_has_no_plan(planned, tmp_path):
    assert planned(tmp_path / "none.gguf") is None
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    assert planned(tmp_path / "cut.safetensors") is None
    assert planned("builtin", "adapter.trainable=all") is None


def test_little_host_memory_is_a_note(planned, tmp_path, monkeypatch):
    path, streamed = write("rotated", tmp_path), [f"memory.{name}=file streamed" for name in ("image_stream",)]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1024.0, total=4 * GIB))
    level, text = planned(path, *streamed, "optim.kind=adamw-cpu")
    assert level == NOTE and "which with room for pinned buffers is more than the 0.0 GiB that are free" in text
