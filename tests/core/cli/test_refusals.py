"""Bad input to the command line: exit code 2, one line on stderr, nothing written, the model not even loaded."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.weight_files.base_file import BASE_NAME

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def refused(run, tmp_path):
    """refused(*arguments): stderr, after checking code, line and that no file came into being."""

    def call(*arguments):
        before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
        code, out, err = run(*arguments)
        after = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1, err
        assert after == before
        return err

    return call


def missing(path):
    pass


def text(path):
    path.write_text("no image")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    tiny.write_picture(path, 3, 40, 40)
    path.write_bytes(path.read_bytes()[:-200])


def animated(path):
    frames = [Image.fromarray(tiny.pixels(8, 8, 3)), Image.fromarray(255 - tiny.pixels(8, 8, 3))]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("make", [missing, text, empty, truncated, animated])
def test_bad_images(tmp_path, refused, make):
    make(tmp_path / "in.png")
    assert "in.png" in refused("upscale", tmp_path / "in.png", "-o", tmp_path / "out.png")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"], ["--steps", "31"], ["--steps", "x"], ["--steps", "1.5"], ["--steps", "-1"],
        ["--scale", "0"], ["--scale", "nan"], ["--scale", "9"], ["--scale", "0.2"], ["--scale", "inf"],
        ["--scale", "big"], ["--scale", "-2"],
        ["--shortest", "0"], ["--shortest", "57"], ["--longest", "x"], ["--longest", "1"], ["--width", "8"],
        ["--width", "0", "--height", "8"], ["--width", "81", "--height", "7"], ["--megapixels", "0"],
        ["--megapixels", "nan"], ["--megapixels", "5"], ["--max-megapixels", "-1"], ["--max-megapixels", "nan"],
        ["--scale", "2", "--longest", "20"], ["--scale", "2", "--width", "9", "--height", "9"],
        ["--seed", "-1"], ["--seed", str(2**64)], ["--seed", "x"],
        ["--strength", "1.5"], ["--strength", "nan"], ["--color-fix", "sepia"], ["--color-strength", "-1"],
        ["--fidelity", "1.1"], ["--fidelity", "nan"], ["--step-mode", "magic"],
        ["--step-mode", "auto", "--tolerance", "0"], ["--step-mode", "auto", "--steps", "4"],
        ["--tolerance", "0"], ["--tolerance", "-3"], ["--tolerance", "11"],
        ["--lora-strength", "3"], ["--lora-strength", "nan"], ["--dtype", "fp16"],
        ["--quality", "0"], ["--quality", "101"], ["--frobnicate"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_options(tmp_path, refused, options):
    refused("upscale", tiny.write_picture(tmp_path / "in.png"), "-o", tmp_path / "out.png", *options)


@pytest.mark.parametrize(
    "options", [["--tile-px", "20"], ["--tile-px", "-16"], ["--overlap-px", "12"], ["--tile-px", "x"]]
)
def test_bad_tiles(tmp_path, refused, options):
    message = refused("upscale", tiny.write_picture(tmp_path / "in.png"), "-o", tmp_path / "out.png", *options)
    assert "px" in message
    assert "expected" in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["out.gif", "out.bmp", "out", "out.tiff.txt", "none/out.png", "folder", "in.png"])
def test_bad_outputs_are_found_before_the_model_is_loaded(tmp_path, refused, name):
    (tmp_path / "folder").mkdir()
    refused("upscale", tiny.write_picture(tmp_path / "in.png"), "-o", tmp_path / name)


@pytest.mark.usefixtures("no_model")
def test_alpha_does_not_go_into_a_jpeg(tmp_path, refused):
    assert "alpha" in refused("upscale", tiny.write_picture(tmp_path / "in.png", 4), "-o", tmp_path / "out.jpg")


@pytest.mark.usefixtures("no_model")
def test_a_grey_profile_does_not_go_into_a_colour_file(tmp_path, refused):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = srgb[:16] + b"GRAY" + srgb[20:]
    for name, channels, target in (("in.jpg", 1, "out.webp"), ("in.webp", 3, "o.webp"), ("in.png", 3, "out.png")):
        pixels = tiny.pixels(8, 8, 3)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / name, icc_profile=profile)
        assert "grey colour profile" in refused("upscale", tmp_path / name, "-o", tmp_path / target)
    images = ("--images", tmp_path / "all", "--steps", "1")
    assert "grey colour profile" in refused("compare", tmp_path / "in.png", "-o", tmp_path / "grid.png", *images)


@pytest.mark.usefixtures("no_model")
def test_a_result_too_large_for_its_format(tmp_path, refused):
    Image.fromarray(np.zeros((1, 2100, 3), np.uint8)).save(tmp_path / "in.png")
    assert "16383" in refused("upscale", tmp_path / "in.png", "-o", tmp_path / "out.webp", "--scale", "8")


@pytest.mark.usefixtures("no_model")
def test_bad_folders(tmp_path, refused):
    folder = tmp_path / "in"
    folder.mkdir()
    refused("upscale", folder, "-o", tmp_path / "out")  # holds no image
    tiny.write_picture(folder / "a.png")
    refused("upscale", folder, "-o", folder)
    refused("upscale", folder, "-o", folder / "a.png")
    refused("upscale", folder, "-o", folder / "a.png" / "deeper")
    refused("upscale", folder, "-o", tmp_path / "out", "--scale", "9")
    tiny.write_picture(folder / "b.png")
    for options in (
        ["--shortest", "-5"], ["--longest", "0"], ["--megapixels", "0"], ["--width", "100", "--height", "0"],
        ["--width", "-1", "--height", "9"],
    ):  # fmt: skip
        refused("upscale", folder, "-o", tmp_path / "out", *options)  # once, not for each image
    tiny.write_picture(folder / "a.bmp")
    assert "a.bmp" in refused("upscale", folder, "-o", tmp_path / "out")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("path", ["", "a\0b.png"])
def test_an_empty_path_is_not_the_current_folder(tmp_path, refused, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    tiny.write_picture(tmp_path / "a.png")
    for arguments in (
        ["upscale", path, "-o", "out"], ["upscale", "a.png", "-o", path], ["compare", path, "-o", "out.png"],
        ["upscale", "a.png", "-o", "out.png", "--region", path], ["info", path], ["demo", "-o", path],
        ["upscale", "a.png", "-o", "out.png", "--lora", path], ["compare", "a.png", "-o", "b.png", "--images", path],
    ):  # fmt: skip
        assert f"the path is {path!r}" in refused(*arguments)


@pytest.mark.usefixtures("no_model")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_called_a_pipe(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe.png")
    assert "save it to a file first" in refused("upscale", tmp_path / "pipe.png", "-o", tmp_path / "out.png")


@pytest.mark.usefixtures("no_model")
def test_an_existing_result_refuses_the_whole_folder(tmp_path, refused):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        tiny.write_picture(tmp_path / folder / "b.png")
    tiny.write_picture(tmp_path / "in" / "a.png")
    assert "--overwrite" in refused("upscale", tmp_path / "in", "-o", tmp_path / "out")


@pytest.mark.parametrize("arguments", [[], ["upscale"], ["upscale", "in.png"], ["frobnicate"], ["info"]])
def test_incomplete_commands(refused, arguments):
    refused(*arguments)


def test_a_line_break_in_a_name_stays_on_one_line(tmp_path, refused):
    refused("upscale", tmp_path / "a\nb.png", "-o", tmp_path / "out.png")
    refused("info", tmp_path / "a\nb.safetensors")


# Weight files


def pickled(path):
    torch.save(tiny.lora_weights(), path)


def truncated_weights(path):
    tiny.write_lora(path)
    path.write_bytes(path.read_bytes()[:-100])


def wider_model(path):
    tiny.write_lora(path, QwenArchitecture(48, 2, 3, 32, (8, 12, 12), 16))


def other_base(path):
    tiny.write_lora(path, **{"teasr.base_fingerprint": "0" * 64})


def changed(change):
    def make(path):
        tensors = load_file(tiny.write_lora(path))
        change(tensors, "teasr.transformer_blocks.0.attn.to_k.lora_B.weight")
        save_file(tensors, path, metadata=tiny.lora_file_metadata())

    return make


LORAS = {
    "missing": missing, "pickle": pickled, "truncated": truncated_weights, "empty": empty, "text": text,
    "other model": wider_model, "other base": other_base, "base file": tiny.write_base,
    "missing half": changed(lambda tensors, key: tensors.pop(key)),
    "nan": changed(lambda tensors, key: tensors[key].fill_(float("nan"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize("folder", [False, True], ids=["image", "folder"])
def test_bad_loras(tmp_path, refused, kind, folder):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        tiny.write_picture(tmp_path / "in" / name)
    lora = tmp_path / "mine.safetensors"
    LORAS[kind](lora)
    source, target = (
        (tmp_path / "in", tmp_path / "out") if folder else (tmp_path / "in" / "a.png", tmp_path / "out.png")
    )
    assert "mine.safetensors" in refused("upscale", source, "-o", target, "--lora", lora, "--scale", "8")


def test_a_lora_of_another_base_can_be_allowed(tmp_path, run):
    lora = tmp_path / "mine.safetensors"
    other_base(lora)
    source, target = tiny.write_picture(tmp_path / "in.png"), tmp_path / "out.png"
    code, _, err = run("upscale", source, "-o", target, "--lora", lora, "--allow-other-base", "--dtype", "fp32")
    assert (code, err) == (0, "")


def test_a_missing_or_broken_built_in_model(tmp_path, refused, monkeypatch):
    from teasr_core.weight_files import base_file

    monkeypatch.setattr(base_file, "ASSETS", tmp_path)
    source = tiny.write_picture(tmp_path / "in.png")
    refused("upscale", source, "-o", tmp_path / "out.png")
    refused("demo", "-o", tmp_path / "out.png")
    tiny.write_base(tmp_path / BASE_NAME)
    (tmp_path / BASE_NAME).write_bytes((tmp_path / BASE_NAME).read_bytes()[:5000])
    refused("upscale", source, "-o", tmp_path / "out.png")


@pytest.mark.parametrize("make", [missing, empty, text, pickled, truncated_weights])
def test_info_on_other_files(tmp_path, refused, make):
    make(tmp_path / "mine.safetensors")
    assert "mine.safetensors" in refused("info", tmp_path / "mine.safetensors")


def test_info_on_a_foreign_safetensors_file(tmp_path, refused):
    save_file({"x": torch.ones(1)}, tmp_path / "mine.safetensors")
    assert "no TEASR" in refused("info", tmp_path / "mine.safetensors")


def test_info_on_a_folder_without_a_model(tmp_path, refused, monkeypatch):
    (tmp_path / "photographs").mkdir()
    assert "photographs: folder without transformer/config.json" in refused("info", tmp_path / "photographs")
    monkeypatch.chdir(tmp_path / "photographs")
    assert ".: folder without transformer/config.json" in refused("info", ".")


@pytest.mark.usefixtures("no_model")
def test_damaged_metadata_is_one_line_for_every_command(tmp_path, refused):
    path, header = tmp_path / "mine.safetensors", b'{"__metadata__": [1]}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "mine.safetensors" in refused("info", path)
    source = tiny.write_picture(tmp_path / "in.png")
    assert "mine.safetensors" in refused("upscale", source, "-o", tmp_path / "out.png", "--model", path)
