"""The command line on a tiny model: every file kind and size option, and refusals in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import model as tiny
from teasr_core.picture_files.read import load_picture
from teasr_core.weight_files import base_file
from teasr_core.weight_files.base_file import BASE_NAME, LORA_NAME

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def upscale(run):
    """upscale(input, output, *options) in fp32, successful: stdout."""

    def call(source, target, *options):
        code, out, err = run("upscale", source, "-o", target, "--dtype", "fp32", *options)
        assert (code, err) == (0, ""), err
        return out

    return call


def write_16_bit(path, grey=False):
    from teasr_core.picture_files.ifd import Tree
    from teasr_core.picture_files.write_16bit import encode_png16, encode_tiff

    array = np.atleast_3d(tiny.pixels(7, 10, 1 if grey else 3, np.uint16))
    path.write_bytes(encode_png16(array) if path.suffix == ".png" else encode_tiff(array, Tree()))
    return path


# Kinds of files


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"])
def test_every_format_in_and_out(tmp_path, upscale, suffix):
    out = tmp_path / f"out{suffix}"
    line = upscale(tiny.write_picture(tmp_path / f"in{suffix}"), out, "--scale", "2")
    assert line.startswith(f"{out}: 20x14, 1 tile, 1 step, fp32 | ")
    with Image.open(out) as image:
        assert (image.size, image.mode) == ((20, 14), "RGB")


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (4, "RGBA")])
def test_grey_stays_grey_and_alpha_stays(tmp_path, upscale, channels, mode):
    out = tmp_path / "out.png"
    upscale(tiny.write_picture(tmp_path / "in.png", channels), out, "--scale", "1.5")
    with Image.open(out) as image:
        assert (image.size, image.mode) == ((15, 11), mode)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("grey", [False, True])
def test_16_bit_stays_16_bit(tmp_path, upscale, suffix, grey):
    out = tmp_path / f"out{suffix}"
    upscale(write_16_bit(tmp_path / f"in{suffix}", grey), out, "--scale", "3")
    picture = load_picture(out)
    assert (picture.bit_depth, picture.is_grey, tuple(picture.rgb.shape)) == (16, grey, (1, 3, 21, 30))
    levels = torch.unique((picture.rgb * 65535).round())
    assert len(levels) > 256


def test_alpha_is_resampled_on_its_own(tmp_path, upscale):
    """Half transparent; the black that lies under it must not darken the edge."""
    array = np.full((8, 8, 4), 180, np.uint8)
    array[:, :4] = 0
    array[:, 4:, 3] = 255
    Image.fromarray(array).save(tmp_path / "in.png")
    upscale(tmp_path / "in.png", tmp_path / "out.png", "--scale", "2", "--strength", "0")
    result = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert (result[:, 0, 3] == 0).all()
    assert (result[:, -1, 3] == 255).all()
    assert 0 < result[0, 7, 3] < 255
    assert np.abs(result[..., :3] - 180).max() <= 1


def test_metadata_is_kept(tmp_path, upscale):
    exif = Image.Exif()
    exif[0x010E] = "a lake"
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(tiny.pixels(7, 10, 3)).save(tmp_path / "in.jpg", exif=exif, dpi=(300, 300))
    upscale(tmp_path / "in.jpg", tmp_path / "out.jpg", "--scale", "2")
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.size == (14, 20)
        assert (image.getexif()[0x010E], image.getexif()[0x0112]) == ("a lake", 1)
        assert image.info["dpi"] == (300, 300)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 17), (13, 1), (5, 3)])
def test_tiny_and_odd_sizes(tmp_path, upscale, height, width):
    out = tmp_path / "out.png"
    upscale(tiny.write_picture(tmp_path / "in.png", 3, height, width), out)  # default: factor 4
    assert Image.open(out).size == (4 * width, 4 * height)


# Size options


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ([], (40, 28)),
        (["--scale", "0.5"], (5, 4)),
        (["--scale", "1"], (10, 7)),
        (["--shortest", "21"], (30, 21)),
        (["--longest", "33"], (33, 23)),
        (["--width", "25", "--height", "9"], (25, 9)),
        (["--megapixels", "0.001"], (39, 27)),
        (["--scale", "4", "--max-megapixels", "0.0005"], (27, 19)),
    ],
)
def test_size_options(tmp_path, upscale, options, size):
    out = tmp_path / "out.png"
    upscale(tiny.write_picture(tmp_path / "in.png"), out, *options)
    assert Image.open(out).size == size


@pytest.mark.parametrize(
    "options", [["--longest", "2000"], ["--width", "1500", "--height", "1400"], ["--megapixels", "2"]]
)
def test_sizes_in_pixels_are_measured_against_the_image(tmp_path, run, options):
    """A large target is fine for a large image. strength 0, so that no model has to run."""
    source = tmp_path / "in.png"
    Image.fromarray(np.zeros((700, 1000, 3), np.uint8)).save(source)
    code, _, err = run("upscale", source, "-o", tmp_path / "out.png", "--strength", "0", "--dtype", "fp32", *options)
    assert (code, err) == (0, "")


def test_strength_0_is_the_plain_resize(tmp_path, upscale):
    source = tiny.write_picture(tmp_path / "in.png")
    upscale(source, tmp_path / "out.png", "--strength", "0", "--scale", "2")
    from teasr_core.image.resize import resize
    from teasr_core.image.target_size import TargetSize

    wanted = resize(load_picture(source).rgb, TargetSize(20, 14))
    assert torch.equal((wanted * 255).round(), (load_picture(tmp_path / "out.png").rgb * 255).round())


def test_a_large_factor_is_noted_once(tmp_path, run):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        tiny.write_picture(tmp_path / "in" / name)
    code, _, err = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--scale", "5", "--dtype", "fp32")
    assert code == 0
    assert err == "note: a.png is enlarged more than 4 times: expect less detail\n"


# Same command, same bytes


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_twice_gives_identical_bytes(tmp_path, upscale, suffix):
    source = tiny.write_picture(tmp_path / "in.png")
    for name in ("a", "b"):
        upscale(source, tmp_path / f"{name}{suffix}", "--steps", "2", "--seed", str(2**64 - 1))
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_options_that_act(tmp_path, upscale):
    source = tiny.write_picture(tmp_path / "in.png")
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    variants = {
        "plain": [], "steps": ["--steps", "3"], "seed": ["--seed", "1"], "strength": ["--strength", "0.5"],
        "fix": ["--color-fix", "off"], "fix_strength": ["--color-strength", "0.5"], "lora": ["--lora", lora],
        "fidelity": ["--fidelity", "0.5"],
        "lora_half": ["--lora", lora, "--lora-strength", "0.5"], "tiles": ["--tile-px", "16", "--overlap-px", "8"],
    }  # fmt: skip
    seen = {}
    for name, options in variants.items():
        upscale(source, tmp_path / f"{name}.png", "--scale", "2", *options)
        seen[name] = (tmp_path / f"{name}.png").read_bytes()
    assert len(set(seen.values())) == len(variants)


def test_the_shipped_adapter_is_used_when_there_is_one(tmp_path, upscale, monkeypatch):
    source = tiny.write_picture(tmp_path / "in.png")
    upscale(source, tmp_path / "base.png")
    monkeypatch.setattr(base_file, "ASSETS", tiny.write_assets(tmp_path / "assets"))
    lora = tiny.write_lora(tmp_path / "assets" / LORA_NAME)
    upscale(source, tmp_path / "shipped.png")
    upscale(source, tmp_path / "named.png", "--lora", lora)
    upscale(source, tmp_path / "off.png", "--lora-strength", "0")
    files = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("base", "shipped", "named", "off")}
    assert files["shipped"] == files["named"] != files["base"]
    assert files["off"] != files["shipped"]


def test_steps_chosen_by_a_tolerance(tmp_path, upscale):
    """The choice is that of AutoSteps, said on the line; the pixels are those of its number asked for by hand."""
    source = tiny.write_picture(tmp_path / "in.png")
    chosen = []
    for tolerance in ("1", "0.001"):
        line = upscale(source, tmp_path / f"{tolerance}.png", "--step-mode", "auto", "--tolerance", tolerance)
        chosen.append(int(line.split(" | auto: ")[1].split(" step")[0]))
        upscale(source, tmp_path / "manual.png", "--steps", str(chosen[-1]), "--overwrite")
        assert (tmp_path / "manual.png").read_bytes() == (tmp_path / f"{tolerance}.png").read_bytes()
    assert chosen[0] < chosen[1]


# Folders


def test_a_folder_goes_to_a_folder(tmp_path, upscale):
    source, target = tmp_path / "in", tmp_path / "new" / "out"
    source.mkdir()
    for name in ("a.png", "b.jpg", "c.bmp", "D.TIFF"):
        tiny.write_picture(source / name)
    tiny.write_picture(source / ".hidden.png")
    (source / "notes.txt").write_text("no image")
    (source / "deeper").mkdir()
    out = upscale(source, target, "--scale", "2")
    assert sorted(p.name for p in target.iterdir()) == ["D.TIFF", "a.png", "b.jpg", "c.png"]
    assert len(out.splitlines()) == 5
    assert out.splitlines()[-1].startswith("4 images: 4 written, 0:")
    assert all(Image.open(p).size == (20, 14) for p in target.iterdir())


def test_a_bad_image_in_a_folder_does_not_stop_the_others(tmp_path, run):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    tiny.write_picture(source / "a.png")
    (source / "b.png").write_bytes(b"")
    tiny.write_picture(source / "c.png")
    code, _, err = run("upscale", source, "-o", target, "--dtype", "fp32")
    assert code == 3
    assert sorted(p.name for p in target.iterdir()) == ["a.png", "c.png"]
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)
    assert "b.png" in lines[0]
    assert "1 of 3 images" in lines[1]


def test_the_model_is_loaded_once_for_a_folder(tmp_path, upscale, monkeypatch):
    from teasr_core.cli import request as cli_request

    calls, load = [], cli_request.load_restorer
    monkeypatch.setattr(cli_request, "load_restorer", lambda *a: calls.append(1) or load(*a))
    (tmp_path / "in").mkdir()
    for name in "abc":
        tiny.write_picture(tmp_path / "in" / f"{name}.png")
    upscale(tmp_path / "in", tmp_path / "out")
    assert calls == [1]


def test_overwrite(tmp_path, run, upscale):
    source, out = tiny.write_picture(tmp_path / "in.png"), tmp_path / "out.png"
    out.write_bytes(b"precious")
    code, _, err = run("upscale", source, "-o", out)
    assert (code, out.read_bytes()) == (2, b"precious")
    assert "--overwrite" in err
    upscale(source, out, "--overwrite")
    assert Image.open(out).size == (40, 28)
    (tmp_path / "folder").mkdir()
    tiny.write_picture(tmp_path / "folder" / "out.png")
    code, _, err = run("upscale", tmp_path / "folder", "-o", tmp_path)
    assert code == 2
    upscale(tmp_path / "folder", tmp_path, "--overwrite")


# info, demo, help


def test_info(tmp_path, run, tiny_assets):
    code, out, err = run("info", tiny_assets / BASE_NAME)
    assert (code, err) == (0, "")
    assert out.startswith(f"{BASE_NAME}: TEASR base model, 0.")
    code, out, err = run("info", tiny.write_lora(tmp_path / "mine.safetensors"))
    assert (code, err) == (0, "")
    assert out.startswith("mine.safetensors: TEASR LoRA, rank 4,")
    assert "step 7" in out


def test_demo(tmp_path, run):
    pytest.importorskip("skimage")
    code, out, err = run("demo", "-o", tmp_path / "demo.png", "--dtype", "fp32")
    assert (code, err) == (0, "")
    assert "LQ | 1 | 4 | 8 steps" in out
    with Image.open(tmp_path / "demo.png") as image:
        assert image.width == 4 * 288
        assert len(set(np.asarray(image)[100:200].reshape(-1, 3).sum(1).tolist())) > 100


def test_the_demo_replaces_nothing_unasked(tmp_path, run, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    for name in ("demo.png", "photo.png"):
        (tmp_path / name).write_bytes(b"precious")
        code, out, err = run("demo", *([] if name == "demo.png" else ["-o", name]))
        assert (code, out) == (2, "") and name in err and "--overwrite" in err
        assert (tmp_path / name).read_bytes() == b"precious"
    assert run("demo", "--overwrite", "--dtype", "fp32")[0] == 0
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_help_needs_no_model(run):
    for command in ([], ["upscale"], ["compare"], ["info"], ["demo"]):
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert out.startswith("usage: python -m teasr_core")


@pytest.mark.parametrize("command", ["upscale", "compare"])
def test_the_page_lists_every_flag(run, command):
    page = (Path(__file__).parents[3] / "docs" / "using" / "cli.md").read_text(encoding="utf-8")
    flags = set(re.findall(r"--[a-z][a-z-]+", run(command, "--help")[1])) - {"--help", "--output"}
    assert len(flags) > 20
    assert [flag for flag in sorted(flags) if f"`{flag}" not in page and f" {flag} " not in page] == []


def test_a_bug_of_ours_is_not_hidden(tmp_path, run, monkeypatch):
    from teasr_core.cli import request as cli_request

    monkeypatch.setattr(cli_request, "load_restorer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("upscale", tiny.write_picture(tmp_path / "in.png"), "-o", tmp_path / "out.png")
