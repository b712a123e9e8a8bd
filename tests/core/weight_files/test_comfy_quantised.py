"""Rotated and 4-bit layers of ComfyUI's files mean the weight that was rotated and rounded, by another formula."""

import itertools
import json

import pytest
import torch
from safetensors.torch import save_file

from teasr_core.errors import ModelFileError
from teasr_core.weight_files import packed
from teasr_core.weight_files.comfy_quantised import comfy_packings
from teasr_core.weight_files.packed import PackedTensor
from teasr_core.weight_files.safetensors_reader import WeightReader


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.safetensors"


def rotation(size: int) -> torch.Tensor:
    """(size, size) float64: -1 for each base-4 digit of row and column that add up to 3, else 1, multiplied."""
    matrix = torch.ones(size, size, dtype=torch.float64)
    for row, column in itertools.product(range(size), repeat=2):
        i, j = row, column
        for _ in range(size.bit_length() // 2):
            if i % 4 + j % 4 == 3:
                matrix[row, column] *= -1
            i, j = i // 4, j // 4
    return matrix / size**0.5


def rotated(weight: torch.Tensor, size: int) -> torch.Tensor:
    return (weight.double().view(len(weight), -1, size) @ rotation(size)).flatten(1)


def packed_layer(path, tensors, config) -> PackedTensor:
    mark = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
    save_file({f"model.layer.{name}": value for name, value in (tensors | {"comfy_quant": mark}).items()}, path)
    with WeightReader(path) as file:
        packing = comfy_packings(file, "model.")["layer"]
        return PackedTensor(packing, tuple(file.read(f"model.layer.{name}") for name in ("weight", *packing.scales)))


def random_weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def int8_layer(weight: torch.Tensor, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(tensors of a row-wise int8 layer, what they mean in float64)"""
    turned = rotated(weight, size)
    scale = (turned.abs().amax(dim=1, keepdim=True) / 127).float()
    codes = (turned / scale.double()).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, rotated(codes.double() * scale.double(), size)


def test_the_rotation_is_orthogonal_and_its_own_inverse():
    for size in (4, 16, 64):
        assert torch.allclose(rotation(size) @ rotation(size), torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [4, 16, 64, 256])
@pytest.mark.parametrize("nested", [False, True])
def test_int8_with_rotation(path, size, nested):
    weight = random_weight(33, 512)
    tensors, meant = int8_layer(weight, size)
    names = {"convrot": True, "convrot_groupsize": size}
    found = packed_layer(path, tensors, {"format": "int8_tensorwise", **({"params": names} if nested else names)})
    assert (found.packing.format, found.packing.rotation, found.packing.shape) == ("int8_tensorwise", size, (33, 512))
    assert found.packing.num_bytes == 33 * 512 + 4 * 33
    values = found.unpack(torch.float32)
    assert float((values - meant).abs().max() / meant.abs().max()) < 1e-6
    assert float((values - weight).abs().max()) < 0.1  # it is this weight, turned back


def test_the_default_rotation_is_of_256_columns(path):
    tensors, meant = int8_layer(random_weight(8, 256), 256)
    found = packed_layer(path, tensors, {"format": "int8_tensorwise", "convrot": True})
    assert torch.allclose(found.unpack(torch.float64), meant, atol=1e-6)


def test_a_forgotten_rotation_would_show(path):
    tensors, meant = int8_layer(random_weight(8, 256), 256)
    found = packed_layer(path, tensors, {"format": "int8_tensorwise"})
    assert float((found.unpack(torch.float64) - meant).abs().max()) > 0.5


def test_four_bits_with_rotation(path):
    """Two columns a byte, the first in the low half, in two's complement."""
    turned = rotated(random_weight(16, 512), 256)
    scale = (turned.abs().amax(dim=1) / 7).float()
    codes = (turned / scale.double()[:, None]).round().clamp(-8, 7).to(torch.int8)
    stored = (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)
    found = packed_layer(path, {"weight": stored, "weight_scale": scale}, {"format": "convrot_w4a4"})
    assert found.packing.shape == (16, 512) and found.packing.num_bytes == 16 * 256 + 64
    meant = rotated(codes.double() * scale.double()[:, None], 256)
    assert torch.allclose(found.unpack(torch.float64), meant, atol=1e-5)


@pytest.mark.parametrize("use_codebook", [True, False])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_four_bits_on_an_int8_grid(path, use_codebook, as_bytes):
    """Codes by table or minus 8, times the group's fp8 scale, rounded to int8, times the row's scale."""
    source = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (8, 64), generator=source)
    relative = (torch.rand(8, 4, generator=source) * (100 if use_codebook else 12) + 1).to(torch.float8_e4m3fn)
    channel = torch.rand(8, generator=source) + 0.5
    table = torch.linspace(-1, 1, 16)
    values = (table[codes] if use_codebook else codes.float() - 8).double().view(8, 4, 16)
    grid = (values * relative.double()[..., None]).round().clamp(-127, 127).flatten(1)
    stored = (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.uint8).view(torch.int8)
    tensors = {"weight": stored, "weight_s_channel": channel, "weight_s_rel": relative}
    if as_bytes:
        tensors["weight_s_rel"] = relative.view(torch.uint8)
    if use_codebook:
        tensors["weight_codebook"] = table
    found = packed_layer(path, tensors, {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 64})
    meant = rotated(grid * channel.double()[:, None], 64)
    assert float((found.unpack(torch.float64) - meant).abs().max() / meant.abs().max()) < 1e-6


def test_pieces_do_not_show(path, monkeypatch):
    tensors, _ = int8_layer(random_weight(33, 512), 64)
    found = packed_layer(path, tensors, {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64})
    whole = found.unpack(torch.bfloat16)
    monkeypatch.setattr(packed, "CPU_CHUNK", 2048)
    assert torch.equal(found.unpack(torch.bfloat16), whole)


@pytest.mark.parametrize(
    ("changes", "config", "words"),
    [
        ({}, {"convrot_groupsize": 100}, "rotation of 100 columns: expected a power of 4"),
        ({}, {"convrot_groupsize": "64"}, "rotation of '64' columns"),
        ({}, {"convrot_groupsize": 1024}, "512 columns and a rotation of 1024"),
        ({"weight": torch.ones(33, 512)}, {}, "int8_tensorwise with rotation with a weight in F32: expected I8"),
        ({"weight_scale": torch.ones(5)}, {}, r"weight_scale of \(5,\) for a weight of \(33, 512\)"),
        ({"weight_scale": None}, {}, "int8_tensorwise without weight_scale"),
        ({}, {"format": "float8_e4m3fn"}, "float8_e4m3fn with rotation"),
        ({}, {"format": "asym_w4a8_int8"}, "asym_w4a8_int8 without weight_s_rel and weight_s_channel"),
        ({"weight_correction": torch.ones(2, 33)}, {}, "with weight_correction"),
        ({"weight_codebook": torch.ones(16)}, {}, "with weight_codebook"),
    ],
)
def test_what_does_not_go_together_is_refused(path, changes, config, words):
    tensors = {**int8_layer(random_weight(33, 512), 64)[0], **changes}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(ModelFileError, match=words) as caught:
        packed_layer(path, tensors, {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64} | config)
    assert "mine.safetensors: layer layer" in str(caught.value) and "\n" not in str(caught.value)
