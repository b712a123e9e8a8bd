"""The frozen Linear: its gradient, what it saves, and how it takes a Linear's place."""

import dataclasses

import pytest
import torch
from torch import nn

from helpers.live_bytes import saved_tensors
from helpers.tiny import memory as tiny_memory
from helpers.tiny import model as tiny
from teasr_core.model.branch_lora import target_paths
from teasr_core.model.qwen_velocity import build_transformer
from training.memory.groups import BLOCK_GROUPS, GroupPlan
from training.memory.quantised_linear import FrozenLinear, replace_linears

PRECISIONS = ["bf16", "fp8", "nf4"]


def linear(in_features: int = 70, out_features: int = 130, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=bias)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=tiny.generator(i)))
    return layer.double().requires_grad_(False)


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=tiny.generator(7), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(2, 9, 70), (5, 70), (70,)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_equal_a_linear_with_the_dequantised_weight(precision, shape, bias):
    frozen = FrozenLinear.from_linear(linear(bias=bias), precision)
    reference = linear(bias=bias)
    with torch.no_grad():
        reference.weight.copy_(frozen.dequantised(torch.float64))
    found_x, wanted_x = inputs(*shape), inputs(*shape)
    found, wanted = frozen(found_x), reference(wanted_x)
    assert found.shape == wanted.shape == (*shape[:-1], 130)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(found_x.grad, wanted_x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_saves_neither_weight_nor_input(precision):
    frozen = FrozenLinear.from_linear(linear(), precision)
    x = inputs(2, 9, 70)
    with saved_tensors() as saved:
        out = frozen(x * 1)
    assert [tuple(tensor.shape) for tensor in saved.tensors] == []
    assert out.requires_grad


def test_the_accounting_bites():
    """An ordinary frozen Linear saves its weight."""
    with saved_tensors() as saved:
        linear()(inputs(2, 9, 70) * 1)
    assert [tuple(tensor.shape) for tensor in saved.tensors] == [(70, 130)]


def test_the_lora_may_add_to_a_slice_of_its_output_in_place():
    frozen = FrozenLinear.from_linear(linear(), "fp8")
    x, delta = inputs(2, 4, 70), torch.ones(2, 2, 130, dtype=torch.float64, requires_grad=True)
    out = frozen(x)
    out[:, 2:].add_(delta, alpha=3.0)
    out.sum().backward()
    assert float(delta.grad.min()) == float(delta.grad.max()) == 3
    assert x.grad.shape == x.shape


def test_casting_or_moving_the_model_leaves_the_packed_weight_alone():
    frozen = FrozenLinear.from_linear(linear(), "fp8")
    before = [tensor.clone() for tensor in frozen.stored]
    frozen.to(torch.bfloat16)
    assert frozen.bias.dtype == torch.bfloat16
    assert [tensor.dtype for tensor in frozen.stored] == [torch.float8_e4m3fn, torch.float32]
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(frozen.stored, before, strict=True))
    assert list(frozen.state_dict()) == ["bias"]


def test_under_autocast_it_computes_in_the_autocast_dtype():
    frozen = FrozenLinear.from_linear(linear().float(), "fp8")
    x = inputs(3, 70).float().detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = frozen(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_replacing_keeps_paths_features_and_what_is_plain():
    transformer = tiny_memory.velocity().transformer
    names = [name for name, _ in transformer.named_modules()]
    count = replace_linears(transformer, {"text_stream": GroupPlan("fp8"), "modulation": GroupPlan("bf16", "swept")})
    assert [name for name, _ in transformer.named_modules()] == names
    assert count == tiny_memory.NUM_LAYERS * (6 + 2)
    block = transformer.transformer_blocks[0]
    assert isinstance(block.attn.to_q, nn.Linear) and isinstance(transformer.proj_out, nn.Linear)
    assert isinstance(block.txt_mlp.net[0].proj, FrozenLinear) and block.img_mod[1].precision == "bf16"
    width = tiny_memory.ARCHITECTURE.width
    assert (block.img_mod[1].in_features, block.img_mod[1].out_features) == (width, 6 * width)
    for path in target_paths(tiny_memory.NUM_LAYERS):
        assert hasattr(transformer.get_submodule(path), "in_features"), path
    assert transformer.dtype == torch.float64
    assert replace_linears(transformer, {"text_stream": GroupPlan("fp8")}) == 0  # once is enough


def test_weights_can_be_stored_one_by_one_on_a_model_that_was_built_empty():
    """As a loader does that quantises on arrival: the result is the loaded model's, replaced."""
    groups = {group: GroupPlan("fp8") for group in BLOCK_GROUPS}
    loaded = tiny_memory.velocity()
    weights = loaded.transformer.state_dict()
    replace_linears(loaded.transformer, groups)
    with torch.device("meta"):
        empty = build_transformer(tiny_memory.ARCHITECTURE).requires_grad_(False)
    replace_linears(empty, groups)
    for name, module in empty.named_modules():
        if isinstance(module, FrozenLinear):
            with pytest.raises(AssertionError, match="never stored"):
                module.dequantised(torch.float64)
            module.store(weights.pop(f"{name}.weight"))
            other = loaded.transformer.get_submodule(name)
            assert torch.equal(module.dequantised(torch.float64), other.dequantised(torch.float64)), name
    assert set(weights) == set(empty.state_dict())  # what is left has ordinary keys
    with pytest.raises(AssertionError, match="weight of shape"):
        empty.transformer_blocks[0].attn.to_q.store(torch.zeros(3, 3))


def test_lora_gradients_keep_their_direction():
    """All gradients of a step together, random weights of the gain of torch's default initialisation, 256 wide.

    Image and text stream in fp8, as the planner quantises them together, stay above 0.999. Modulation on top is 0.9990.
    """
    architecture = dataclasses.replace(
        tiny_memory.ARCHITECTURE, num_layers=2, num_heads=4, head_dim=64, rope_axes=(16, 24, 24)
    )

    def flat(precision: str, groups: tuple[str, ...]) -> torch.Tensor:
        v = tiny_memory.velocity(architecture, gain=3**-0.5)
        replace_linears(v.transformer, {group: GroupPlan(precision) for group in groups})
        gradients = tiny_memory.step_gradients(v, architecture=architecture)
        return torch.cat([gradient.flatten() for gradient in gradients.values()])

    full = flat("bf16", ())
    for precision, groups, least in (
        ("fp8", ("image_stream", "text_stream"), 0.999),
        ("fp8", BLOCK_GROUPS, 0.998),
        ("nf4", BLOCK_GROUPS, 0.98),
    ):
        cosine = float(torch.cosine_similarity(full, flat(precision, groups), dim=0))
        assert least <= cosine < 1, (precision, groups, cosine)
