"""`compare`: the sheet shows the very pixels of `upscale`, with figures that are true, and refuses in one line."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import model as tiny
from teasr_core.cli import compare as cli_compare
from teasr_core.cli import request as cli_request
from teasr_core.errors import InputError
from teasr_core.image.labelled_sheet import GAP_PX, TEXT_PX, Cell, comparison_grid
from teasr_core.image.luma import mean_gradient
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from teasr_core.picture_files.read import load_picture
from teasr_core.sampling.schedule import parse_steps

pytestmark = pytest.mark.usefixtures("tiny_model")
SIZE = ("--width", "300", "--height", "64")  # wider than any text under it


@pytest.fixture
def source(tmp_path):
    return tiny.write_picture(tmp_path / "in.png", 3, 20, 80)


@pytest.fixture
def compare(run, tmp_path):
    """compare(*inputs and options): the sheet's pixels (H, W, 3) and stdout of a successful run in fp32."""

    def call(*arguments):
        code, out, err = run("compare", *arguments, "-o", tmp_path / "grid.png", "--dtype", "fp32", "--overwrite")
        assert (code, err) == (0, "")
        return np.asarray(Image.open(tmp_path / "grid.png")), out

    return call


@pytest.fixture
def refused(run, tmp_path, monkeypatch):
    """refused(*arguments): stderr, one line, of a run that neither loads the model nor writes anything."""
    monkeypatch.setattr(cli_request, "load_restorer", lambda *_: 1 / 0)

    def call(*arguments, output="grid.png"):
        before = set(tmp_path.rglob("*"))
        code, out, err = run("compare", *arguments, "-o", tmp_path / output)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and len(err.splitlines()) == 1, err
        assert set(tmp_path.rglob("*")) == before
        return err

    return call


def cell(grid, row, column, height, width):
    """The picture in a cell of a sheet of equal cells."""
    y, x = TEXT_PX + row * (height + 2 * TEXT_PX + GAP_PX), column * (width + GAP_PX)
    return grid[y : y + height, x : x + width]


def test_the_cells_are_the_pixels_of_upscale(tmp_path, run, compare, source):
    """LQ resized, then each step count, pixel for pixel; --images saves the same files."""
    grid, out = compare(source, *SIZE, "--steps", "1,3", "--seed", "7", "--images", tmp_path / "all")
    assert grid.shape == (64 + 2 * TEXT_PX, 3 * 300 + 2 * GAP_PX, 3)
    resized = resize(load_picture(source).rgb, TargetSize(300, 64))
    assert np.array_equal(cell(grid, 0, 0, 64, 300), (resized[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))
    for column, steps in ((1, 1), (2, 3)):
        target = tmp_path / f"{steps}.png"
        options = ("--dtype", "fp32", *SIZE, "--steps", steps, "--seed", "7")
        assert run("upscale", source, "-o", target, *options)[0] == 0
        assert np.array_equal(cell(grid, 0, column, 64, 300), np.asarray(Image.open(target)))
        assert (tmp_path / "all" / f"in_steps{steps}.png").read_bytes() == target.read_bytes()
    lines = out.splitlines()
    assert [" 1 step," in lines[0], " 3 steps," in lines[1]] == [True, True]
    shown = mean_gradient(load_picture(tmp_path / "3.png").rgb)
    assert f"sharpness {shown:.2f}" in lines[1]
    assert lines[2] == f"wrote {tmp_path / 'grid.png'}: LQ | 1 | 3 steps, 1 image"


def test_several_images_are_rows(tmp_path, compare, source):
    (tmp_path / "more").mkdir()
    for k, name in enumerate(("a.png", "b.jpg")):
        tiny.write_picture(tmp_path / "more" / name, 3, 20 + k, 80)
    alone, _ = compare(source, *SIZE, "--steps", "1")
    grid, out = compare(source, tmp_path / "more", source, *SIZE, "--steps", "1")
    assert grid.shape[0] == 3 * (64 + 2 * TEXT_PX) + 2 * GAP_PX
    assert np.array_equal(cell(grid, 0, 1, 64, 300), cell(alone, 0, 1, 64, 300))
    assert out.splitlines()[-1].endswith("3 images")


def test_a_crop_is_cut_from_the_whole_result(tmp_path, compare, source):
    options = (source, *SIZE, "--steps", "2", "--images", tmp_path / "all")
    whole, _ = compare(*options)
    cropped, out = compare(*options, "--crop", "250,10,50")
    wanted = cell(whole, 0, 1, 64, 300)[10:60, 250:300]
    row = cropped[TEXT_PX : TEXT_PX + 50]  # its columns are as wide as their texts
    found = [k for k in range(row.shape[1] - 49) if np.array_equal(row[:, k : k + 50], wanted)]
    assert len(found) == 1
    assert load_picture(tmp_path / "all" / "in_steps2.png").rgb.shape[-2:] == (64, 300)  # saved whole
    sharp = mean_gradient(torch.from_numpy(wanted / np.float32(255)).permute(2, 0, 1)[None])
    assert f"sharpness {sharp:.2f}" in out.splitlines()[0]


@pytest.mark.parametrize(("options", "pixels"), [([], 64 * 300), (["--crop", "250,10,50"], 50 * 50)])
def test_cells_keep_the_bytes_they_show(compare, source, monkeypatch, options, pixels):
    """A view of the result would keep all of it until the sheet is drawn."""
    kept = []

    def grid(rows):
        kept.extend(cell.image.untyped_storage().nbytes() for row in rows for cell in row)
        return comparison_grid(rows)

    monkeypatch.setattr(cli_compare, "comparison_grid", grid)
    compare(source, *SIZE, "--steps", "1,2", *options)
    assert kept == 3 * [3 * pixels]


def test_columns_wrap(compare, source):
    wide, _ = compare(source, *SIZE, "--steps", "1,2,3")
    grid, _ = compare(source, *SIZE, "--steps", "1,2,3", "--columns", "3")
    assert grid.shape == (2 * (64 + 2 * TEXT_PX) + GAP_PX, 3 * 300 + 2 * GAP_PX, 3)
    assert np.array_equal(cell(grid, 1, 0, 64, 300), cell(wide, 0, 3, 64, 300))
    assert (cell(grid, 1, 1, 64, 300) == 255).all()


def test_options_are_those_of_upscale(tmp_path, compare, source):
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    variants = {
        "plain": [], "seed": ["--seed", "1"], "strength": ["--strength", "0.5"], "fix": ["--color-fix", "off"],
        "lora": ["--lora", lora], "fidelity": ["--fidelity", "0.5"], "tiles": ["--tile-px", "64"],
    }  # fmt: skip
    seen = {name: cell(compare(source, *SIZE, "--steps", "2", *options)[0], 0, 1, 64, 300).tobytes()
            for name, options in variants.items()}  # fmt: skip
    assert len(set(seen.values())) == len(variants)


def test_a_bad_image_among_good_ones(tmp_path, run, source):
    (tmp_path / "bad.png").write_bytes(b"")
    tiny.write_picture(tmp_path / "small.png", 3, 4, 4)
    inputs = (tmp_path / "bad.png", source, tmp_path / "small.png")
    options = ("--scale", "4", "--crop", "0,0,40", "--steps", "1", "--dtype", "fp32", "--quiet")
    code, out, err = run("compare", *inputs, "-o", tmp_path / "grid.png", *options)
    assert (code, out) == (3, "")
    lines = err.splitlines()
    assert [line.split(": ")[1] for line in lines[:2]] == ["bad.png", "small.png"]
    assert lines[2].startswith("error: 2 of 3 images failed")
    assert Image.open(tmp_path / "grid.png").height == 40 + 2 * TEXT_PX
    code, out, err = run("compare", *inputs[::2], "-o", tmp_path / "none.png", *options)
    assert (code, out) == (2, "") and "none of the 2" in err.splitlines()[-1]
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"], ["--steps", "1,31"], ["--steps", "1,,2"], ["--steps", "2,2"], ["--steps", "x"],
        ["--steps", ""], ["--columns", "0"], ["--crop", "1,2"], ["--crop", "-1,0,9"], ["--crop", "0,0,0"],
        ["--crop", "a,b,c"], ["--crop", "0,0,999"], ["--scale", "9"], ["--scale", "2", "--longest", "9"],
        ["--strength", "2"], ["--quality", "0"], ["--offload", "model"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_options(refused, source, options):
    refused(source, *options)


def test_bad_inputs_and_outputs(tmp_path, refused, source):
    assert "missing.png" in refused(tmp_path / "missing.png")
    (tmp_path / "empty").mkdir()
    assert "no image" in refused(tmp_path / "empty")
    for output in ("grid.gif", "none/grid.png", "in.png"):
        refused(source, output=output)
    (tmp_path / "empty" / "in_steps1.png").write_bytes(b"")
    assert "in_steps1.png exists" in refused(source, "--images", tmp_path / "empty", "--steps", "1")
    other = tiny.write_picture(tmp_path / "in.jpg")
    assert "two images are called in" in refused(source, other, "--images", tmp_path / "new")


def test_no_original_is_replaced(tmp_path, refused, source):
    before = source.read_bytes()
    assert "in.png" in refused(source, "--overwrite", output="in.png")
    other = tiny.write_picture(tmp_path / "in_steps4.png")
    assert "in_steps4.png" in refused(source, other, "--steps", "4", "--images", tmp_path, "--overwrite")
    assert source.read_bytes() == before


def test_a_sheet_too_large_for_its_format_is_found_before_the_work(refused, source):
    every = ",".join(map(str, range(1, 31)))
    assert "16383" in refused(source, "--width", "640", "--height", "160", "--steps", every, output="grid.webp")


def test_an_interruption_leaves_nothing(tmp_path, run, source, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_compare, "restore_picture", interrupt)
    assert run("compare", source, "-o", tmp_path / "grid.png", "--scale", "2")[0] == 130
    assert set(tmp_path.iterdir()) == {source}


# The parts


def test_a_sheet_of_uneven_cells():
    small, wide = torch.zeros(1, 3, 5, 8), torch.full((1, 3, 9, 400), 0.5)
    grid = comparison_grid([[Cell(small, "a"), Cell(wide, "b", "1.00 s")], [Cell(wide, "c")]])
    assert grid.shape == (1, 3, 9 + 9 + 4 * TEXT_PX + GAP_PX, 400 + GAP_PX + 400)
    assert (grid[..., TEXT_PX : TEXT_PX + 5, :8] == 0).all()
    assert (grid[..., TEXT_PX : TEXT_PX + 9, 400 + GAP_PX :] * 255 == 128).all()
    assert (grid[..., :TEXT_PX, :60] < 0.5).any()  # the label
    with pytest.raises(InputError):
        comparison_grid([[]])


def test_a_sheet_spends_no_line_on_texts_that_are_absent():
    image = torch.zeros(1, 3, 9, 40)
    assert comparison_grid([[Cell(image)], [Cell(image)]], gap_px=0).shape == (1, 3, 18, 40)
    assert comparison_grid([[Cell(image, "a")], [Cell(image)]]).shape == (1, 3, TEXT_PX + 18 + GAP_PX, 40)


def test_a_long_text_widens_its_column():
    image = torch.zeros(1, 3, 4, 4)
    short, long = (comparison_grid([[Cell(image, "a", note)]]).shape[-1] for note in ("b", "b" * 40))
    assert short >= 4 and long > 200


@pytest.mark.parametrize("shape", [(2, 3, 7, 11), (1, 3, 2, 2)])
def test_sharpness_against_plain_loops(shape):
    """Forward differences of BT.601 studio-range Y, of the 8-bit picture."""
    image = torch.rand(shape, generator=tiny.generator(0))
    y = [[[sum(w * round(float(image[b, c, i, j]) * 255) / 255 for c, w in enumerate((65.481, 128.553, 24.966)))
           for j in range(shape[3])] for i in range(shape[2])] for b in range(shape[0])]  # fmt: skip
    steps = [
        ((y[b][i][j + 1] - y[b][i][j]) ** 2 + (y[b][i + 1][j] - y[b][i][j]) ** 2) ** 0.5
        for b in range(shape[0]) for i in range(shape[2] - 1) for j in range(shape[3] - 1)
    ]  # fmt: skip
    assert mean_gradient(image) == pytest.approx(sum(steps) / len(steps), rel=1e-9)


def test_sharpness_is_that_of_eval():
    pytest.importorskip("cv2")
    from training.evaluation.metrics.pictures import mean_gradient as of_eval

    pixels = tiny.pixels(13, 17, 3)
    image = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None]
    assert mean_gradient(image) == pytest.approx(of_eval(pixels), rel=1e-9)
    assert mean_gradient(torch.full((1, 3, 4, 4), 0.3)) == mean_gradient(torch.rand(1, 3, 1, 9)) == 0


def test_step_lists():
    assert parse_steps("1, 2,30") == parse_steps("1， 2，30") == parse_steps("1、2、30") == (1, 2, 30)
    for text in ("x", "1,", "1.5", "0", "31", "2,1,2"):
        with pytest.raises(InputError, match=re.escape(text)):
            parse_steps(text)
