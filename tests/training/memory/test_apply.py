"""A plan carried out changes no gradient: every placement and checkpointing equals the resident model bit for bit."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from helpers.live_bytes import LiveBytes
from helpers.tiny import memory as tiny_memory
from helpers.tiny.memory import differing, step_gradients
from teasr_core.model.qwen_velocity import build_transformer
from training.memory.apply import prepare
from training.memory.checkpointing import Checkpointing
from training.memory.groups import BLOCK_GROUPS, GroupPlan
from training.memory.modulation_sweep import ModulationSweep
from training.memory.planner import MemoryPlan
from training.memory.quantised_linear import FrozenLinear, replace_linears

CPU = torch.device("cpu")


def memory_plan(image: str, text: str, modulation: str, checkpointing: str = "none") -> MemoryPlan:
    texts = dict(zip(BLOCK_GROUPS, (image, text, modulation), strict=True))
    groups = {group: GroupPlan.parse(value, group) for group, value in texts.items()}
    return MemoryPlan(groups, Checkpointing.parse(checkpointing), "adamw", "fp32")


def prepared_gradients(plan: MemoryPlan) -> dict[str, torch.Tensor]:
    v = tiny_memory.velocity()
    prepared = prepare(v.transformer, plan, CPU)
    return step_gradients(v, [lambda: prepared.step(tiny_memory.times())])


PLANS = [
    ("bf16 resident", "bf16 streamed", "bf16 swept", "offload"),  # exact: nothing is quantised
    ("bf16 streamed", "bf16 streamed", "bf16 streamed", "every 2"),
    ("fp8 resident", "fp8 streamed", "bf16 swept", "all"),  # the 16 GB plan
    ("nf4 streamed", "fp8 resident", "fp8 swept", "offload"),
]


@pytest.mark.parametrize("texts", PLANS, ids=" / ".join)
def test_a_plan_equals_the_resident_model_of_the_same_precision(texts):
    precisions = [text.split()[0] for text in texts[:3]]
    v = tiny_memory.velocity()
    replace_linears(v.transformer, {g: GroupPlan(p) for g, p in zip(BLOCK_GROUPS, precisions, strict=True)})
    assert differing(prepared_gradients(memory_plan(*texts)), step_gradients(v)) == []


def test_the_plain_plan_leaves_the_model_as_it_is():
    v = tiny_memory.velocity()
    v.transformer.requires_grad_(True)
    prepared = prepare(v.transformer, memory_plan(*["bf16 resident"] * 3), CPU)
    assert not [module for module in v.transformer.modules() if isinstance(module, FrozenLinear)]
    assert not any(parameter.requires_grad for parameter in v.transformer.parameters())
    assert prepared.streamers == {} and isinstance(prepared.step(tiny_memory.times()), nullcontext)


def test_forwards_outside_of_a_step_need_no_announcement():
    """Previews: their times are not of any sweep."""
    z, z_lq = tiny_memory.latents()
    t_cur, t_tar = torch.tensor([0.123, 0.456]), torch.tensor([0.1, 0.2])
    v, plain = tiny_memory.velocity(), tiny_memory.velocity()
    prepared = prepare(v.transformer, memory_plan("bf16 resident", "bf16 streamed", "bf16 swept", "all"), CPU)
    with torch.no_grad():
        wanted = plain(z, t_cur, z_lq, t_tar)
        assert torch.equal(v(z, t_cur, z_lq, t_tar), wanted)
        with prepared.step(tiny_memory.times()) as sweep:
            assert isinstance(sweep, ModulationSweep)
        assert torch.equal(v(z, t_cur, z_lq, t_tar), wanted)


def test_streamed_groups_are_split_by_block():
    v = tiny_memory.velocity()
    prepared = prepare(v.transformer, memory_plan("fp8 resident", "fp8 streamed", "bf16 swept"), CPU)
    assert set(prepared.streamers) == {"text_stream", "modulation"}
    block = v.transformer.transformer_blocks[3]
    block.txt_mlp.net[2].dequantised(torch.float64)
    assert 3 in prepared.streamers["text_stream"].resident
    assert isinstance(block.attn.norm_q, nn.Module) and isinstance(v.transformer.proj_out, nn.Linear)


def test_a_model_whose_weights_never_came_is_refused():
    with torch.device("meta"):
        empty = build_transformer(tiny_memory.ARCHITECTURE)
    with pytest.raises(AssertionError, match="never stored"):
        prepare(empty, memory_plan("fp8 resident", "bf16 resident", "bf16 resident"), CPU)


def test_the_smallest_plan_holds_less_in_a_step():
    """Live bytes of one forward and backward, weights that are brought in on the way included."""

    def peak(plan: MemoryPlan) -> int:
        v = tiny_memory.velocity(dtype=torch.float32)
        prepared = prepare(v.transformer, plan, CPU)
        z, z_lq = (latent.float() for latent in tiny_memory.latents())
        t_cur, t_tar = tiny_memory.pairs()[0]
        with prepared.step(tiny_memory.times()), tiny_memory.lora_attached(v):
            v.lora, lora = None, v.lora
            with LiveBytes() as live:
                v(z, t_cur, z_lq, t_tar).square().mean().backward()
            v.lora = lora
        return live.peak

    resident = memory_plan(*["bf16 resident"] * 3)
    assert peak(memory_plan("bf16 resident", "bf16 resident", "bf16 swept", "all")) < 0.6 * peak(resident)
