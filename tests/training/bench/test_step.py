"""`bench` at tiny size on the CPU: what the command writes, the ratio it must keep, the FLOP it counts, its errors."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from teasr_core.errors import ConfigError
from teasr_core.model.architecture import QWEN_IMAGE
from training.bench.flops import FULL_ROWS, floor, forward_flop
from training.bench.model import random_source
from training.bench.report import format_result, to_json
from training.bench.settings import bench_settings, resized
from training.bench.step import FULL, PLAIN, Bench, run
from training.cli.commands import main
from training.frozen_base.qwen_base import load_packed
from training.frozen_base.settings import memory_plan
from training.memory.meter import no_phase
from training.memory.planner import MemoryPlan
from training.objective import losses
from training.objective.objective import Objective

CONFIGS = sorted((Path(__file__).parents[3] / "training" / "configs" / "distill").glob("*.toml"))
CPU = torch.device("cpu")
PLAIN_FLOAT = ["base.dtype=fp32", "run.autocast=false", "run.device=cpu"]
SMALL = {"layers": 2, "heads": 2, "width": 32, "steps": 1}


def settings(*overrides: str, **options):
    return bench_settings(None, [*PLAIN_FLOAT, "train.crop_px=32", "adapter.rank=2", *overrides], **SMALL | options)


def planned(found) -> MemoryPlan:
    return memory_plan(found.config, found.architecture, found.prompt_tokens)


def quiet(_line: str) -> None:
    pass


# The command


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """(JSON, what was printed) of one small run."""
    path = tmp_path_factory.mktemp("bench") / "report.json"
    flags = ["--layers", "2", "--heads", "2", "--width", "32", "--steps", "2", "--json", str(path)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["bench", "train.crop_px=32", "adapter.rank=2", *PLAIN_FLOAT, *flags]) == 0
    return json.loads(path.read_text()), printed.getvalue()


def test_the_json_has_every_phase(command):
    report, _ = command
    phases = ["flow", "cons", "rectify forward", "decode", "rectify backward", "fake", "optimiser"]
    assert [name for name in report["full"]["phases"] if name != "other"] == phases
    assert set(report["plain"]["phases"]) == {"other", "flow", "optimiser"}
    for kind in ("full", "plain"):
        step = report[kind]
        assert step["peak"] == max(step["phases"].values()) > step["held"] > 0
        assert step["seconds"] > 0 and step["flop"] > 0
    assert (report["full"]["forwards"], report["plain"]["forwards"]) == (12, 2)
    assert report["image_tokens"] == 2 * 16 and report["plan"]["checkpointing"] == "none"
    assert set(report["full"]["losses"]) == {"flow", "cons", "data", "lpips", "rectify", "adv"}
    assert all(isinstance(value, float) for value in report["full"]["losses"].values())  # finite


def test_what_is_held_is_the_weights_and_then_the_optimisers_state(command):
    report, _ = command
    source = random_source(settings())
    weights = 4 * sum(int(torch.tensor(shape).prod()) for shape in source.shapes.values())
    model = loaded(settings()).model
    lora = 4 * sum(parameter.numel() for parameter in model.parameters.values())
    positions = model.memory.transformer.pos_embed
    rotary = sum(table.numel() * table.element_size() for table in (positions.pos_freqs, positions.neg_freqs))
    held = report["load"]["held"]
    assert weights + lora + rotary <= held <= weights + lora + rotary + 4096  # the prompt besides
    assert 2 * lora <= report["plain"]["held"] - held <= 2.2 * lora + 1000  # Adam's two moments
    assert abs(report["full"]["held"] - report["plain"]["held"]) <= 0.02 * held


def test_the_budget_comes_before_the_figures(command):
    _, text = command
    lines = text.splitlines()
    budget, loaded_at = (
        next(i for i, line in enumerate(lines) if line.startswith(start)) for start in ("peak", "loaded")
    )
    assert budget < loaded_at
    for words in ("SAD + TAR", "rectify forward", "s/step", "TFLOP, at least", "of the peak", "(--decode)"):
        assert words in text


def loaded(found) -> Bench:
    bench = Bench(found, planned(found), CPU)
    bench.load()
    return bench


def test_latents_have_no_lattice():
    """It repeats every 8 pixels, and without --decode there are none: 20 latents a side are no multiple either."""
    found = settings("train.crop_px=80", "loss.lattice=4.0")
    bench = loaded(found)
    bench.step(FULL, no_phase)
    assert set(bench.losses) == {"flow", "cons", "data", "lpips", "rectify", "adv"}
    decoded = loaded(dataclasses.replace(found, use_decode=True))
    decoded.step(FULL, no_phase)
    assert decoded.losses["lattice"] >= 0


# Memory


@torch.no_grad()
def scores_in_one_batch(self, batch, draws, z_fake):
    """`Objective.score_difference` with both rows in one forward."""
    s = draws.s
    z_s = losses.adversarial_point(z_fake, draws.noise_s, s)
    twice = (torch.cat([z_s, z_s]), torch.cat([s, s]), torch.cat([batch.z_lq] * 2), torch.cat([s, -s]))
    return losses.score_difference(*self._output(*twice).chunk(2), self.prediction)


@pytest.mark.parametrize(("checkpointing", "layers"), [("all", 4), ("none", 8)])
def test_a_full_step_takes_at_most_fifteen_percent_more_than_a_plain_one(checkpointing, layers, monkeypatch):
    """Counted by the allocator; of what a step adds to the weights, which is stricter than of the peak."""
    memory = f"memory.checkpointing={checkpointing}"
    bench = loaded(settings(memory, "train.crop_px=64", "adapter.rank=1", layers=layers, width=96))
    plain, full = bench.measure(PLAIN), bench.measure(FULL)
    assert full.peak / plain.peak <= full.added / plain.added <= 1.15, (full, plain)
    if checkpointing == "none":  # it bites: a batch of both scores on top of the one-step graph takes too much
        monkeypatch.setattr(Objective, "score_difference", scores_in_one_batch)
        assert bench.measure(FULL).added / plain.added > 1.15


def test_weights_are_packed_as_they_come():
    """The most that is alive while an fp8 model is loaded is less than the model in bf16."""
    fp8 = [f"memory.{group}=fp8 resident" for group in ("image_stream", "text_stream", "modulation")]
    found = settings("base.dtype=bf16", "run.autocast=true", "adapter.rank=1", *fp8, layers=24, width=64)
    whole = sum(2 * int(torch.tensor(shape).prod()) for shape in random_source(found).shapes.values())
    report = Bench(found, planned(found), CPU).load()
    assert report.end < 0.7 * whole
    assert report.peak < 0.8 * whole


def test_random_weights_are_the_seeds_and_no_two_alike():
    a, b = (load_packed(random_source(settings()), torch.float32, CPU, {}) for _ in range(2))
    other = load_packed(random_source(settings("run.seed=1")), torch.float32, CPU, {})
    values = a.state_dict()
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in values.items())
    assert not torch.equal(values["proj_out.weight"], other.state_dict()["proj_out.weight"])
    matrices = [value for value in values.values() if value.ndim == 2]
    assert len({float(value.flatten()[0]) for value in matrices}) == len(matrices)
    assert all(float(value.std()) > 0 for value in values.values())


@pytest.mark.parametrize(
    "overrides",
    [
        ["memory.text_stream=fp8 streamed", "memory.modulation=bf16 swept", "memory.checkpointing=all"],
        ["train.layout=batched", "memory.checkpointing=every 2"],
        ["train.layout=rotate"],
        ["train.accumulation=2", "ablation.tar=false", "memory.checkpointing=offload"],
    ],
    ids=["swept", "batched", "rotate", "accumulation"],
)
def test_every_plan_and_layout_runs(overrides):
    report = to_json(run(settings(*overrides), quiet))
    assert report["full"]["peak"] > report["full"]["held"]
    assert report["micro_steps"] == (4 if "rotate" in overrides[0] else 2 if "accumulation" in overrides[0] else 1)


@pytest.mark.parametrize("architecture", ["builtin", "qwen-image"])
def test_with_decode_the_step_encodes_decodes_and_compares(architecture):
    found = settings("loss.perceptual=lpips-alex", architecture=architecture, use_decode=True, vae_width=8, layers=1)
    result = run(found, quiet)
    phases = result.full.phases
    assert {"encode", "decode"} <= set(phases)
    assert phases["decode"] > phases["rectify backward"]  # the decoder and LPIPS are larger than this transformer
    assert result.full.losses["lpips"] != 0
    assert "nothing was decoded" not in format_result(result)


# FLOP


@pytest.mark.parametrize("overrides", [[], ["train.crop_px=64", "adapter.rank=8"]])
def test_the_flop_of_a_forward_are_those_counted(overrides):
    found = settings(*overrides)
    model = loaded(found).model
    side = found.config.train.crop_px // 4
    z, t = torch.randn(1, 48, side, side), torch.tensor([0.5])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.velocity.network_output(z, t, z, t)
    assert counter.get_total_flops() == forward_flop(found.problem)


@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_a_step_takes_the_floor_and_little_more(checkpointing):
    found = settings(f"memory.checkpointing={checkpointing}", layers=6)
    bench = loaded(found)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bench.step(FULL, no_phase)
    count = floor(found.problem, FULL_ROWS["sequential"], bench.plan.checkpointing)
    assert count.forwards == (16 if checkpointing == "all" else 12)
    assert 1 <= counter.get_total_flops() / count.flop < 1.2


def test_the_20b_is_that_of_the_method():
    """31.8 TFLOP a forward, 16 forwards a step with checkpointing (docs/decisions.md#memory-by-group)."""
    found = bench_settings(None, ["memory.checkpointing=all"], architecture="qwen-image")
    assert found.architecture == QWEN_IMAGE and found.config.adapter.rank == 128
    assert forward_flop(found.problem) / 1e12 == pytest.approx(31.8, rel=0.03)


# Settings


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_presets_are_read(path):
    found = bench_settings(path, ["run.device=cpu"], layers=2)
    assert found.architecture.num_layers == 2
    assert found.architecture.latent_channels == (48 if found.config.base.path == "builtin" else 16)


def test_what_the_command_line_says_wins():
    found = bench_settings(None, ["memory.vram_gb=10"], vram_gb=24, layers=3, heads=8)
    assert found.config.memory.vram_gb == 24
    assert (found.architecture.num_layers, found.architecture.num_heads, found.architecture.head_dim) == (3, 8, 16)


@pytest.mark.parametrize(
    ("head_dim", "axes"), [(128, (16, 56, 56)), (64, (8, 28, 28)), (16, (4, 6, 6)), (6, (2, 2, 2))]
)
def test_a_new_head_keeps_the_split_of_its_rotary_dimensions(head_dim, axes):
    assert resized(dataclasses.replace(QWEN_IMAGE), heads=2, width=2 * head_dim).rope_axes == axes


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--width", "100", "--heads", "3"], "--width 100 and --heads 3: expected a width that the heads divide"),
        (["--width", "10", "--heads", "2"], "a head of 5: expected an even number"),
        (["--layers", "0"], "--layers is 0: expected at least 1"),
        (["--steps", "0"], "--steps is 0"),
        (["--vram", "much"], "--vram is 'much': expected auto or GiB"),
        (["--vram", "0.5"], "the smallest plan needs"),
        (["train.crop_px=50"], "train.crop_px is 50: expected a multiple of 16"),
        (["--architecture", "qwen-image", "train.crop_px=48"], "qwen-image takes multiples of 32"),
        (["--architecture", "flux"], "invalid choice: 'flux'"),
        (["train.crop=32"], "unknown config key 'train.crop': did you mean 'crop_px'?"),
        (["base=3"], "'base' is 3: expected a table"),
        (["adapter.trainable=all"], "bench measures the training of a LoRA"),
        (["train.layout=batched", "memory.modulation=bf16 swept"], "the batched layout has no sweep"),
        (["missing.toml"], "no config at missing.toml"),
        (["--json", "nowhere/report.json"], "--json: there is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_options_are_named(arguments, wanted, capsys):
    try:
        code = main(["bench", *arguments])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    assert code == 2 and wanted in captured.err
    assert captured.err.count("\n") == 1


def test_a_base_that_cannot_meet_its_adapter_is_refused():
    with pytest.raises(ConfigError, match=r"run\.autocast is false"):
        run(settings("base.dtype=bf16"), quiet)


def test_the_global_random_state_and_the_model_class_are_left_alone():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    bench = loaded(settings())
    assert torch.equal(torch.rand(1), wanted)
    assert not any(parameter.requires_grad for parameter in bench.model.memory.transformer.parameters())
    assert isinstance(bench.model.memory.transformer.proj_out, nn.Linear)
