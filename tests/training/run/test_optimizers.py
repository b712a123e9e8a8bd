"""Every optimiser: the three kinds of AdamW agree with torch's, and each state survives a file."""

import itertools
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from teasr_core.errors import ConfigError
from training.config.shared import OPTIMISER_KINDS, DistillOptimConfig
from training.run.learning_rate import rate_between
from training.run.optimizers import NamedOptimizer

SHAPES = {"a.lora_A.weight": (64, 80), "a.lora_B.weight": (80, 64), "b.bias": (7,)}  # 8 bits from 4096 values on
RATES = (1e-2, 3e-3, 1e-3, 2e-2, 1e-3, 1e-3)


def parameters(dtype=torch.float32):
    source = torch.Generator().manual_seed(0)
    return {n: torch.nn.Parameter(torch.randn(s, generator=source).to(dtype)) for n, s in SHAPES.items()}


def give_gradients(named, step):
    source = torch.Generator().manual_seed(100 + step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=source).to(parameter.dtype)


def settings(kind, **options):
    pytest.importorskip({"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(kind, "torch"))
    return DistillOptimConfig(kind=kind, **{"weight_decay": 0.02, "betas": (0.8, 0.95), "eps": 1e-7, **options})


def run(named, optimizer, steps):
    for step in steps:
        give_gradients(named, step)
        optimizer.step(RATES[step])
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in named.values())
    return {name: parameter.detach().clone() for name, parameter in named.items()}


def reference(dtype=torch.float32):
    """torch's own AdamW, one parameter at a time."""
    named = parameters(dtype)
    inner = torch.optim.AdamW(named.values(), betas=(0.8, 0.95), eps=1e-7, weight_decay=0.02, foreach=False)
    for step, rate in enumerate(RATES):
        give_gradients(named, step)
        for group in inner.param_groups:
            group["lr"] = rate
        inner.step()
    return {name: parameter.detach() for name, parameter in named.items()}


@pytest.mark.parametrize("kind", ["adamw", "adamw-cpu"])
def test_float32_states_agree_with_torch(kind):
    named = parameters()
    found = run(named, NamedOptimizer(named, settings(kind)), range(len(RATES)))
    for name, wanted in reference().items():
        assert torch.allclose(found[name], wanted, rtol=1e-6, atol=1e-7), name


def test_eight_bits_are_near():
    """An update is off by some percent; small parameters keep float32 states and agree."""
    named, start, wanted = parameters(), parameters(), reference()
    optimizer = NamedOptimizer(named, settings("adamw-8bit"))
    found = run(named, optimizer, range(len(RATES)))
    for name in SHAPES:
        moved, should = found[name] - start[name].detach(), wanted[name] - start[name].detach()
        error = float((moved - should).norm() / should.norm())
        assert error < (1e-5 if name == "b.bias" else 0.06), (name, error)
        if name != "b.bias":
            assert optimizer.state_tensors()[f"state1.{name}"].dtype == torch.uint8


def test_bf16_weights_follow_float32_masters():
    """Updates far below a bf16 weight's own step add up on the CPU and would be lost on the device."""
    named = {"w": torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))}
    optimizer = NamedOptimizer(named, settings("adamw-cpu", weight_decay=0.0))
    for _ in range(40):
        named["w"].grad = torch.ones(4, dtype=torch.bfloat16)
        optimizer.step(1e-3)  # bf16 steps near 1 are 4e-3 below and 8e-3 above it
    assert torch.allclose(named["w"].float(), torch.full((4,), 0.96), atol=3e-3)
    assert optimizer.stepped["w"].dtype == torch.float32
    assert float(optimizer.stepped["w"].detach()[0]) == pytest.approx(0.96, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in OPTIMISER_KINDS), ("adamw-cpu", torch.bfloat16)],
)  # fmt: skip
def test_the_state_survives_a_file(tmp_path, kind, dtype):
    whole = parameters(dtype)
    wanted = run(whole, NamedOptimizer(whole, settings(kind)), range(6))
    parts = parameters(dtype)
    optimizer = NamedOptimizer(parts, settings(kind))
    # There are no moments before the first step.
    assert all(name.startswith(("master.", "group.")) for name in optimizer.state_tensors())
    run(parts, optimizer, range(3))
    save_file({k: v.contiguous() for k, v in optimizer.state_tensors().items()}, tmp_path / "state.safetensors")
    resumed = {name: torch.nn.Parameter(value.detach().clone()) for name, value in parts.items()}
    optimizer = NamedOptimizer(resumed, settings(kind))
    optimizer.load_state_tensors(load_file(tmp_path / "state.safetensors"))
    found = run(resumed, optimizer, range(3, 6))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_parameters_without_a_state_start_afresh():
    named = parameters()
    optimizer = NamedOptimizer(named, settings("adamw"))
    optimizer.load_state_tensors({"step.b.bias": torch.tensor(5.0), "exp_avg.b.bias": torch.ones(7),
                                  "exp_avg_sq.b.bias": torch.ones(7)})  # fmt: skip
    run(named, optimizer, range(1))
    states = optimizer.state_tensors()
    assert float(states["step.b.bias"]) == 6 and float(states["step.a.lora_A.weight"]) == 1


def test_masters_start_from_the_weights_that_were_loaded():
    """A checkpoint of another kind has none."""
    named = parameters()
    optimizer = NamedOptimizer(named, settings("adamw-cpu"))
    with torch.no_grad():
        named["b.bias"].fill_(3)
    optimizer.load_state_tensors({})
    assert torch.equal(optimizer.stepped["b.bias"], torch.full((7,), 3.0))


@pytest.mark.parametrize(
    ("kind", "package", "module"),
    [("adamw-8bit", "bitsandbytes", "bitsandbytes.optim"), ("prodigy", "prodigyopt", "prodigyopt")],
)
def test_a_missing_package_is_named(monkeypatch, kind, package, module):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"optim\.kind is '{kind}' and the package {package} is not installed"):
        NamedOptimizer(parameters(), DistillOptimConfig(kind=kind))


@pytest.mark.parametrize(("kind", "rate"), [("adamw", 0.02), ("prodigy", 1.0), ("adafactor", 0.02)])
def test_each_optimiser_goes_downhill(kind, rate):
    """Towards the least of |x - target|^2, from a start that is 3 away in every value."""
    target = torch.full((8, 6), 3.0)
    named = {"w": torch.nn.Parameter(torch.zeros(8, 6)), "b": torch.nn.Parameter(torch.zeros(6))}
    optimizer = NamedOptimizer(named, settings(kind, weight_decay=0.0))
    for _ in range(300):
        optimizer.zero_grad()
        ((named["w"] - target) ** 2 + (named["b"] - 3.0) ** 2).sum().backward()
        optimizer.step(rate)
    assert float((named["w"].detach() - target).abs().max()) < 1.0
    assert float((named["b"].detach() - 3.0).abs().max()) < 1.0


def test_prodigys_own_rate_is_kept():
    """Without it a resumed run would search for the rate again, from one in a million."""
    named = parameters()
    optimizer = NamedOptimizer(named, settings("prodigy"))
    run(named, optimizer, range(3))
    state = optimizer.state_tensors()
    assert float(state["group.d"]) > 0 and int(state["group.k"]) == 3
    again = NamedOptimizer(parameters(), settings("prodigy"))
    again.load_state_tensors(state)
    keys = ("d", "d_max", "d_numerator", "k")
    assert [again.inner.param_groups[0][k] for k in keys] == [optimizer.inner.param_groups[0][k] for k in keys]
    assert isinstance(again.inner.param_groups[0]["k"], int)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.6), ("cosine", 0.6)])
def test_a_schedule_goes_from_one_rate_to_the_other(schedule, middle):
    rates = [rate_between(1.0, 0.2, step, 100, schedule) for step in range(101)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(middle)
    assert rates[100] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_a_cosine_stays_longer_near_both_ends():
    line, cosine = ([rate_between(1.0, 0.0, step, 8, name) for step in range(9)] for name in ("linear", "cosine"))
    assert line == [1 - step / 8 for step in range(9)]
    assert all(curved > straight for curved, straight in zip(cosine[1:4], line[1:4], strict=True))
    assert all(curved < straight for curved, straight in zip(cosine[5:8], line[5:8], strict=True))
