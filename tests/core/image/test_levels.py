"""One rounding to whole levels: half up, and written in one place."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from teasr_core.image.levels import to_levels
from teasr_core.picture_files.picture import Picture
from teasr_core.picture_files.write import save_picture

ROOT = Path(__file__).parents[3]
PACKAGES = ("teasr_core", "nodes", "training", "scripts", "benchmarks")
# A degradation rounds as Real-ESRGAN's does; the pictures that models were trained on depend on it.
OWN_ROUNDING = {"teasr_core/image/levels.py", "training/degradation/ops.py"}
ROUNDING = {"round", "rint", "floor", "floor_", "byte"}


def roundings(source: str) -> list[str]:
    """Calls of a rounding function on something that was multiplied by 255."""
    return [
        ast.unparse(call)
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and (call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)) in ROUNDING
        and any(isinstance(node, ast.Constant) and node.value == 255 for node in ast.walk(call))
    ]


@pytest.mark.parametrize("bits", [8, 16])
def test_halves_are_rounded_up_and_nothing_leaves_the_range(bits):
    top = 2**bits - 1
    levels = torch.arange(top, dtype=torch.float64)
    assert to_levels((levels + 0.4999) / top, bits).tolist() == levels.int().tolist()
    assert to_levels((levels + 0.5001) / top, bits).tolist() == (levels + 1).int().tolist()
    assert to_levels(torch.tensor([-1.0, -0.0, 1.0, 7.0]), bits).tolist() == [0, 0, top, top]
    assert to_levels(torch.tensor([0.5]), bits).item() == (top + 1) // 2  # the exact half that both widths have


def test_the_picture_given_stays_as_it_was():
    image = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 0.5
    before = image.clone()
    assert to_levels(image).shape == image.shape and torch.equal(image, before)


def test_it_is_the_rounding_of_a_saved_file(tmp_path):
    image = (torch.arange(3 * 8 * 64) / (3 * 8 * 64 - 1)).reshape(1, 3, 8, 64)
    save_picture(Picture(image), tmp_path / "a.png")
    saved = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(saved, to_levels(image[0]).permute(1, 2, 0).numpy())


def test_there_is_no_second_rounding():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if roundings(path.read_text("utf-8"))}
    assert found <= OWN_ROUNDING


@pytest.mark.parametrize(
    "source", ["(x * 255).round().byte()", "np.rint(x * 255.0)", "x.mul(255).floor()", "np.floor(255 * x + 0.5)"]
)
def test_a_second_rounding_is_found(source):
    assert roundings(source)
