"""The planner's arithmetic against counted bytes of the real pieces, at three small sizes, within 10 %."""

import dataclasses
import warnings

import lpips
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from torch import nn

from helpers.counted_transformer import SIZES, Counted, problem, saved_under_autocast_on_cuda, velocity
from helpers.live_bytes import LiveBytes
from helpers.tiny import memory as tiny_memory
from helpers.tiny import model as tiny
from teasr_core.model.architecture import QWEN_IMAGE
from teasr_core.model.branch_lora import BranchLora, target_paths
from teasr_core.model.qwen_velocity import build_transformer
from training.memory import costs
from training.memory.checkpointing import Checkpointing
from training.memory.costs import OPTIMISERS, Problem
from training.memory.groups import BLOCK_GROUPS, GroupPlan, group_of, linears_of
from training.memory.modulation_sweep import ModulationSweep
from training.memory.quantised_linear import FrozenLinear, replace_linears
from training.memory.streaming import BlockStreamer
from training.memory.vae_decode import decode_checkpointed

CPU = torch.device("cpu")
TOLERANCE = 0.1
SAVED = 0.02  # what is kept is known to the tensor; the peaks depend on temporaries


def close(found: float, wanted: float, tolerance: float = TOLERANCE) -> bool:
    return abs(found / wanted - 1) <= tolerance


# (autocast, dtype of the LoRA): what a config may have
COMPUTE = [(False, torch.bfloat16), (True, torch.bfloat16), (True, torch.float32)]
IDS = ["bf16", "autocast", "autocast, float32 LoRA"]
per_size = pytest.mark.parametrize("size", SIZES, ids=["batch 1", "batch 2", "wide heads"])
per_compute = pytest.mark.parametrize(("use_autocast", "lora_dtype"), COMPUTE, ids=IDS)


@per_size
@per_compute
def test_a_block_saves_what_is_said(size, use_autocast, lora_dtype):
    """The middle blocks: two models differ by one. With the copies of a float32 LoRA that autocast makes."""
    three, two = (Counted(problem(size, layers, use_autocast), lora_dtype=lora_dtype).saved for layers in (3, 2))
    assert close(slope(problem(size, 3, use_autocast), Checkpointing("none"), lora_dtype), three - two, SAVED)


@pytest.mark.parametrize("lora_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "float32"])
def test_what_is_counted_is_what_cuda_saves(lora_dtype):
    """The rule that `cuda_autocast` adds to the CPU's is CUDA's, and the only one that matters."""
    p = problem(SIZES[0], 3, use_autocast=True)
    on_cuda = saved_under_autocast_on_cuda(p, lora_dtype)
    assert close(Counted(p, lora_dtype=lora_dtype).saved, on_cuda, 0.001)
    assert not close(Counted(problem(SIZES[0], 3)).saved, on_cuda, 0.05)  # it bites


def slope(p: Problem, checkpointing: Checkpointing, lora_dtype: torch.dtype) -> float:
    """Bytes that a middle block holds; the last has fewer targets, so the LoRA's copies are taken apart."""
    weight, sizes = lora_dtype.itemsize, []
    for layers in (p.architecture.num_layers, p.architecture.num_layers - 1):
        one = dataclasses.replace(p, architecture=dataclasses.replace(p.architecture, num_layers=layers))
        sizes.append(costs.activation_bytes(one, checkpointing, weight)[0])
    return sizes[0] - sizes[1]


@per_size
@per_compute
def test_a_checkpointed_block_keeps_its_inputs(size, use_autocast, lora_dtype):
    three, two = (Counted(problem(size, layers, use_autocast), "all", lora_dtype=lora_dtype).held for layers in (3, 2))
    assert close(costs.block_input_bytes(problem(size, 3), size[2]), three - two, SAVED)


@per_size
@per_compute
@pytest.mark.parametrize("mode", ["all", "none"])
def test_the_peak_of_a_forward_and_backward(size, use_autocast, lora_dtype, mode):
    """Held and working together, as the plan adds them up."""
    p, weight = problem(size, 4, use_autocast), lora_dtype.itemsize
    counted = Counted(p, mode, lora_dtype=lora_dtype).peak
    held, _ = costs.activation_bytes(p, Checkpointing(mode), weight)
    assert close(held + costs.backward_bytes(p, Checkpointing(mode), weight), counted)


@per_size
@per_compute
def test_the_peak_of_a_score(size, use_autocast, lora_dtype):
    """The forwards of Delta have no gradient and B rows each; a float32 LoRA's copies are all there at its end."""
    p, weight = problem(size, 4, use_autocast), lora_dtype.itemsize
    assert close(costs.score_bytes(p, weight), Counted(p, no_grad=True, lora_dtype=lora_dtype).peak)
    for mode in ("none", "all"):
        assert costs.score_bytes(p, weight) <= costs.working_bytes(p, Checkpointing(mode), weight)


def test_a_float32_lora_adds_its_copies_to_a_score():
    p = problem(SIZES[2], 4, use_autocast=True)
    more = Counted(p, no_grad=True, lora_dtype=torch.float32).peak - Counted(p, no_grad=True).peak
    assert close(costs.lora_copy_bytes(p, 4), more, 0.01) and costs.lora_copy_bytes(p, 2) == 0


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
