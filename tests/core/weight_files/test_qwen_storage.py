"""fp8 and 4-bit blocks, and weights that wait on the CPU: the same restorer within what rounding costs."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.device import OFFLOADS
from teasr_core.errors import InputError
from teasr_core.model.branch_lora import BranchLora
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.weight_files.qwen_file import read_qwen
from teasr_core.weight_files.qwen_storage import FP8, load_stored, offload

CPU = torch.device("cpu")
# Largest difference to the unrounded model that each storage may make; half of it must be there at all.
ROUNDING = {"": (0.0, 1e-6), "fp8": (2e-3, 0.1), "nf4": (1e-2, 0.25)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_qwen(tiny_qwen.write_folder(tmp_path_factory.mktemp("model")))


def velocity(transformer, dtype=torch.float32) -> QwenVelocity:
    lora = BranchLora.from_tensors(tiny.lora_weights(tiny_qwen.ARCHITECTURE), dtype=dtype).requires_grad_(False)
    return QwenVelocity(transformer, tiny.prompt_embeds(tiny_qwen.ARCHITECTURE), "velocity", lora)


def output(transformer, resident) -> torch.Tensor:
    """One step with a LoRA, as a sampler takes it."""
    z_t, z_lq = tiny_qwen.latents()
    with resident(), torch.inference_mode():
        return velocity(transformer)(z_t, tiny_qwen.T_CUR, z_lq, tiny_qwen.T_TAR)


@pytest.fixture(scope="module")
def reference(source):
    model = load_stored(source, "", torch.float32, CPU)
    return output(model, offload(model, "none", "", CPU))


@pytest.mark.parametrize("mode", OFFLOADS)
@pytest.mark.parametrize("storage", ["", "fp8", "nf4"])
def test_every_storage_in_every_place(source, reference, storage, mode):
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    model = load_stored(source, storage, torch.float32, CPU)
    if (storage, mode) == ("nf4", "sequential"):
        with pytest.raises(InputError, match="4-bit"):
            offload(model, mode, storage, CPU)
        return
    resident = offload(model, mode, storage, CPU)
    found = output(model, resident)
    least, most = ROUNDING[storage]
    assert least <= tiny_qwen.difference(found, reference) <= most
    assert torch.equal(output(model, resident), found)  # nothing is worn off by casting to and fro


def test_fp8_is_the_rounded_model(source):
    """Layer by layer raised to float32 at use: the same numbers as weights rounded once."""
    model = load_stored(source, "fp8", torch.float32, CPU)
    rounded = {
        key: value.to(FP8).float() if key.startswith("transformer_blocks.") and "norm" not in key else value
        for key, value in tiny_qwen.weights().items()
    }
    assert torch.equal(tiny_qwen.output(tiny_qwen.wrap(model)), tiny_qwen.output(tiny_qwen.velocity(rounded)))


def test_fp8_keeps_what_is_small_as_it_is(source):
    model = load_stored(source, "fp8", torch.bfloat16, CPU)
    for name, parameter in model.named_parameters():
        is_block = name.startswith("transformer_blocks.") and "norm" not in name
        assert parameter.dtype == (FP8 if is_block else torch.bfloat16), name
    assert model.dtype == torch.bfloat16  # what is computed in


def test_fp8_does_not_make_nan_of_a_large_weight(tmp_path):
    tensors = tiny_qwen.weights() | {"transformer_blocks.0.img_mod.1.bias": torch.full((384,), 1000.0)}
    save_file(tensors, tmp_path / "large.safetensors")
    model = load_stored(read_qwen(tmp_path / "large.safetensors"), "fp8", torch.float32, CPU)
    assert float(model.transformer_blocks[0].img_mod[1].bias.float().max()) == 448
    assert torch.isfinite(tiny_qwen.output(tiny_qwen.wrap(model))).all()


def test_nf4_packs_the_blocks_linears_alone(source):
    bnb = pytest.importorskip("bitsandbytes")
    model = load_stored(source, "nf4", torch.float32, CPU)
    packed = {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    wanted = {
        name.removesuffix(".weight")
        for name, value in tiny_qwen.weights().items()
        if name.startswith("transformer_blocks.") and value.ndim == 2
    }
    assert packed == wanted
    layer = model.transformer_blocks[0].img_mlp.net[2]
    assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == 64 * 256 // 2
    assert {parameter.dtype for name, parameter in model.named_parameters() if "img_in" in name} == {torch.float32}


def test_nf4_without_bitsandbytes_says_so(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        load_stored(source, "nf4", torch.float32, CPU)


def test_model_offload_is_there_inside_and_away_outside(source):
    """Moves are counted, since there may be no second device: one in, one out, also after an error."""
    model = load_stored(source, "", torch.float32, CPU)
    resident = offload(model, "model", "", CPU)
    moves = []
    model._apply = lambda function, *_args, **_kwargs: moves.append(function) or model
    with resident():
        assert len(moves) == 1
    assert len(moves) == 2
    with pytest.raises(RuntimeError, match="stop"), resident():
        raise RuntimeError("stop")
    assert len(moves) == 4
