"""A Qwen-Image in GGUF is the model of its unpacked weights; what cannot be read is named in one sentence."""

import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")

from helpers import gguf_files
from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.errors import ModelFileError
from teasr_core.weight_files.file_kind import Kind, detect, expect
from teasr_core.weight_files.gguf_file import GgufReader, is_gguf
from teasr_core.weight_files.lora_file import check_base, fingerprint, read_lora
from teasr_core.weight_files.qwen_file import load_qwen_transformer, read_qwen
from teasr_core.weight_files.qwen_vae_file import load_qwen_vae

# Its rows are multiples of 256, which the K formats need.
WIDE = replace(tiny_qwen.ARCHITECTURE, num_heads=4, num_layers=1)
WIDE_WEIGHTS = tiny.base_weights(WIDE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.gguf"


def loaded(path, dtype=torch.float32, **options):
    return load_qwen_transformer(read_qwen(path), dtype, **options)


# The same weights


@pytest.mark.parametrize("form", ["F32", "F16", "BF16", *gguf_files.UNPACKED_HERE])
def test_the_model_is_that_of_the_unpacked_weights(path, form):
    meant = gguf_files.write(path, WIDE_WEIGHTS, form)
    source = read_qwen(path)
    storage = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}.get(form, form)
    assert (source.kind.kind, source.kind.model, source.kind.layout) == (Kind.QWEN_TRANSFORMER, "Qwen-Image", "GGUF")
    assert source.kind.storage == storage and source.architecture == WIDE
    found = loaded(path).state_dict()
    assert found.keys() == meant.keys()
    assert [name for name, value in meant.items() if not torch.equal(found[name], value)] == []


def test_formats_of_the_package_alone_are_unpacked_while_they_are_read(path):
    """TQ2_0 is one that we do not keep packed."""
    meant = gguf_files.write(path, WIDE_WEIGHTS, "TQ2_0")
    assert read_qwen(path).packings == {}
    found = loaded(path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in meant.items())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("architecture", ["qwen_image", "pig"])
def test_prefixes_and_architectures_of_other_converters(path, prefix, architecture):
    meant = gguf_files.write(path, tiny_qwen.weights(), "Q8_0", prefix, architecture)
    assert read_qwen(path).kind.prefix == prefix
    found = loaded(path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in meant.items())


def test_a_reshaped_tensor_has_its_own_shape_again(path):
    name = "transformer_blocks.0.attn.to_q.weight"
    meant = gguf_files.write(path, tiny_qwen.weights(), "Q4_K", reshaped=(name,))
    assert read_qwen(path).packings[name].shape == (64, 64)
    assert torch.equal(loaded(path).state_dict()[name], meant[name])


def test_the_mark_of_the_2511_is_no_weight(path):
    tensors = tiny_qwen.weights() | {"__index_timestep_zero__": torch.zeros(1)}
    gguf_files.write(path, tensors, "Q8_0")
    assert read_qwen(path).kind.model == "Qwen-Image-Edit-2511"
    loaded(path)


def test_a_lora_knows_its_base(tmp_path, path):
    """The small tensors stay in float32, so that the fingerprint is the unquantised base's."""
    gguf_files.write(path, tiny_qwen.weights(), "Q4_0")
    source = read_qwen(path)
    assert fingerprint(source.fingerprint_tensors()) == fingerprint(tiny_qwen.weights())
    lora = read_lora(tiny_qwen.write_lora(tmp_path / "lora.safetensors"))
    check_base(lora, source.architecture, source.prediction, source.fingerprint_tensors())
    assert not source.is_fingerprint_fp8


def test_bytes_are_those_of_the_file(path):
    gguf_files.write(path, WIDE_WEIGHTS, "Q4_K")
    source = read_qwen(path)
    packed, unpacked = source.num_bytes
    matrices = sum(value.numel() for name, value in WIDE_WEIGHTS.items() if name in source.packings)
    assert matrices > 0.99 * (unpacked / 2 - 256 * 512)
    assert packed == unpacked - 2 * matrices + matrices // 256 * 144


# Refusals


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_cut_file_is_refused_in_one_line(path, share):
    gguf_files.write(path, tiny_qwen.weights(), "Q4_0")
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(share * len(data)))])
    assert is_gguf(path)
    with pytest.raises(ModelFileError, match=r"mine\.gguf cannot be read as GGUF \(.*download it again") as caught:
        read_qwen(path)
    assert "\n" not in str(caught.value)


def test_without_the_package_one_sentence_names_it(path, monkeypatch):
    gguf_files.write(path, tiny_qwen.weights(), "Q4_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelFileError, match=r"architecture 'qwen_image'.*needs the package gguf.*pip install gguf"):
        read_qwen(path)
    assert detect(path).layout == "GGUF"


def test_a_missing_tensor_is_named(path):
    tensors = dict(tiny_qwen.weights())
    del tensors["transformer_blocks.1.img_mlp.net.2.bias"]
    gguf_files.write(path, tensors, "Q8_0")
    with pytest.raises(ModelFileError, match="1 of 77 tensors missing"):
        loaded(path)


def test_another_model_in_gguf_is_named(path):
    gguf_files.write(path, {"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(8)}, "F16", architecture="flux")
    with pytest.raises(ModelFileError, match=r"mine\.gguf: Flux model.*expected a Qwen-Image transformer"):
        read_qwen(path)
    gguf_files.write(path, {"blk.0.attn_q.weight": torch.ones(8)}, "F16", architecture="llama")
    with pytest.raises(ModelFileError, match=r"GGUF file of architecture 'llama'"):
        read_qwen(path)


def test_a_vae_in_gguf_is_refused(tmp_path, path):
    gguf_files.write(path, {tiny_qwen.comfy_vae_key(key): value.flatten() for key, value in
                            tiny_qwen.vae().state_dict().items()}, "F16")  # fmt: skip
    assert expect(detect(path, "vae"), Kind.QWEN_VAE, "").layout == "GGUF"
    with pytest.raises(ModelFileError, match="read from safetensors"):
        load_qwen_vae(path)


def test_a_safetensors_file_is_no_gguf(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert not is_gguf(tmp_path / "a.safetensors")


def test_tensors_have_memory_of_their_own(path):
    """The file may be replaced while the model lives."""
    gguf_files.write(path, tiny_qwen.weights(), "Q8_0")
    with GgufReader(path) as file:
        read = {name: file.read(name) for name in file.infos}
    before = {name: value.clone() for name, value in read.items()}
    with path.open("r+b") as stream:
        stream.seek(0)
        stream.write(bytes(path.stat().st_size))
    assert all(torch.equal(read[name], value) for name, value in before.items())
    assert all(value.is_contiguous() for value in read.values())
