"""`upscale --model`: a tiny Qwen-Image with its VAE and LoRA from the command line, and every refusal in one line."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.cli import request as cli_request
from teasr_core.device import OFFLOADS
from teasr_core.errors import InputError
from teasr_core.image.target_size import TargetSize
from teasr_core.picture_files.read import load_picture
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import load_qwen_restorer, qwen_tile
from teasr_core.sampling.schedule import manual_plan
from teasr_core.weight_files.packed import PackedLinear
from teasr_core.weight_files.safetensors_reader import read_header


@dataclasses.dataclass(frozen=True)
class Files:
    folder: object  # a whole model with its VAE
    single: object  # the transformer alone, as ComfyUI keeps it
    scaled: object
    vae: object
    lora: object
    picture: object


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    root = tmp_path_factory.mktemp("qwen")
    return Files(
        folder=tiny_qwen.write_vae(tiny_qwen.write_folder(root / "model")),
        single=tiny_qwen.write_single(root / "transformer.safetensors", "model.diffusion_model."),
        scaled=tiny_qwen.write_scaled(root / "scaled.safetensors", "old")[0],
        vae=tiny_qwen.write_comfy_vae(root / "vae.safetensors"),
        lora=tiny_qwen.write_lora(root / "lora.safetensors"),
        picture=tiny.write_picture(root / "in.png"),  # 10 x 7
    )


@pytest.fixture
def upscale(run, files, tmp_path):
    """upscale(name, *options): the pixels of a successful run with the LoRA in fp32 on the CPU, and its line."""

    def call(name, *options, dtype="fp32"):
        target = tmp_path / f"{name}.png"
        options = ("--lora", files.lora, "--dtype", dtype, "--device", "cpu", "--color-fix", "off", *options)
        code, out, err = run("upscale", files.picture, "-o", target, *options)
        assert (code, err) == (0, ""), err
        return np.asarray(Image.open(target)), out

    return call


@pytest.fixture
def refused(run, files, tmp_path):
    """refused(*options): stderr, one line, of a run that must write nothing."""

    def call(*options):
        before = set(tmp_path.rglob("*"))
        code, out, err = run("upscale", files.picture, "-o", tmp_path / "out.png", "--device", "cpu", *options)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and len(err.splitlines()) == 1, err
        assert set(tmp_path.rglob("*")) == before
        return err

    return call


# The whole path


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("scale", ["4", "3.3"])
def test_an_image_comes_out_at_its_exact_size(upscale, files, steps, scale):
    pixels, line = upscale("out", "--model", files.folder, "--steps", steps, "--scale", scale)
    assert pixels.shape == (round(7 * float(scale)), round(10 * float(scale)), 3)
    assert pixels.std() > 1
    assert f"1 tile, {steps} step" in line and "fp32 | encode" in line


def test_every_layout_gives_the_same_pixels(upscale, files):
    first, _ = upscale("folder", "--model", files.folder)
    parts = ("--model", files.folder / "transformer", "--vae", files.folder / "vae")
    single = ("--model", files.single, "--vae", files.vae)
    for name, options in {"parts": parts, "single": single}.items():
        assert np.array_equal(upscale(name, *options)[0], first)
    scaled, _ = upscale("scaled", "--model", files.scaled, "--vae", files.vae)
    assert not np.array_equal(scaled, first)
    assert np.abs(scaled.astype(int) - first).mean() < 3


def test_options_that_act(upscale, files):
    variants = {
        "plain": [], "steps": ["--steps", "2"], "seed": ["--seed", "1"], "half": ["--lora-strength", "0.5"],
        "no_lora": ["--lora-strength", "0"], "strength": ["--strength", "0.5"],
    }  # fmt: skip
    seen = {name: upscale(name, "--model", files.folder, *options)[0].tobytes() for name, options in variants.items()}
    assert len(set(seen.values())) == len(variants)


def test_tiles(upscale, files):
    pixels, line = upscale("tiled", "--model", files.folder, "--tile-px", "32", "--overlap-px", "16")
    assert pixels.shape == (28, 40, 3)
    assert "3 tiles" in line  # of 64 x 32 px


@pytest.mark.parametrize("mode", OFFLOADS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8", "nf4"])
def test_storages_and_places(upscale, files, mode, dtype):
    if dtype == "nf4":
        pytest.importorskip("bitsandbytes")
        if mode == "sequential":
            return  # refused, below
    pixels, line = upscale("out", "--model", files.folder, "--offload", mode, dtype=dtype)
    assert f", {dtype} | " in line
    exact, _ = upscale("exact", "--model", files.folder)
    assert np.abs(pixels.astype(int) - exact).mean() < 6


def test_the_velocity_is_that_of_the_files(files):
    """Loaded for the command line, the model is the directly built one: its LoRA, its prompt, its padding of 32 px."""
    restorer = load_qwen_restorer(files.single, files.lora, files.vae, "fp32")
    assert restorer.pixel_multiple == 32
    assert restorer.tile(0, 0) == qwen_tile(0, 0) == (128, 16)
    lora = load_file(files.lora)
    assert torch.equal(restorer.velocity.prompt_embeds, lora["teasr.prompt_embeds"])
    restorer.velocity.lora_strength = 0.0
    restorer.velocity.prompt_embeds = tiny.prompt_embeds(tiny_qwen.ARCHITECTURE)
    wanted = tiny_qwen.output(tiny_qwen.velocity(tiny_qwen.weights()))
    assert tiny_qwen.difference(tiny_qwen.output(restorer.velocity), wanted) <= 1e-5
    sizes = []
    hook = restorer.base.codec.vae.encoder.register_forward_pre_hook(lambda _m, args: sizes.append(args[0].shape[-2:]))
    image = load_picture(files.picture).rgb
    restored = restorer.restore(image, RestoreRequest(RestoreOptions(TargetSize(33, 65)), manual_plan(1))).image
    hook.remove()
    assert restored.shape == (1, 3, 65, 33) and restored.dtype == torch.float32
    assert sizes == [(96, 64)]


def test_a_teasr_base_can_be_the_model(tmp_path, run, files):
    """One's own small base, without LoRA or VAE."""
    base = tiny.write_base(tmp_path / "base.safetensors")
    code, _, err = run("upscale", files.picture, "-o", tmp_path / "out.png", "--model", base, "--dtype", "fp32")
    assert (code, err) == (0, "")
    assert Image.open(tmp_path / "out.png").size == (40, 28)


def test_info_names_the_kind(run, files):
    for path, words in {
        files.folder: "Qwen-Image transformer (diffusers folder, fp32)",
        files.scaled: "Qwen-Image transformer (single file, fp8_e4m3fn scaled)",
        files.vae: "Qwen-Image VAE (single file, fp32)",
    }.items():
        code, out, err = run("info", path)
        assert (code, out, err) == (0, f"{path.name}: {words}\n", "")


# GGUF and int8 with rotation


@pytest.fixture(scope="module")
def owned(tmp_path_factory):
    """owned(kind): (file of that kind, the same weights as numbers in a plain file)"""
    root = tmp_path_factory.mktemp("owned")

    def make(kind):
        if kind == "rotated":
            path, meant = tiny_qwen.write_scaled(root / "rotated.safetensors", kind)
        else:
            gguf_files = pytest.importorskip("helpers.gguf_files", reason="gguf is not installed: pip install gguf")
            path = root / f"{kind}.gguf"
            meant = gguf_files.write(path, tiny_qwen.weights(), kind)
        plain = root / f"{kind}_plain.safetensors"
        save_file(meant, plain)
        return path, plain

    return make


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_0", "Q6_K", "rotated"])
def test_a_packed_file_gives_the_pixels_of_its_weights(upscale, files, owned, kind, offload):
    path, plain = owned(kind)
    options = ("--vae", files.vae, "--offload", offload)
    wanted = upscale("plain", "--model", plain, *options)[0]
    for dtype in ("auto", "fp32"):  # packed on the device, and unpacked while it is loaded
        assert np.abs(upscale(dtype, "--model", path, *options, dtype=dtype)[0].astype(int) - wanted).max() <= 1
    restorer = load_qwen_restorer(path, files.lora, files.vae, offload_mode=offload)
    assert any(isinstance(one, PackedLinear) for one in restorer.velocity.transformer.modules())


@pytest.mark.parametrize("kind", ["Q4_0", "rotated"])
def test_a_packed_file_may_be_quantised_anew(upscale, files, owned, kind):
    path, plain = owned(kind)
    found, wanted = (upscale(one.stem, "--model", one, "--vae", files.vae, dtype="fp8")[0] for one in (path, plain))
    assert np.array_equal(found, wanted)


def test_info_on_packed_files(run, owned):
    path, _ = owned("Q4_0")
    code, out, err = run("info", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "Q4_0.gguf: Qwen-Image transformer (GGUF, Q4_0)"
    assert "  tensors       Q4_0 (34), numbers (43)" in out and "GiB as the file packs them" in out
    code, out, _ = run("info", owned("rotated")[0])
    assert "single file, int8 scaled" in out and "int8_tensorwise with rotation of 64 (28), numbers (49)" in out


def test_info_and_upscale_without_the_package(run, refused, files, owned, monkeypatch):
    path, _ = owned("Q4_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, out, err = run("info", path)
    assert (code, err) == (0, "") and "architecture 'qwen_image'" in out and "pip install gguf" in out
    assert "needs the package gguf" in refused("--model", path, "--vae", files.vae, "--lora", files.lora)


# Refusals


def test_what_is_missing(refused, files):
    assert "--lora" in refused("--model", files.folder)
    assert "--vae" in refused("--model", files.single, "--lora", files.lora)
    assert "--vae" in refused("--model", files.folder / "transformer", "--lora", files.lora)
    nowhere = files.folder / "nowhere"
    assert "nowhere" in refused("--model", nowhere, "--lora", files.lora)
    assert "nowhere" in refused("--model", files.single, "--lora", files.lora, "--vae", nowhere)
    assert "nowhere" in refused("--model", files.folder, "--lora", nowhere)


def test_files_in_each_others_place(refused, files):
    assert "VAE" in refused("--model", files.vae, "--lora", files.lora)
    assert "TEASR LoRA" in refused("--model", files.lora, "--lora", files.lora)
    assert "expected a Qwen-Image VAE" in refused("--model", files.single, "--lora", files.lora, "--vae", files.single)
    assert "TEASR LoRA" in refused("--model", files.folder, "--lora", files.vae)


def test_a_lora_without_a_prompt(refused, files, tmp_path):
    lora = tiny_qwen.write_lora(tmp_path / "mine.safetensors", use_prompt=False)
    assert "prompt embedding" in refused("--model", files.folder, "--lora", lora)


def test_a_lora_of_another_base(refused, upscale, run, files, tmp_path):
    lora = tiny_qwen.write_lora(tmp_path / "mine.safetensors", **{"teasr.base_fingerprint": "0" * 64})
    assert "fine-tune" in refused("--model", files.folder, "--lora", lora)
    assert "architecture" in refused("--model", files.folder, "--lora", other_model(tmp_path))
    upscale("allowed", "--model", files.folder, "--lora", lora, "--allow-other-base")


def other_model(folder):
    """A LoRA with one layer too many."""
    lora = tiny_qwen.write_lora(folder / "deeper.safetensors")
    tensors, (_, metadata) = load_file(lora), read_header(lora)
    for half in ("lora_A", "lora_B"):
        key = f"teasr.transformer_blocks.0.attn.to_v.{half}.weight"
        tensors[key.replace("blocks.0", "blocks.7")] = tensors[key].clone()
    save_file(tensors, lora, metadata=metadata)
    return lora


def test_a_base_that_is_rounded_to_fp8_throughout(refused, upscale, files, tmp_path):
    model = tiny_qwen.write_single(tmp_path / "rounded.safetensors", dtype=torch.float8_e4m3fn)
    options = ("--model", model, "--vae", files.vae, "--lora", files.lora)
    assert "even its small tensors in fp8" in refused(*options)
    upscale("allowed", *options, "--allow-other-base")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vae", "x"], "--vae"), (["--offload", "model"], "--offload"), (["--dtype", "fp8"], "--dtype"),
        (["--dtype", "nf4"], "--dtype"), (["--device", "abacus"], "abacus"), (["--device", "cuda:99"], "cuda:99"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_with_the_built_in_model(refused, options, words):
    assert words in refused(*options)


def test_options_that_do_not_go_together(refused, files):
    options = ("--model", files.folder, "--lora", files.lora)
    assert "4-bit" in refused(*options, "--dtype", "nf4", "--offload", "sequential")
    assert "multiple of 32" in refused(*options, "--tile-px", "48")
    with pytest.raises(InputError, match="offload"):
        load_qwen_restorer(files.folder, files.lora, offload_mode="somewhere")


def test_everything_is_checked_before_the_long_load(refused, files, monkeypatch, tmp_path):
    """The transformer's weights are read last: no refusal comes after minutes of loading."""
    from teasr_core import restorer as standalone

    def load(*_args):
        raise AssertionError("the transformer was loaded")

    monkeypatch.setattr(standalone, "load_stored", load)
    lora = tiny_qwen.write_lora(tmp_path / "mine.safetensors", use_prompt=False)
    refused("--model", files.folder, "--lora", lora)
    refused("--model", files.single, "--lora", files.lora)
    refused("--model", files.folder, "--lora", files.lora, "--tile-px", "48")
    with pytest.raises(AssertionError, match="was loaded"):
        refused("--model", files.folder, "--lora", files.lora)


@pytest.mark.usefixtures("tiny_model")
def test_the_built_in_model_stays_the_default(run, files, tmp_path, monkeypatch):
    """Without --model no Qwen code runs, and naming the CPU changes no byte."""
    monkeypatch.setattr(cli_request, "load_qwen_restorer", lambda *_: 1 / 0)
    for name, options in {"a": [], "b": ["--device", "cpu"], "c": ["--offload", "none"]}.items():
        target = tmp_path / f"{name}.png"
        code, _, err = run("upscale", files.picture, "-o", target, "--dtype", "fp32", *options)
        assert (code, err) == (0, "")
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in "abc"}) == 1
