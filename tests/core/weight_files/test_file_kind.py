"""What a path is, told from headers alone: every kind of file by its published key names (R27)."""

import json
import struct
import sys

import pytest
import torch
from safetensors.torch import save_file

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.errors import ModelFileError
from teasr_core.weight_files.file_kind import QWEN_2511, QWEN_IMAGE, Kind, detect, expect
from teasr_core.weight_files.qwen_file import read_qwen
from teasr_core.weight_files.safetensors_reader import WeightReader, read_header


def write_keys(path, *keys, **shapes):
    """A file with these keys; keyword `shape` is that of the first one."""
    shape = shapes.get("shape", (2, 2))
    save_file({key: torch.zeros(shape if index == 0 else (2, 2)) for index, key in enumerate(keys)}, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.safetensors"


# What TEASR reads


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize(
    ("dtype", "storage"),
    [
        (torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32"),
        (torch.float8_e4m3fn, "fp8_e4m3fn"), (torch.float8_e5m2, "fp8_e5m2"),
    ],
)  # fmt: skip
def test_a_transformer_in_a_single_file(path, prefix, dtype, storage):
    found = detect(tiny_qwen.write_single(path, prefix, dtype))
    assert (found.kind, found.model, found.prefix) == (Kind.QWEN_TRANSFORMER, QWEN_IMAGE, prefix)
    assert (found.layout, found.storage, found.files) == ("single file", storage, (path,))


@pytest.mark.parametrize("form", ["old", "bare", "layer", "header"])
def test_scaled_fp8(path, form):
    found = detect(tiny_qwen.write_scaled(path, form)[0])
    assert (found.kind, found.storage) == (Kind.QWEN_TRANSFORMER, "fp8_e4m3fn scaled")


def test_a_model_folder_and_its_parts(tmp_path):
    root = tiny_qwen.write_vae(tiny_qwen.write_folder(tmp_path / "model"))
    for path in (root, root / "transformer"):
        found = detect(path)
        assert (found.kind, found.model, found.layout) == (Kind.QWEN_TRANSFORMER, QWEN_IMAGE, "diffusers folder")
        assert found.files == (root / "transformer" / "diffusion_pytorch_model.safetensors",)
    assert detect(root, "vae").kind is detect(root / "vae", "vae").kind is Kind.QWEN_VAE


def test_the_2511_is_told_apart(tmp_path, path):
    mark = {"__index_timestep_zero__": torch.zeros(0)}
    assert detect(tiny_qwen.write_single(path, extra=mark)).model == QWEN_2511
    assert detect(tiny_qwen.write_folder(tmp_path / "model", zero_cond_t=True)).model == QWEN_2511


def test_a_vae_in_both_namings(tmp_path, path):
    root = tiny_qwen.write_vae(tmp_path / "model")
    assert detect(tiny_qwen.write_comfy_vae(path)).kind is Kind.QWEN_VAE
    assert detect(root / "vae" / "diffusion_pytorch_model.safetensors").kind is Kind.QWEN_VAE


def test_teasr_files(path):
    assert detect(tiny.write_base(path)).kind is Kind.TEASR_BASE
    assert detect(tiny.write_lora(path)).kind is Kind.TEASR_LORA


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_down.weight", "lora_up.weight", "lora_A.default.weight"])
def test_an_ordinary_lora(path, name):
    write_keys(path, f"diffusion_model.transformer_blocks.0.attn.to_q.{name}")
    assert detect(path).kind is Kind.LORA


# What it names only


def of_qwen(path, *keys, shape=(2, 2)):
    return write_keys(path, *keys, "txt_norm.weight", "img_in.weight", "transformer_blocks.0.img_mod.1.weight")


OTHERS = {
    "Layered": lambda path: of_qwen(path, "time_text_embed.addition_t_embedding.weight"),
    "ControlNet": lambda path: of_qwen(path, "controlnet_blocks.0.weight"),
    "Mage-Flow": lambda path: write_keys(
        path, "txt_norm.weight", "img_in.weight", "transformer_blocks.0.img_mod.1.weight", shape=(2560,)
    ),
    "Qwen-Image-2.1": lambda path: write_keys(path, "model.diffusion_model.txt_in.text_norm.weight"),
    "Nunchaku": lambda path: write_keys(path, "transformer_blocks.0.attn.to_qkv.qweight"),
    "Z-Image": lambda path: write_keys(path, "cap_pad_token", "noise_refiner.0.attention.q_norm.weight"),
    "Lumina": lambda path: write_keys(path, "cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight"),
    "SDXL": lambda path: write_keys(
        path, "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"
    ),
    "Stable Diffusion model": lambda path: write_keys(path, "model.diffusion_model.input_blocks.0.0.weight"),
    "Stable Diffusion 3": lambda path: write_keys(path, "joint_blocks.0.context_block.attn.qkv.weight"),
    "Flux model": lambda path: write_keys(path, "double_blocks.0.img_attn.norm.key_norm.scale"),
    "Flux 2": lambda path: write_keys(path, "double_stream_modulation_img.lin.weight"),
    "Wan video": lambda path: write_keys(path, "head.modulation"),
    "Wan 2.2 VAE": lambda path: write_keys(
        path, "decoder.upsamples.0.upsamples.0.residual.2.weight", "decoder.middle.0.residual.0.gamma", "conv2.weight"
    ),
    "RGBA": lambda path: write_keys(
        path, "encoder.conv1.weight", "decoder.middle.0.residual.0.gamma", "conv2.weight", shape=(2, 4, 1)
    ),
    "VAE of Stable": lambda path: write_keys(path, "decoder.mid.block_1.norm1.weight"),
    "text encoder": lambda path: write_keys(path, "model.embed_tokens.weight"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_named_and_refused_in_one_line(path, name):
    found = detect(OTHERS[name](path))
    assert found.kind is Kind.OTHER
    assert name in found.describe()
    with pytest.raises(ModelFileError) as caught:
        read_qwen(path)
    message = str(caught.value)
    assert name in message and "mine.safetensors" in message and "\n" not in message


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"_class_name": "ZImageTransformer2DModel"}, "Z-Image"),
        ({"_class_name": "FluxTransformer2DModel"}, "Flux"),
        ({"_class_name": "SomethingNewTransformer"}, "SomethingNewTransformer"),
        ({"_class_name": "QwenImageTransformer2DModel", "use_additional_t_cond": True}, "Layered"),
        ({"_class_name": "QwenImageTransformer2DModel", "use_layer3d_rope": True}, "Layered"),
        ({"_class_name": "AutoencoderKLQwenImage", "input_channels": 4}, "RGBA"),
        ({}, "without _class_name"),
    ],
)
def test_a_folder_of_another_model_is_named_by_its_config(tmp_path, changes, name):
    (tmp_path / "config.json").write_text(json.dumps(changes))
    assert name in detect(tmp_path).describe()
    with pytest.raises(ModelFileError, match=name):
        read_qwen(tmp_path)


def test_an_unknown_file_and_an_empty_folder(tmp_path, path):
    assert detect(write_keys(path, "x")).kind is Kind.UNKNOWN
    (tmp_path / "folder").mkdir()
    assert detect(tmp_path / "folder").kind is Kind.UNKNOWN
    with pytest.raises(ModelFileError, match=r"transformer/config\.json"):
        read_qwen(tmp_path / "folder")


def write_gguf(path, architecture):
    """Magic, version 3, no tensors, one entry; strings are a length and their bytes."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    path.write_bytes(head + text("general.architecture") + struct.pack("<I", 8) + text(architecture))
    return path


def test_gguf_is_named_and_refused(tmp_path):
    pytest.importorskip("gguf")
    found = detect(write_gguf(tmp_path / "mine.gguf", "qwen_image"))
    assert (found.kind, found.layout) == (Kind.OTHER, "GGUF")
    with pytest.raises(ModelFileError, match=r"mine\.gguf: GGUF file of architecture 'qwen_image' .GGUF.; advice"):
        expect(found, Kind.QWEN_TRANSFORMER, "advice")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    assert detect(tmp_path / "cut.gguf").layout == "GGUF"


def test_a_gguf_cut_anywhere_is_still_named(tmp_path, path):
    data = write_gguf(tmp_path / "mine.gguf", "qwen_image").read_bytes()
    for length in range(4, len(data)):
        path.write_bytes(data[:length])
        assert detect(path).model == "GGUF file of architecture '?'"


# Damage


def test_damaged_folders(tmp_path):
    root = tiny_qwen.write_folder(tmp_path / "model", shard_bytes=20000)
    shards = sorted((root / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 3 and detect(root).files == tuple(shards)
    shards[1].unlink()
    with pytest.raises(ModelFileError, match=shards[1].name):
        detect(root)
    next((root / "transformer").glob("*.index.json")).unlink()
    with pytest.raises(ModelFileError, match="no index"):
        detect(root)
    (root / "transformer" / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="JSON"):
        detect(root)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-10])


def longer(path):
    path.write_bytes(path.read_bytes() + b"x")


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:100])


def text(path):
    path.write_text("<html>404: not found</html>\n" * 20)


def pickled(path):
    torch.save({"x": torch.ones(3)}, path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, longer, cut_in_the_header, text, pickled, empty])
def test_damaged_files(path, damage):
    damage(tiny_qwen.write_single(path))
    with pytest.raises(ModelFileError, match=r"mine\.safetensors") as caught:
        detect(path)
    assert "\n" not in str(caught.value)
    assert ("pickle" in str(caught.value)) == (damage is pickled)


TENSOR = '"dtype": "U8", "shape": [0], "data_offsets"'


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__": [1]}', '{"__metadata__": 3}', '{"__metadata__": ""}', '{"__metadata__": {"a": 1}}',
        '{"x": 5}', f'{{"x": {{{TENSOR}: [0, Infinity]}}}}', f'{{"x": {{{TENSOR}: 0}}}}', "[" * 100_000,
    ],
    ids=lambda header: header[:30],
)  # fmt: skip
def test_damaged_headers(path, header):
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(ModelFileError, match=r"mine\.safetensors cannot be read as safetensors.*get it again"):
        detect(path)


@pytest.mark.parametrize("change", [{"patch_size": [2]}, {"patch_size": 0}, {"axes_dims_rope": [8]}], ids=str)
def test_a_folder_of_impossible_sizes(tmp_path, change):
    root = tiny_qwen.write_folder(tmp_path / "model")
    config = root / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ModelFileError, match="above 0"):
        read_qwen(root)


def test_a_missing_path(tmp_path):
    with pytest.raises(ModelFileError, match="nowhere"):
        detect(tmp_path / "nowhere")


# The reader


def test_the_reader_gives_what_was_saved(path):
    dtypes = (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )  # fmt: skip
    saved = {str(dtype): (3 * torch.randn(3, 5)).to(dtype) for dtype in dtypes}
    saved |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}
    save_file(saved, path, metadata={"a": "b"})
    with WeightReader(path) as reader:
        assert reader.infos.keys() == saved.keys()
        assert reader.metadata == {"a": "b"}
        for key, value in saved.items():
            found = reader.read(key)
            assert found.dtype == value.dtype and found.shape == value.shape == reader.infos[key].shape
            assert torch.equal(found.view(torch.uint8), value.view(torch.uint8)) if value.ndim else found == value


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a hole in a file may take its room on the disk")
def test_detection_reads_the_header_alone(path):
    """The numbers of this file were never written: 48 GiB stand in the header, none on the disk."""
    shapes = {
        "txt_norm.weight": [3584],
        "img_in.weight": [3072, 64],
        "transformer_blocks.0.img_mod.1.weight": [6, 2**32],
    }
    header, offset = {}, 0
    for key, shape in shapes.items():
        stop = offset + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        try:
            file.truncate(8 + len(encoded) + offset)
        except OSError as error:
            pytest.skip(f"this file system has no sparse files of 48 GiB ({error.strerror})")
    assert detect(path).storage == "bf16"
    assert read_header(path)[0]["transformer_blocks.0.img_mod.1.weight"].shape == (6, 2**32)
