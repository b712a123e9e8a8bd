"""Block weights that stay packed: the same model, held in the bytes of the file, wherever its weights wait."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")

from helpers import gguf_files
from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.device import OFFLOADS
from teasr_core.model.branch_lora import BranchLora
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.weight_files.packed import PackedLinear
from teasr_core.weight_files.qwen_file import read_qwen
from teasr_core.weight_files.qwen_storage import load_stored, offload

CPU = torch.device("cpu")
WIDE = replace(tiny_qwen.ARCHITECTURE, num_heads=4)  # rows of 256, which the K formats need
KINDS = ["Q4_0", "Q8_0", "Q6_K", "Q4_K", "old", "rows", "rotated", "fp8"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """source(kind): a Qwen-Image whose file packs its block weights in this way."""
    root = tmp_path_factory.mktemp("packed")

    def make(kind):
        path = root / kind
        if kind in ("old", "rows", "rotated"):
            tiny_qwen.write_scaled(path, kind)
        elif kind == "fp8":
            tiny_qwen.write_single(path, dtype=torch.float8_e4m3fn)
        else:
            gguf_files.write(path, tiny.base_weights(WIDE), kind)
        return read_qwen(path)

    return make


def output(transformer, architecture, resident, dtype=torch.float32):
    """One step with a LoRA, as a sampler takes it."""
    lora = BranchLora.from_tensors(tiny.lora_weights(architecture), dtype=dtype).requires_grad_(False)
    velocity = QwenVelocity(transformer, tiny.prompt_embeds(architecture), "velocity", lora)
    z_t, z_lq = tiny_qwen.latents()
    with resident(), torch.inference_mode():
        return velocity(z_t, tiny_qwen.T_CUR, z_lq, tiny_qwen.T_TAR)


@pytest.mark.parametrize("mode", OFFLOADS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_packed_and_unpacked(source, kind, mode):
    found = source(kind)
    whole, packed = (load_stored(found, storage, torch.float32, CPU) for storage in ("", "file"))
    wanted = output(whole, found.architecture, offload(whole, "none", "", CPU))
    resident = offload(packed, mode, "file", CPU)
    assert torch.equal(output(packed, found.architecture, resident), wanted)
    assert torch.equal(output(packed, found.architecture, resident), wanted)  # and again: nothing was used up


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_of_the_blocks_stays_packed(source, kind):
    found = source(kind)
    model = load_stored(found, "file", torch.bfloat16, CPU)
    blocks = dict(model.transformer_blocks.named_modules())
    packed = {name: one for name, one in blocks.items() if isinstance(one, PackedLinear)}
    assert len(packed) == 14 * found.architecture.num_layers
    assert not [name for name, one in blocks.items() if isinstance(one, torch.nn.Linear)]
    held = sum(buffer.numel() * buffer.element_size() for one in packed.values() for buffer in one.buffers())
    assert held == sum(one.num_bytes for name, one in found.packings.items() if name.startswith("transformer_blocks."))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} == {model.dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_to_another_dtype_leaves_the_bytes_alone(source, dtype):
    model = load_stored(source("Q4_0"), "file", torch.float32, CPU).to(dtype)
    layer = model.transformer_blocks[0].attn.to_q
    assert layer.packed_0.dtype == torch.uint8
    assert layer(torch.ones(2, 256, dtype=dtype)).dtype == dtype


def test_the_gradient_reaches_the_input(source):
    model = load_stored(source("Q4_K"), "file", torch.float32, CPU)
    layer = model.transformer_blocks[0].attn.to_q
    x = torch.randn(3, 256, generator=tiny.generator(0), requires_grad=True)
    layer(x).sum().backward()
    weight = layer.packing.unpack(tuple(layer.buffers()), torch.float32)
    assert x.grad is not None and torch.allclose(x.grad, weight.sum(dim=0).expand(3, -1), atol=1e-5)


def test_a_file_that_packs_nothing_is_loaded_as_numbers(source, tmp_path):
    plain = read_qwen(tiny_qwen.write_single(tmp_path / "plain.safetensors"))
    model = load_stored(plain, "file", torch.float32, CPU)
    assert plain.packings == {} and not [one for one in model.modules() if isinstance(one, PackedLinear)]
