"""The branch adapter: condition tokens only, strength that acts, nothing left behind (T2, R4)."""

import contextlib

import pytest
import torch
from torch import nn

from helpers.tiny import model as tiny
from teasr_core.model.branch_lora import (
    BLOCK_TARGETS,
    DEAD_IN_LAST_BLOCK,
    BranchLora,
    branch_overrides,
    forward_overrides,
    lora_shapes,
    target_paths,
)

T_CUR, T_TAR = torch.tensor([0.9, 0.7]), torch.tensor([0.5, 0.2])


def output(velocity) -> torch.Tensor:
    z_t, z_lq = tiny.latents()
    return velocity.network_output(z_t, T_CUR, z_lq, T_TAR)


def linear_calls(velocity) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of every target Linear during one forward, by path."""
    seen, handles = {}, []
    for path in target_paths(tiny.ARCHITECTURE.num_layers):

        def keep(_module, args, out, path=path):
            seen[path] = (args[0].clone(), out.clone())

        handles.append(velocity.transformer.get_submodule(path).register_forward_hook(keep))
    output(velocity)
    for handle in handles:
        handle.remove()
    return seen


def condition_rows(x: torch.Tensor, num_noise: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, condition) part of a Linear's input or output: tokens, or rows of the modulation."""
    return (x[:, :num_noise], x[:, num_noise:]) if x.ndim == 3 else x.chunk(2)


def test_every_target_equals_merged_weights_on_condition_rows_alone():
    velocity, lora = tiny.velocity(use_lora=True, lora_strength=0.5), tiny.lora_weights()
    weights = tiny.base_weights()
    seen = linear_calls(velocity)
    assert set(seen) == set(target_paths(2))
    for path, (x, out) in seen.items():
        weight, bias = weights[f"{path}.weight"].double(), weights[f"{path}.bias"].double()
        delta = lora[f"{path}.lora_B.weight"].double() @ lora[f"{path}.lora_A.weight"].double()
        for rows, found, matrix in zip(
            condition_rows(x.double()), condition_rows(out), (weight, weight + 0.5 * delta), strict=True
        ):
            wanted = rows @ matrix.T + bias
            assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-6, path


def test_in_block_0_the_adapter_touches_condition_tokens_only():
    plain, adapted = linear_calls(tiny.velocity()), linear_calls(tiny.velocity(use_lora=True))
    for name in ("attn.to_q", "attn.to_k", "attn.to_v", "img_mod.1"):
        path = f"transformer_blocks.0.{name}"
        (noise, cond), (noise_adapted, cond_adapted) = (condition_rows(c[path][1]) for c in (plain, adapted))
        assert torch.equal(noise, noise_adapted), path
        assert not torch.isclose(cond, cond_adapted).all(dim=-1).any(), path


def test_strength_0_is_bit_equal_to_no_adapter():
    assert torch.equal(output(tiny.velocity(use_lora=True, lora_strength=0.0)), output(tiny.velocity()))


def test_strength_acts():
    """At 0.5 the change has about half the size and the same direction as at 1."""
    base, half, full = (output(tiny.velocity(use_lora=True, lora_strength=s)) for s in (0.0, 0.5, 1.0))
    change_half, change_full = half - base, full - base
    assert float(change_full.abs().max()) > 0.05
    cosine = torch.nn.functional.cosine_similarity(change_half.flatten(), change_full.flatten(), dim=0)
    assert float(cosine) > 0.8
    assert 0.3 < float(change_half.norm() / change_full.norm()) < 0.8


def test_a_zero_b_leaves_the_output_at_the_base():
    velocity = tiny.velocity(use_lora=True)
    for _, pair in velocity.lora.pairs():
        nn.init.zeros_(pair.lora_B.weight)
    assert torch.equal(output(velocity), output(tiny.velocity()))


def test_every_pair_gets_a_gradient():
    """So no target is dead; the dead ones of the last block are left out."""
    velocity = tiny.velocity(use_lora=True)
    velocity.lora.requires_grad_(True)
    output(velocity).square().sum().backward()
    for path, pair in velocity.lora.pairs():
        assert float(pair.lora_A.weight.grad.abs().max()) > 0, path
        assert float(pair.lora_B.weight.grad.abs().max()) > 0, path


def test_the_omitted_targets_of_the_last_block_are_dead():
    transformer = tiny.velocity().transformer
    last = transformer.transformer_blocks[1]
    for name in DEAD_IN_LAST_BLOCK:
        path = f"transformer_blocks.1.{name}"
        shape = transformer.get_submodule(path).weight.shape
        pair = {f"{path}.lora_A.weight": torch.ones(4, shape[1]), f"{path}.lora_B.weight": torch.ones(shape[0], 4)}
        velocity = tiny.velocity()
        velocity.lora = BranchLora.from_tensors(pair)
        assert torch.equal(output(velocity), output(tiny.velocity())), name
    assert isinstance(last.attn.to_q, nn.Linear)


def test_target_paths():
    paths = target_paths(3)
    assert len(paths) == len(set(paths)) == 3 * len(BLOCK_TARGETS) - len(DEAD_IN_LAST_BLOCK)
    assert [p for p in paths if p.startswith("transformer_blocks.2.")] == [
        f"transformer_blocks.2.{name}" for name in ("attn.to_k", "attn.to_v", "img_mod.1")
    ]
    assert target_paths(2, ["attn.to_q"]) == ["transformer_blocks.0.attn.to_q"]
    modules = dict(tiny.velocity().transformer.named_modules())
    assert all(isinstance(modules[path], nn.Linear) for path in target_paths(2))


def test_state_dict_keys_are_the_files_keys():
    tensors = tiny.lora_weights()
    lora = BranchLora.from_tensors(tensors)
    assert set(lora.state_dict()) == set(tensors)
    assert all(torch.equal(lora.state_dict()[key], value) for key, value in tensors.items())
    assert lora_shapes(tensors)["transformer_blocks.0.img_mod.1"] == (4, 64, 384)
    assert [path for path, _ in lora.pairs()] == [k.removesuffix(".lora_A.weight") for k in tensors if "lora_A" in k]


def test_missing_or_unknown_tensors_are_not_passed_over():
    tensors = tiny.lora_weights()
    key = "transformer_blocks.0.attn.to_q.lora_B.weight"
    with pytest.raises((RuntimeError, KeyError)):
        BranchLora.from_tensors({k: v for k, v in tensors.items() if k != key})
    with pytest.raises(RuntimeError):
        BranchLora.from_tensors(tensors | {"transformer_blocks.0.attn.to_q.alpha": torch.ones(1)})


# Overrides are gone after the call, whatever happened in it.


def overridden(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_modules() if "forward" in child.__dict__]


def test_nothing_is_left_on_the_model_after_a_call():
    velocity = tiny.velocity(use_lora=True)
    first = output(velocity)
    assert overridden(velocity.transformer) == []
    assert torch.equal(first, output(velocity))


def test_forwards_are_restored_after_an_exception():
    velocity = tiny.velocity(use_lora=True)
    during = []

    def fail(*_):
        during.extend(overridden(velocity.transformer))
        raise RuntimeError("out of memory")

    handle = velocity.transformer.transformer_blocks[1].attn.to_q.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        output(velocity)
    handle.remove()
    assert len(during) == len(target_paths(2)) + 2  # the guard bites: adapter, times and positions were there
    assert overridden(velocity.transformer) == []
    assert torch.equal(output(velocity), output(tiny.velocity(use_lora=True)))


def test_nested_overrides_come_off_in_reverse_order():
    module = nn.Linear(3, 3)
    x = torch.ones(1, 3)
    plain = module(x)
    inner_of_host = module.forward

    def host_forward(x):  # an instance attribute that was there before, as host features install it
        return inner_of_host(x) + 1

    module.forward = host_forward
    with forward_overrides([(module, lambda x: module.__class__.forward(module, x) * 2)]):
        with contextlib.suppress(KeyError), forward_overrides([(module, lambda x: x)]):
            assert torch.equal(module(x), x)
            raise KeyError
        assert torch.equal(module(x), plain * 2)
    assert torch.equal(module(x), plain + 1)
    assert module.__dict__["forward"] is host_forward


def test_a_failure_while_installing_takes_back_what_was_installed():
    module = nn.Linear(3, 3)

    def overrides():
        yield module, lambda x: x
        raise RuntimeError("no such module")

    with pytest.raises(RuntimeError), contextlib.ExitStack() as stack:
        stack.enter_context(forward_overrides(overrides()))
    assert overridden(module) == []


def test_no_overrides_at_strength_0():
    velocity = tiny.velocity(use_lora=True)
    assert branch_overrides(velocity.transformer, velocity.lora, 0.0, 24) == []
    assert len(branch_overrides(velocity.transformer, velocity.lora, 0.1, 24)) == len(target_paths(2))


def test_bf16_adapter_and_model_run_together():
    full, half = (output(tiny.velocity(use_lora=True, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32  # the latent's dtype
    assert float((full - half).norm() / full.norm()) < 0.05
