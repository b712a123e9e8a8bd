"""The planner's arithmetic against counted bytes of the real pieces, at three small sizes, within 10 %."""

import contextlib
import dataclasses
import warnings

import lpips
import pytest
import tiny
import tiny_memory
import torch
from diffusers import AutoencoderKLQwenImage
from live_bytes import LiveBytes, saved_tensors
from torch import nn

from teasr_core.architecture import QWEN_IMAGE, QwenArchitecture
from teasr_core.branch_lora import BranchLora, branch_overrides, forward_overrides, target_paths
from teasr_core.qwen import QwenVelocity, build_transformer
from training.memory import costs
from training.memory.checkpointing import Checkpointing, apply_checkpointing
from training.memory.costs import OPTIMISERS, Problem
from training.memory.groups import BLOCK_GROUPS, GroupPlan, group_of, linears_of
from training.memory.modulation_sweep import ModulationSweep
from training.memory.quantised_linear import FrozenLinear, replace_linears
from training.memory.streaming import BlockStreamer
from training.memory.vae_decode import decode_checkpointed

CPU = torch.device("cpu")
TOLERANCE = 0.1
# (architecture but for its layers, crop px, batch, rank): 16 px a token, as the 20B
SIZES = [
    (QwenArchitecture(num_heads=2, head_dim=32, rope_axes=(8, 12, 12), text_width=16), 192, 1, 4),
    (QwenArchitecture(num_heads=4, head_dim=32, rope_axes=(8, 12, 12), text_width=24), 160, 2, 8),
    (QwenArchitecture(num_heads=2, head_dim=64, rope_axes=(16, 24, 24), text_width=32), 224, 1, 16),
]


def close(found: float, wanted: float) -> bool:
    return abs(found / wanted - 1) <= TOLERANCE


def problem(size, num_layers: int) -> Problem:
    architecture, px, batch, rank = size
    architecture = dataclasses.replace(architecture, num_layers=num_layers)
    return Problem(architecture, px, rank, batch, "sequential", "none", tiny.PROMPT_TOKENS)


def velocity(p: Problem) -> QwenVelocity:
    """In bf16 with a bf16 LoRA, plain Linears."""
    architecture = p.architecture
    transformer = build_transformer(architecture).requires_grad_(False)
    nn.Module.to(transformer, torch.bfloat16)
    linears = dict(transformer.named_modules())
    paths = target_paths(architecture.num_layers)
    shapes = {path: (p.rank, linears[path].in_features, linears[path].out_features) for path in paths}
    lora = BranchLora(shapes, dtype=torch.bfloat16)
    return QwenVelocity(transformer, tiny.prompt_embeds(architecture), "velocity", lora)


class Counted:
    """One forward, and one backward when it has a gradient: bytes saved, alive between the two, alive at most."""

    def __init__(self, p: Problem, mode: str = "none", no_grad: bool = False, batch: int | None = None) -> None:
        v, batch = velocity(p), batch or p.batch
        apply_checkpointing(v.transformer, Checkpointing(mode))
        side = p.resolution_px // 8
        z = torch.randn(2, batch, 16, side, side)
        t = torch.full((batch,), 0.5)
        plain = QwenVelocity(v.transformer, v.prompt_embeds, v.prediction)
        for parameter in v.lora.parameters():
            parameter.grad = torch.zeros_like(parameter)  # gradients are the LoRA's line of the budget
        with torch.no_grad():
            plain(z[0], t, z[1], t)  # fills diffusers' tables of rotary frequencies
        weights = [*v.transformer.parameters(), *v.lora.parameters()]
        with contextlib.ExitStack() as stack:
            stack.enter_context(forward_overrides(branch_overrides(v.transformer, v.lora, 1.0, p.image_tokens // 2)))
            saved = stack.enter_context(saved_tensors(weights))
            live = stack.enter_context(LiveBytes())
            with torch.set_grad_enabled(not no_grad):
                out = plain(z[0], t, z[1], t)
            self.held, self.saved = live.now, saved.num_bytes
            if not no_grad:
                out.square().mean().backward()
            self.peak = live.peak


@pytest.mark.parametrize("size", SIZES)
def test_a_block_saves_what_is_said(size):
    """The middle blocks: two models differ by one."""
    three, two = (Counted(problem(size, layers)).saved for layers in (3, 2))
    assert close(costs.block_saved_bytes(problem(size, 3), size[2]), three - two)


@pytest.mark.parametrize("size", SIZES)
def test_a_checkpointed_block_keeps_its_inputs(size):
    three, two = (Counted(problem(size, layers), "all").held for layers in (3, 2))
    assert close(costs.block_input_bytes(problem(size, 3), size[2]), three - two)


@pytest.mark.parametrize("size", SIZES)
def test_the_peak_of_a_recomputed_block(size):
    """Together with the held inputs, as the plan adds them up."""
    p = problem(size, 3)
    everything = Checkpointing("all")
    said = costs.activation_bytes(p, everything, lora_weight=2)[0] + costs.working_bytes(p, everything)
    assert close(said, Counted(p, "all").peak)


@pytest.mark.parametrize("size", SIZES)
def test_the_peak_without_checkpointing(size):
    """What three blocks take above two: the slope that sixty are reckoned with."""
    three, two = (Counted(problem(size, layers)).peak for layers in (3, 2))
    spec = Checkpointing("none")
    said = [costs.activation_bytes(problem(size, layers), spec, lora_weight=2)[0] for layers in (3, 2)]
    assert close(said[0] - said[1], three - two)


@pytest.mark.parametrize("size", SIZES)
def test_the_peak_of_the_pair_without_gradient(size):
    p = problem(size, 2)
    said = int(costs.NO_GRAD_UNITS * costs.unit_bytes(p, 2 * p.batch))
    assert close(said, Counted(p, no_grad=True, batch=2 * p.batch).peak)
    assert said <= costs.working_bytes(p, Checkpointing("none"))


@pytest.mark.parametrize("size", SIZES)
def test_the_weights_of_every_group_and_form(size):
    p = problem(size, 3)
    for precision in ("bf16", "fp8", "nf4"):
        for placement in ("resident", "streamed", "swept"):
            transformer = velocity(p).transformer
            plans = {group: GroupPlan(precision, placement) for group in BLOCK_GROUPS}
            replace_linears(transformer, plans)
            for group in BLOCK_GROUPS:
                device, host = costs.weight_bytes(p.architecture, group, plans[group])
                small = sum(parameter.numel() * 2 for name, parameter in transformer.named_parameters()
                            if group_of(name) == group)  # fmt: skip
                layers = [[layer for _, layer in block] for block in linears_of(transformer, group, FrozenLinear)]
                stored = sum(t.numel() * t.element_size() for block in layers for layer in block
                             for t in layer.stored or ())  # fmt: skip
                if plans[group].is_plain:
                    assert (device, host) == (small, 0)
                elif placement == "resident":
                    assert (device, host) == (small + stored, 0)
                else:
                    streamer = BlockStreamer(layers, CPU)
                    layers[0][0].dequantised(torch.bfloat16)
                    ring = sum(slot.numel() for slot in streamer._ring) if placement == "streamed" else 0
                    assert host == stored and close(streamer.host_bytes, host)
                    assert close(device, small + ring)
        device, host = costs.weight_bytes(p.architecture, "rest", GroupPlan())
        rest = [parameter for name, parameter in transformer.named_parameters() if group_of(name) == "rest"]
        assert (device, host) == (sum(2 * parameter.numel() for parameter in rest), 0)


def test_the_rows_of_a_sweep():
    v = tiny_memory.velocity(dtype=torch.bfloat16)
    replace_linears(v.transformer, {"modulation": GroupPlan("fp8", "swept")})
    p = Problem(tiny_memory.ARCHITECTURE, 64, 4, tiny_memory.BATCH, "sequential", "none")
    rows, ring = costs.sweep_bytes(p, GroupPlan("fp8", "swept"))
    with ModulationSweep(v.transformer, tiny_memory.times()) as sweep:
        assert sweep.num_bytes == rows
    layers = [[layer for _, layer in block] for block in linears_of(v.transformer, "modulation", FrozenLinear)]
    streamer = BlockStreamer(layers, CPU)
    layers[0][0].dequantised(torch.bfloat16)
    assert close(sum(slot.numel() for slot in streamer._ring), ring)


@pytest.mark.parametrize("architecture", [QWEN_IMAGE, tiny.ARCHITECTURE])
def test_the_lora_counts_as_the_real_one(architecture):
    with torch.device("meta"):
        linears = dict(build_transformer(architecture).named_modules())
        paths = target_paths(architecture.num_layers)
        lora = BranchLora({path: (7, linears[path].in_features, linears[path].out_features) for path in paths})
    assert costs.lora_parameters(architecture, 7) == sum(parameter.numel() for parameter in lora.parameters())


def test_adamw_takes_sixteen_bytes_a_parameter():
    lora = BranchLora.from_tensors(tiny.lora_weights())
    optimiser = torch.optim.AdamW(lora.parameters())
    sum(parameter.square().sum() for parameter in lora.parameters()).backward()
    optimiser.step()
    tensors = [*lora.parameters(), *(parameter.grad for parameter in lora.parameters())]
    tensors += [value for state in optimiser.state.values() for value in state.values() if value.numel() > 1]
    counted = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert counted == OPTIMISERS["adamw"].device * sum(parameter.numel() for parameter in lora.parameters())


@pytest.mark.parametrize(("base_dim", "px"), [(16, 64), (16, 96), (32, 64)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_peak_of_a_decode(base_dim, px, dtype):
    vae = AutoencoderKLQwenImage(base_dim=base_dim, z_dim=16).requires_grad_(False)
    nn.Module.to(vae, torch.bfloat16 if dtype == "bf16" else torch.float32)
    z = torch.randn(1, 16, px // 8, px // 8).requires_grad_()
    with LiveBytes() as live:
        image = decode_checkpointed(vae, z)
        held = live.now
        image.square().mean().backward()
    assert close(costs.DECODE_HELD[dtype] * base_dim * px**2, held)
    assert close(costs.DECODE_PEAK[dtype] * base_dim * px**2, live.peak)


def test_the_vae_counts_as_the_real_one():
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
    assert vae.config["base_dim"] == costs.VAE_BASE_DIM
    assert sum(parameter.numel() for parameter in vae.parameters()) == costs.VAE_PARAMETERS


@pytest.mark.parametrize("px", [128, 192, 256])
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_the_peak_of_lpips(net, px):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False)
    a, b = torch.rand(1, 3, px, px, requires_grad=True), torch.rand(1, 3, px, px)
    with LiveBytes() as live:
        metric(a, b).sum().backward()
    assert close(costs.LPIPS_PEAK[f"lpips-{net}"] * px**2, live.peak)
    assert sum(parameter.numel() * 4 for parameter in metric.parameters()) == costs.LPIPS_WEIGHTS[f"lpips-{net}"]
