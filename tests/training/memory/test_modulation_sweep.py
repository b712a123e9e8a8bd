"""A swept step equals an unswept one bit for bit, and needs no modulation weight while it runs."""

from contextlib import nullcontext

import pytest
import torch

from helpers.tiny import memory as tiny_memory
from helpers.tiny.memory import differing, step_gradients
from training.memory.checkpointing import Checkpointing, apply_checkpointing
from training.memory.groups import GroupPlan
from training.memory.modulation_sweep import ModulationSweep
from training.memory.quantised_linear import FrozenLinear, replace_linears


def swept_velocity(precision: str = "bf16"):
    v = tiny_memory.velocity()
    replace_linears(v.transformer, {"modulation": GroupPlan(precision, "swept")})
    return v


def modulation(transformer) -> list[FrozenLinear]:
    return [linear[1] for block in transformer.transformer_blocks for linear in (block.img_mod, block.txt_mod)]


def poison(transformer) -> None:
    """What a forward would notice if it used a modulation weight."""
    for linear in modulation(transformer):
        linear.stored = tuple(torch.full_like(tensor, float("nan")) for tensor in linear.stored)


class PoisonedSweep(ModulationSweep):
    """A sweep after which the weights are gone."""

    def __enter__(self):
        super().__enter__()
        poison(self.transformer)
        return self


def sweep_of(v, kind=ModulationSweep):
    return lambda: kind(v.transformer, tiny_memory.times())


@pytest.fixture(scope="module")
def wanted():
    return step_gradients(tiny_memory.velocity())


@pytest.mark.parametrize(("mode", "lora_outside"), [("none", True), ("all", False), ("all", True), ("offload", False)])
def test_gradients_equal_the_unswept_step(wanted, mode, lora_outside):
    """With checkpointing too, where blocks run again after other forwards, whichever context is the outer one."""
    v = swept_velocity()
    apply_checkpointing(v.transformer, Checkpointing(mode))
    found = step_gradients(v, [sweep_of(v, PoisonedSweep)], lora_outside)
    assert differing(found, wanted) == []


def test_the_poison_bites():
    """Without a sweep, a step does use the weights."""
    v = swept_velocity()
    poison(v.transformer)
    assert all(bool(torch.isnan(gradient).any()) for gradient in step_gradients(v).values())


def test_quantised_modulation_is_swept_exactly_too():
    unswept, v = step_gradients(swept_velocity("fp8")), swept_velocity("fp8")
    assert differing(step_gradients(v, [sweep_of(v, PoisonedSweep)]), unswept) == []


def test_the_lora_on_modulation_has_its_gradient():
    v = swept_velocity()
    gradients = step_gradients(v, [sweep_of(v)])
    for block in range(tiny_memory.NUM_LAYERS):
        for half in "AB":
            assert float(gradients[f"transformer_blocks.{block}.img_mod.1.lora_{half}.weight"].abs().max()) > 0


def test_an_unknown_time_is_refused():
    v = swept_velocity()
    z, z_lq = tiny_memory.latents()
    t = torch.tensor([0.25, 0.125])
    with ModulationSweep(v.transformer, tiny_memory.times()), pytest.raises(AssertionError, match="not of this sweep"):
        v(z, t, z_lq, t)


def test_a_foreign_time_embedding_is_refused():
    v = swept_velocity()
    sweep = ModulationSweep(v.transformer, tiny_memory.times())
    with sweep, pytest.raises(AssertionError, match="time embedding that is not of this sweep"):
        v.transformer.transformer_blocks[0].img_mod(torch.zeros(4, tiny_memory.ARCHITECTURE.width))


def test_the_dtype_must_be_that_of_the_forward():
    """As when a sweep is not told of the autocast that its step runs under."""
    v = tiny_memory.velocity(dtype=torch.float32)
    replace_linears(v.transformer, {"modulation": GroupPlan("bf16", "swept")})
    z, z_lq = (latent.float() for latent in tiny_memory.latents())
    t_cur, t_tar = tiny_memory.pairs()[0]
    with (
        ModulationSweep(v.transformer, tiny_memory.times()),
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(AssertionError, match="the sweep ran in"),
    ):
        v(z, t_cur, z_lq, t_tar)


def test_under_autocast_it_equals_the_unswept_forward():
    def output(swept: bool) -> torch.Tensor:
        v = tiny_memory.velocity(dtype=torch.float32)
        replace_linears(v.transformer, {"modulation": GroupPlan("bf16", "swept")})
        z, z_lq = (latent.float() for latent in tiny_memory.latents())
        t_cur, t_tar = tiny_memory.pairs()[1]

        def autocast():
            return torch.autocast("cpu", torch.bfloat16)

        sweep = ModulationSweep(v.transformer, tiny_memory.times(), torch.bfloat16, autocast)
        with sweep if swept else nullcontext(), autocast():
            return v(z, t_cur, z_lq, t_tar)

    assert torch.equal(output(True), output(False))


def test_nothing_is_left_after_the_step_or_a_failure(wanted):
    v = swept_velocity()
    with pytest.raises(KeyError), ModulationSweep(v.transformer, tiny_memory.times()):
        raise KeyError
    assert [name for name, module in v.transformer.named_modules() if "forward" in module.__dict__] == []
    assert all(linear.rows is None for linear in modulation(v.transformer))
    assert differing(step_gradients(v), wanted) == []


def test_the_rows_are_what_stays():
    """Two image rows and a text row of 6D for each sample, block and different pair of times."""
    v = swept_velocity()
    times = tiny_memory.times()
    with ModulationSweep(v.transformer, [*times, *times]) as sweep:
        rows = sum(3 * len(vector) // 2 for vector in times)
        assert sweep.num_bytes == rows * tiny_memory.NUM_LAYERS * 6 * tiny_memory.ARCHITECTURE.width * 8


def test_plain_linears_cannot_be_swept():
    v = tiny_memory.velocity()
    with pytest.raises(AssertionError, match="as FrozenLinear"), ModulationSweep(v.transformer, tiny_memory.times()):
        pass
