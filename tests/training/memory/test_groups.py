"""Every weight has one group, and the 20B falls into three thirds (docs/decisions.md#memory-by-group)."""

from collections import Counter

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QWEN_IMAGE
from teasr_core.model.branch_lora import target_paths
from teasr_core.model.qwen_velocity import build_transformer
from training.memory import costs
from training.memory.groups import BLOCK_GROUPS, GROUPS, GroupPlan, group_of, linears_of


@pytest.fixture(scope="module")
def counted() -> Counter:
    with torch.device("meta"):
        transformer = build_transformer(QWEN_IMAGE)
    counts = Counter()
    for path, parameter in transformer.named_parameters():
        counts[group_of(path)] += parameter.numel()
    return counts


def test_the_20b_is_three_thirds(counted):
    assert set(counted) == set(GROUPS)
    total = sum(counted.values())
    assert round(total / 1e9, 2) == 20.43
    for group in BLOCK_GROUPS:
        assert round(counted[group] / 1e9, 1) == 6.8
        assert abs(counted[group] / total - 1 / 3) < 0.001
    assert round(sum(counted[group] for group in BLOCK_GROUPS) / 60 / 1e6, 1) == 339.8
    assert counted["rest"] < 0.003 * total


def test_the_arithmetic_counts_the_same(counted):
    assert costs.group_parameters(QWEN_IMAGE) == dict(counted)
    with torch.device("meta"):
        small = build_transformer(tiny.ARCHITECTURE)
    found = Counter()
    for path, parameter in small.named_parameters():
        found[group_of(path)] += parameter.numel()
    assert costs.group_parameters(tiny.ARCHITECTURE) == dict(found)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("transformer_blocks.0.attn.to_out.0.bias", "image_stream"),
        ("transformer_blocks.59.attn.norm_q.weight", "image_stream"),
        ("transformer_blocks.7.img_mlp.net.0.proj.weight", "image_stream"),
        ("transformer_blocks.7.attn.to_add_out.weight", "text_stream"),
        ("transformer_blocks.7.attn.norm_added_k.weight", "text_stream"),
        ("transformer_blocks.7.txt_mlp.net.2.bias", "text_stream"),
        ("transformer_blocks.7.img_mod.1.weight", "modulation"),
        ("transformer_blocks.7.txt_mod.1.bias", "modulation"),
        ("txt_norm.weight", "rest"),
        ("time_text_embed.timestep_embedder.linear_1.weight", "rest"),
        ("norm_out.linear.bias", "rest"),
    ],
)
def test_paths(path, group):
    assert group_of(path) == group


@pytest.mark.parametrize("path", ["transformer_blocks.3.moe.gate.weight", "vision.weight", "attn.to_q.weight"])
def test_an_unknown_layer_is_not_guessed(path):
    with pytest.raises(ValueError, match="belongs to no memory group"):
        group_of(path)


def test_linears_by_block_cover_every_block_linear():
    transformer = build_transformer(tiny.ARCHITECTURE)
    found = [path for group in BLOCK_GROUPS for block in linears_of(transformer, group, torch.nn.Linear)
             for path, _ in block]  # fmt: skip
    every = [name for name, module in transformer.transformer_blocks.named_modules(prefix="transformer_blocks")
             if isinstance(module, torch.nn.Linear)]  # fmt: skip
    assert sorted(found) == sorted(every) and len(found) == len(set(found))
    assert set(target_paths(2)) <= set(found)


def test_plans_from_text():
    assert GroupPlan.parse("fp8 streamed", "text_stream") == GroupPlan("fp8", "streamed")
    assert str(GroupPlan.parse("bf16 swept", "modulation")) == "bf16 swept"
    assert GroupPlan().is_plain and not GroupPlan("fp8").is_plain and not GroupPlan("bf16", "streamed").is_plain


@pytest.mark.parametrize("text", ["fp8", "int8 resident", "fp8 offloaded", "fp8 streamed now", ""])
def test_other_text_is_refused(text):
    with pytest.raises(ConfigError, match=r"memory\.text_stream is"):
        GroupPlan.parse(text, "text_stream")


def test_only_modulation_is_swept():
    with pytest.raises(ConfigError, match="only modulation can be swept"):
        GroupPlan.parse("fp8 swept", "image_stream")


def test_a_wrong_plan_is_refused_when_made():
    with pytest.raises(ConfigError, match="expected one of"):
        GroupPlan("int3")
