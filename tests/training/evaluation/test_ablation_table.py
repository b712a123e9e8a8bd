"""The table of the ablation: three arms, one step and several, the best in bold, nothing made up."""

import pytest

from teasr_core.errors import InputError
from training.evaluation.tables.ablation_table import ArmMeans, ablation_table, arm_means
from training.evaluation.tables.results import DatasetResult, Group, ResultRow, Results


def arms():
    return [
        ArmMeans("baseline", {1: {"psnr_y": 24.93, "niqe": 4.84, "grid_peak": 2.0}, 8: {"psnr_y": 23.0, "niqe": 5.0}}),
        ArmMeans("+DTC", {1: {"psnr_y": 25.52, "niqe": 6.72, "grid_peak": 1.5}, 8: {"psnr_y": 23.5, "niqe": 4.9}}),
        ArmMeans("+DTC+TAR", {1: {"psnr_y": 24.83, "niqe": 5.43, "grid_peak": 1.1}, 8: {"psnr_y": 23.2, "niqe": 4.5}}),
    ]


def test_the_table_has_both_groups_and_the_grid():
    lines = ablation_table(arms(), codec_grid_peak=1.0).splitlines()
    assert lines[0] == (
        "| arm | 1 step: PSNR-Y ↑ | 1 step: NIQE ↓ | 1 step: grid peak ↓ "
        "| 8 steps: PSNR-Y ↑ | 8 steps: NIQE ↓ | 8 steps: grid peak ↓ |"
    )
    assert lines[2] == "| baseline | 24.93 | **4.84** | 2.00 | 23.00 | 5.00 | - |"
    assert lines[3] == "| +DTC | **25.52** | 6.72 | 1.50 | **23.50** | 4.90 | - |"
    assert lines[4] == "| +DTC+TAR | 24.83 | 5.43 | **1.10** | 23.20 | **4.50** | - |"
    assert lines[6] == "- absent: LPIPS, LPIPS-squeeze, GMSD, MUSIQ, NIQE (pyiqa)"
    assert lines[7] == "- grid peak of a codec round trip alone: 1.00; R18 allows up to 1.20"


def test_figures_can_be_chosen():
    text = ablation_table(arms(), steps=(8,), metrics=("niqe",))
    assert text.splitlines()[0] == "| arm | 8 steps: NIQE ↓ |" and "absent" not in text


def test_arms_come_from_results():
    rows = (
        ResultRow("bicubic", 0, {"psnr_y": 1.0}),
        ResultRow("dtc", 1, {"psnr_y": 25.0}),
        ResultRow("dtc", 8, {"psnr_y": 24.0}),
    )
    dataset = DatasetResult("light", "list", "x4", ("a",), (), (), (Group(1, rows),))
    arm = arm_means("+DTC", Results((dataset,)), "light", "dtc")
    assert arm == ArmMeans("+DTC", {1: {"psnr_y": 25.0}, 8: {"psnr_y": 24.0}})
    for model in ("tar", "bicubic"):
        with pytest.raises(InputError, match=model):
            arm_means("x", Results((dataset,)), "light", model)


def test_what_cannot_be_compared_is_refused():
    for chosen, steps, match in (
        (arms()[:1], (1,), "at least two"),
        ([arms()[0]] * 2, (1,), "different names"),
        (arms(), (1, 4), r"not measured at \[4\] steps, only at \[1, 8\]"),
        (arms(), (), "no number of steps"),
    ):
        with pytest.raises(InputError, match=match):
            ablation_table(chosen, steps)
