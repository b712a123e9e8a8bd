"""Which plan a card gets, what the table says, and when it is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.errors import ConfigError, InputError
from teasr_core.model.architecture import QWEN_IMAGE
from training.config.toml import from_mapping
from training.memory.checkpointing import Checkpointing
from training.memory.config import AUTO, MemoryConfig
from training.memory.costs import BLOCK_LINEARS, FileWeights, Problem
from training.memory.groups import BLOCK_GROUPS
from training.memory.planner import GIB, MemoryPlan, plan

DOCS = Path(__file__).parents[3] / "docs" / "training" / "memory.md"
CARDS = (80, 48, 24, 16)


def plan_20b(
    budget: float | str, optimiser: str = AUTO, config: MemoryConfig | None = None, **changes: object
) -> MemoryPlan:
    """The plan for Qwen-Image at 512 px, batch 1, rank 128; `changes` are fields of `Problem`."""
    problem = Problem(**({"architecture": QWEN_IMAGE, "resolution_px": 512, "rank": 128} | changes))
    return plan(problem, budget, optimiser, config)


def groups(found: MemoryPlan) -> list[str]:
    return [str(found.groups[group]) for group in BLOCK_GROUPS]


def line(found: MemoryPlan, name: str) -> float:
    return next(entry.device for entry in found.lines if entry.name == name) / GIB


@pytest.mark.parametrize(
    ("card", "wanted", "least", "most"),
    [
        (80, ["bf16 resident"] * 3, 50, 80),
        (48, ["bf16 resident", "fp8 resident", "fp8 resident"], 34, 48),
        (24, ["fp8 resident", "fp8 resident", "bf16 swept"], 19, 22),
        (16, ["fp8 resident", "fp8 streamed", "bf16 swept"], 12, 14.5),
    ],
)
def test_the_20b_gets_the_rows_of_the_method(card, wanted, least, most):
    found = plan_20b(card)
    assert groups(found) == wanted
    assert least <= found.device_gib <= min(most, card)


def test_the_parts_are_those_of_the_method():
    """GiB to a tenth or so; its LoRA has 590 M parameters, the real one 584 M."""
    large, small = plan_20b(80), plan_20b(16)
    for group in ("image stream", "text stream", "modulation"):
        assert round(line(large, group), 1) == 12.7
    assert round(line(small, "image stream"), 1) == 6.3
    assert abs(line(small, "text stream") - 0.25) < 0.05
    assert line(small, "modulation") < 0.01
    assert abs(line(small, "modulation rows") - 53e6 / GIB) < 0.002
    for optimiser, gib in (("adamw", 8.8), ("adamw-8bit", 5.5), ("adamw-cpu", 4.4), ("adamw-cpu bf16", 2.2)):
        found = plan_20b("auto", optimiser=optimiser, config=MemoryConfig(checkpointing="all"))
        assert abs(line(found, "LoRA + optimiser") - gib) < 0.1, optimiser
    held = line(small, "activations") + line(small, "transformer at work")
    assert 1.0 < held < 1.5
    assert abs(line(large, "decode + LPIPS *".removesuffix(" *")) - 3.6) < 0.4
    assert abs(line(small, "decode + LPIPS") + line(small, "VAE + LPIPS weights") - 2.6) < 0.3


def test_a_smaller_card_never_gets_more():
    found = [plan_20b(budget) for budget in range(10, 90, 2)]
    sizes = [one.device_gib for one in found]
    assert sizes == sorted(sizes)
    assert all(size <= budget for size, budget in zip(sizes, range(10, 90, 2), strict=True))
    assert len({str(one) for one in found}) > 8


def test_more_work_takes_more():
    base = plan_20b("auto", config=MemoryConfig(checkpointing="all"))
    for options in (
        {"resolution_px": 768},
        {"batch": 2},
        {"rank": 256},
        {"layout": "batched"},
        {"perceptual": "lpips-vgg"},
    ):
        more = plan_20b("auto", config=MemoryConfig(checkpointing="all"), **options)
        assert more.device_gib > base.device_gib, options


def test_only_the_largest_of_what_comes_one_after_the_other_counts():
    found = plan_20b(16)
    peaks = [entry.device for entry in found.lines if entry.is_peak]
    total = sum(entry.device for entry in found.lines)
    assert len(peaks) == 3
    assert found.device_gib == pytest.approx((total - sum(peaks) + max(peaks)) / GIB)


def test_what_does_not_fit_is_refused_with_the_smallest_plan():
    with pytest.raises(InputError, match=r"6\.0 GiB .* the smallest plan needs \d+\.\d GiB \(image stream nf4") as info:
        plan_20b(6)
    needed = float(str(info.value).split("needs ")[1].split(" ")[0])
    assert plan_20b(needed + 0.1).device_gib <= needed + 0.1
    with pytest.raises(InputError):
        plan_20b(needed - 0.1)
    assert "\n" not in str(info.value)


def test_what_is_fixed_stays():
    config = MemoryConfig(image_stream="nf4 resident", modulation="fp8 streamed", checkpointing="every 4")
    found = plan_20b(80, config=config, optimiser="adamw-8bit")
    assert groups(found) == ["nf4 resident", "bf16 resident", "fp8 streamed"]
    assert (str(found.checkpointing), found.optimiser) == ("every 4", "adamw-8bit")
    with pytest.raises(InputError, match="leave more of"):
        plan_20b(16, config=MemoryConfig(image_stream="bf16 resident"))


def test_the_batched_layout_does_not_sweep():
    """Its forwards are not those that are announced before a step."""
    assert plan_20b(30, layout="batched").groups["modulation"].placement == "streamed"
    with pytest.raises(ConfigError, match=r"memory\.modulation is swept"):
        plan_20b(30, layout="batched", config=MemoryConfig(modulation="bf16 swept"))


def test_without_a_gpu_there_is_no_limit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = plan(Problem(tiny.ARCHITECTURE, 64, rank=4, batch=2))
    assert groups(found) == ["bf16 resident"] * 3
    assert found.checkpointing == Checkpointing("none")


def test_auto_is_what_the_gpu_has_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(23.5 * GIB), 24 * GIB))
    assert plan_20b("auto") == plan_20b(23.5)


def test_the_built_in_model_has_no_vae_to_decode_with():
    found = plan(Problem(tiny.ARCHITECTURE, 128, rank=4, batch=2, perceptual="none"), 2.0)
    assert line(found, "VAE + LPIPS weights") == 0
    assert line(found, "decode + LPIPS") < 0.01


@pytest.mark.parametrize("bad", [{"optimiser": "sgd"}, {"perceptual": "lpips"}])
def test_unknown_names_are_refused(bad):
    with pytest.raises(ConfigError, match="expected"):
        plan_20b(80, **bad)


def test_the_table_adds_up_for_the_reader():
    found = plan_20b(16)
    text = found.format_table().splitlines()
    assert len(text) == len(found.lines) + 3
    assert all(len(row) <= 100 for row in text)
    peak = text[-2].split()
    assert peak[0] == "peak" and peak[1] == f"{found.device_gib:.2f}" and peak[2] == f"{found.host_gib:.2f}"
    device = [float(row[: text[0].index("GPU GiB") + 7].split()[-1]) for row in text[1:-2] if " *  " not in row]
    starred = [float(row[: text[0].index("GPU GiB") + 7].split()[-1]) for row in text[1:-2] if " *  " in row]
    assert sum(device) + max(starred) == pytest.approx(found.device_gib, abs=0.06)


# The page of the documentation


def markdown_row(card: int, found: MemoryPlan) -> str:
    cells = [f"{card} GB", *groups(found), found.optimiser, str(found.checkpointing), found.decode_dtype]
    return f"| {' | '.join(cells)} | {found.device_gib:.1f} | {found.host_gib:.1f} |"


def test_the_documented_table_is_the_planners():
    """An 80 GB card has about 79 GiB: the page plans its row for those."""
    text = DOCS.read_text(encoding="utf-8").splitlines()
    for card in CARDS:
        assert markdown_row(card, plan_20b({80: 79}.get(card, card))) in text


# The config table


def test_the_config_table_reads_strictly():
    config = from_mapping(MemoryConfig, {"vram_gb": 24, "text_stream": "fp8 streamed"}, "memory.")
    config.check()
    assert config.budget_gb == 24.0 and list(config.groups) == ["text_stream"]
    assert MemoryConfig().budget_gb == "auto" and MemoryConfig().fixed_checkpointing is None
    with pytest.raises(ConfigError, match=r"memory\.vram"):
        from_mapping(MemoryConfig, {"vram": 24}, "memory.")


@pytest.mark.parametrize(
    "values", [{"vram_gb": -1.0}, {"image_stream": "fp8"}, {"text_stream": "fp8 swept"}, {"checkpointing": "some"}]
)
def test_impossible_values_are_refused(values):
    config = dataclasses.replace(MemoryConfig(), **values)
    with pytest.raises(ConfigError, match=f"memory.{next(iter(values))}"):
        config.check()
    with pytest.raises(ConfigError):
        plan_20b(80, config=config)


def packed_20b(weights: int, size: int, is_kept: bool = True) -> FileWeights:
    """A 20B whose block Linears are all in blocks of `weights` numbers that take `size` bytes."""
    width = QWEN_IMAGE.width
    numbers = {group: sum(o * i for o, i in linears) * width**2 for group, linears in BLOCK_LINEARS.items()}
    return FileWeights({group: (count // weights * size,) * 60 for group, count in numbers.items()}, is_kept)


@pytest.mark.parametrize(
    ("vram", "q8_0", "q6_k", "q4_k"),
    [(23, (20.6, 13.3), (22.8, 6.5), (19.2, 6.5)), (15, (13.9, 20.0), (12.2, 16.9), (14.0, 10.1)),
     (11, (7.1, 26.7), (7.0, 22.1), (10.5, 13.6))],
)  # fmt: skip
def test_a_packed_base_is_only_moved(vram, q8_0, q6_k, q4_k):
    """The table of the page: nothing is quantised anew, and less of the file's bytes lie on a smaller card."""
    for (weights, size), wanted in (((32, 34), q8_0), ((256, 210), q6_k), ((256, 144), q4_k)):
        found = plan_20b(vram, "adamw-cpu bf16", file=packed_20b(weights, size))
        assert {plan.precision for plan in found.groups.values()} == {"file"}
        assert (round(found.device_gib, 1), round(found.host_gib, 1)) == wanted
        assert f"{wanted[0]} ({wanted[1]})" in DOCS.read_text(encoding="utf-8")


def test_a_packed_base_may_be_planned_otherwise():
    """What the config fixes stays fixed; a file that need not stay packed is planned like any other."""
    fixed = plan_20b(23, config=MemoryConfig(image_stream="fp8 resident"), file=packed_20b(32, 34))
    assert groups(fixed)[0] == "fp8 resident" and groups(fixed)[1].startswith("file")
    assert groups(plan_20b(80, file=packed_20b(32, 34, is_kept=False))) == groups(plan_20b(80))
    asked = MemoryConfig(image_stream="file resident")
    less = plan_20b(80, config=asked, file=packed_20b(256, 144, is_kept=False))
    assert line(less, "image stream") < 0.3 * line(plan_20b(80), "image stream")
