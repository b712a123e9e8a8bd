"""The trainable adapter: what it starts as, which layers it has, how alpha scales it, whom it touches."""

import math

import pytest
import torch

from helpers.tiny import model as tiny
from helpers.tiny.distill_run import changed
from teasr_core.model.branch_lora import BLOCK_TARGETS, DEAD_IN_LAST_BLOCK
from teasr_core.model.qwen_velocity import build_transformer
from training.config.distill import AdapterConfig
from training.distill.trainer import Distiller
from training.frozen_base.new_adapter import lora_scale, new_adapter


@pytest.fixture(scope="module")
def transformer():
    return build_transformer(tiny.ARCHITECTURE)


@pytest.fixture
def adapter(transformer):
    """adapter(seed, **fields of its config)"""

    def build(seed=0, **options):
        config = AdapterConfig(**{"rank": 8, "alpha": 8.0, **options})
        return new_adapter(transformer, tiny.ARCHITECTURE, config, seed)

    return build


def state(lora):
    return dict(lora.named_parameters())


# What it starts as


def test_every_target_has_a_pair_but_the_dead_ones(adapter, transformer):
    found = adapter(rank=8)
    wanted = [
        f"transformer_blocks.{i}.{t}" for i in (0, 1) for t in BLOCK_TARGETS if i == 0 or t not in DEAD_IN_LAST_BLOCK
    ]
    assert [path for path, _ in found.pairs()] == wanted
    linears = dict(transformer.named_modules())
    for path, pair in found.pairs():
        out_features, in_features = linears[path].weight.shape
        assert (pair.lora_A.weight.shape, pair.lora_B.weight.shape) == ((8, in_features), (out_features, 8))
        assert pair.lora_A.weight.dtype == torch.float32
    few = adapter(targets=("attn.to_k",))
    assert [path for path, _ in few.pairs()] == ["transformer_blocks.0.attn.to_k", "transformer_blocks.1.attn.to_k"]


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_the_initial_values_are_peft_s(adapter, init):
    """A as documented by peft, its spread over all layers; B zero."""
    for path, pair in adapter(rank=32, init=init).pairs():
        a, rank, in_features = pair.lora_A.weight.detach(), 32, pair.lora_A.weight.shape[1]
        assert not pair.lora_B.weight.any()
        if init == "kaiming":  # U(-b, b), b = 1 / sqrt(in)
            bound = in_features**-0.5
            assert 0.95 * bound < float(a.abs().max()) <= bound, path
            assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.06)
        else:
            assert float(a.std()) == pytest.approx(1 / rank, rel=0.06)
        assert abs(float(a.mean())) < 0.1 * float(a.std())


def test_a_whole_model_wrapped_by_peft_starts_with_the_same_values(adapter):
    """The first layer: afterwards peft draws for layers that have no pair here."""
    from peft import LoraConfig, inject_adapter_in_model

    wrapped = build_transformer(tiny.ARCHITECTURE)
    options = LoraConfig(r=8, lora_alpha=8, target_modules=r"transformer_blocks\.0\.attn\.to_q")
    torch.manual_seed(5)
    inject_adapter_in_model(options, wrapped)
    found = state(adapter(seed=5))["transformer_blocks.0.attn.to_q.lora_A.weight"]
    assert torch.equal(found, wrapped.state_dict()["transformer_blocks.0.attn.to_q.lora_A.default.weight"])


def test_an_orthogonal_start_has_a_product_of_zero(adapter):
    for _, pair in adapter(rank=8, init="orthogonal").pairs():
        a, b = pair.lora_A.weight.detach().double(), pair.lora_B.weight.detach().double()
        assert a.any() and b.any()
        assert float((b @ a).abs().max()) < 1e-6 * float(b.norm() * a.norm())


def test_the_seed_decides_and_the_global_random_state_stays(adapter):
    before = torch.get_rng_state()
    one, again, other = state(adapter(seed=1)), state(adapter(seed=1)), state(adapter(seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert all(not torch.equal(value, other[name]) for name, value in one.items() if ".lora_A." in name)


# In a run


@pytest.fixture
def velocity(distillation):
    """velocity(name, B=, **adapter): of a trainer before its first step; B fills the pairs' second matrices."""

    def build(name, b=None, **options):
        trainer = Distiller(changed(distillation(name), adapter=options))
        with torch.no_grad():
            for key, value in trainer.parameters.items():
                if b is not None and ".lora_B." in key:
                    value.copy_(b * torch.randn(value.shape, generator=tiny.generator(7)))
        return trainer.model.velocity

    return build


def call(velocity):
    z_t, z_lq = tiny.latents(height=8, width=12)
    with torch.no_grad():
        return velocity(z_t, torch.tensor([0.9, 0.5]), z_lq, torch.tensor([0.2, -0.3]))


def test_at_the_start_the_output_is_the_base_s(velocity):
    assert torch.equal(call(velocity("a")), call(tiny.velocity()))
    assert torch.allclose(call(velocity("b", init="orthogonal")), call(tiny.velocity()), atol=1e-4)


def test_alpha_over_rank_multiplies_the_adapter(velocity):
    assert lora_scale(AdapterConfig(rank=32, alpha=8.0)) == 0.25
    once = call(velocity("a", b=0.2, rank=4, alpha=4.0))
    assert not torch.allclose(once, call(tiny.velocity()), atol=1e-3)
    assert torch.equal(call(velocity("b", b=0.1, rank=4, alpha=8.0)), once)  # half of B, twice the scale
    assert not torch.allclose(call(velocity("c", b=0.2, rank=4, alpha=8.0)), once, atol=1e-3)


def test_the_adapter_reaches_condition_tokens_only(velocity):
    """At the first block, whose input is the base's; noise and text rows are the base's to the bit."""
    num_noise = 4 * 6  # tokens of an 8 x 12 latent
    tokens = ("attn.to_q", "attn.to_k", "attn.to_v")

    def outputs(of):
        found, handles = {}, []
        block = of.transformer.transformer_blocks[0]
        for name in (*tokens, "img_mod.1"):
            hook = lambda _m, _i, out, name=name: found.__setitem__(name, out.clone())  # noqa: E731
            handles.append(block.get_submodule(name).register_forward_hook(hook))
        call(of)
        for handle in handles:
            handle.remove()
        return found

    # without the modulation's pair, whose condition row moves the input of the others
    trained = outputs(velocity("a", b=0.2, targets=tokens))
    base = outputs(tiny.velocity())
    for name in tokens:
        assert torch.equal(trained[name][:, :num_noise], base[name][:, :num_noise])
        assert bool((trained[name][:, num_noise:] != base[name][:, num_noise:]).any(dim=2).all())
    modulated = outputs(velocity("b", b=0.2, targets=("img_mod.1",)))["img_mod.1"]  # (2B, 6 D)
    assert torch.equal(modulated[:2], base["img_mod.1"][:2])
    assert bool((modulated[2:] != base["img_mod.1"][2:]).any(dim=1).all())
