"""`upscale` with an imported ODTSR: the file alone decides how it is run, and what is missing is one sentence."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import odtsr as tiny
from teasr_core.cli.commands import main
from teasr_core.image.levels import to_levels
from teasr_core.image.region import make_region
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest, latent_sampler
from teasr_core.restorer import load_qwen_restorer
from teasr_core.sampling.auto_steps import AutoSteps
from teasr_core.sampling.schedule import manual_plan


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.write_files(tmp_path_factory.mktemp("odtsr"))


@pytest.fixture
def files(made, tmp_path):
    """The files in folders as users have them: the LoRA and the encoder together, base and VAE elsewhere."""
    models, loras = tmp_path / "models", tmp_path / "loras"
    for folder, paths in ((models, (made.base, made.vae)), (loras, (made.lora, made.encoder))):
        folder.mkdir()
        for path in paths:
            shutil.copy(path, folder)
    return tiny.Files(*(folder / path.name for folder, path in (
        (models, made.base), (models, made.vae), (loras, made.checkpoint), (loras, made.lora), (loras, made.encoder),
    )))  # fmt: skip


@pytest.fixture
def picture(tmp_path):
    pixels = to_levels(tiny.picture(96)[0]).permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def upscale(files, picture, *options):
    output = picture.with_name("out.png")
    inputs = ["--model", files.base, "--vae", files.vae, "--lora", files.lora, "--dtype", "fp32", "--scale", "1"]
    return main(["upscale", *map(str, [picture, "-o", output, *inputs, "--quiet", *options])]), output


def test_the_command_restores_in_the_files_own_way(files, picture):
    code, output = upscale(files, picture, "--seed", tiny.SEED, "--fidelity", "1", "--color-fix", "off")
    assert code == 0
    restorer = load_qwen_restorer(files.base, files.lora, files.vae, "fp32")
    options = RestoreOptions(TargetSize(96, 96), color_fix="off", fidelity=1.0)
    expected = restorer.restore(tiny.picture(96), RestoreRequest(options, manual_plan(1), tiny.SEED))
    assert expected.report.tiles == 4 and restorer.auto_px == (tiny.TILE_PX, tiny.OVERLAP_PX)
    pixels = torch.tensor(list(Image.open(output).tobytes()), dtype=torch.uint8).reshape(96, 96, 3)
    assert torch.equal(pixels, to_levels(expected.image[0]).permute(1, 2, 0))


def test_fidelity_and_strength_of_the_lora_change_it(files, picture):
    bytes_of = []
    for options in (["--fidelity", "1"], ["--fidelity", "0"], ["--fidelity", "1", "--lora-strength", "0"]):
        code, output = upscale(files, picture, "--overwrite", *options)
        assert code == 0
        bytes_of.append(output.read_bytes())
    assert len(set(bytes_of)) == 3


def test_the_encoder_may_lie_beside_the_vae(files, picture):
    files.encoder.rename(files.vae.parent / files.encoder.name)
    assert upscale(files, picture)[0] == 0


def test_a_missing_encoder_is_one_sentence(files, picture, capsys):
    files.encoder.unlink()
    code, output = upscale(files, picture)
    error = capsys.readouterr().err
    assert code == 2 and not output.exists() and error.count("\n") == 1
    assert "odtsr.safetensors starts from the latent of a second VAE encoder, and odtsr_vae.safetensors is" in error


def test_another_encoder_is_refused(files, picture, capsys):
    stored = tiny.checkpoint()
    stored["pipe.new_vae.encoder.conv_in.bias"] += 1
    other = files.encoder.with_name("other")
    other.mkdir()
    torch.save(stored, other / "net.pth")
    shutil.copy(tiny.write_files(other, other / "net.pth").encoder, files.encoder)
    assert upscale(files, picture)[0] == 2
    assert "the LoRA was trained with" in capsys.readouterr().err


def test_a_vae_in_place_of_the_encoder_is_refused(files, picture, capsys):
    shutil.copy(files.vae, files.encoder)
    assert upscale(files, picture)[0] == 2
    assert "is no second encoder" in capsys.readouterr().err


def test_automatic_steps_start_where_the_file_says(files):
    restorer = load_qwen_restorer(files.base, files.lora, files.vae, "fp32")
    times = []
    inner = restorer.velocity

    def velocity(z_t, t_cur, z_lq, t_tar):
        times.append(float(t_cur[0]))
        return inner(z_t, t_cur, z_lq, t_tar)

    restorer.velocity = velocity
    options = RestoreOptions(TargetSize(64, 64), fidelity=1.0)
    report = restorer.restore(tiny.picture(64), RestoreRequest(options, AutoSteps(10.0), tiny.SEED)).report
    start = restorer.recipe.start_time
    assert report.steps == 1 and times == pytest.approx([start, start / 2, start, start], abs=1e-7)


def corner():
    """(1, 1, 96, 96): 20 px of the corner are white, in which only the first of the four tiles has a pixel."""
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., :20, :20] = 1
    return mask


@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 30])
def test_the_latent_outside_a_region_is_the_picture_without_noise(files, steps, fidelity):
    """Fidelity below 1 mixes noise into the condition, and the tiles that are left out must not end there."""
    restorer = load_qwen_restorer(files.base, files.lora, files.vae, "fp32")
    codec, size, image = restorer.base.codec, TargetSize(96, 96), tiny.picture(96)
    lq, start = codec.encode_lq(image), codec.encode_start(image)
    sampled = []
    for region in (make_region(corner(), size, size), None):
        options = RestoreOptions(size, fidelity=fidelity)
        request = RestoreRequest(options, manual_plan(steps), tiny.SEED, region=region)
        sampler = latent_sampler(restorer.velocity, request, 4, *restorer.tile(0, 0), None, 8, restorer.recipe)
        sampled.append(sampler(lq, start)[0])
    part, whole = sampled
    assert tiny.difference(part[..., 8:, :], lq[..., 8:, :]) <= 1e-6
    assert tiny.difference(part[..., :, 8:], lq[..., :, 8:]) <= 1e-6
    assert tiny.difference(part[..., :3, :3], lq[..., :3, :3]) > 0.1
    assert steps > 1 or torch.equal(part[..., :3, :3], whole[..., :3, :3])


@pytest.mark.parametrize("options", [
    ["--fidelity", "0.5"], ["--fidelity", "1", "--steps", "3", "--color-fix", "lab"],
    ["--step-mode", "auto", "--tolerance", "10", "--fidelity", "0.5"],
    ["--grain", "1", "--steps", "2", "--fidelity", "0.5"],
], ids=" ".join)  # fmt: skip
def test_a_region_of_a_transparent_picture_changes_no_pixel_outside(files, picture, tmp_path, options):
    pixels = np.dstack([np.asarray(Image.open(picture)), np.full((96, 96), 255, np.uint8)])
    pixels[60:80, 60:80, 3] = 128
    Image.fromarray(pixels).save(picture)
    Image.fromarray((corner()[0, 0].numpy() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    code, output = upscale(files, picture, "--region", tmp_path / "mask.png", *options)
    assert code == 0
    found = np.asarray(Image.open(output))
    assert found.shape == (96, 96, 4)
    assert (found[20:60, :60] == pixels[20:60, :60]).all() and (found[..., 3] == pixels[..., 3]).all()
    assert np.abs(found[:16, :16, :3].astype(int) - pixels[:16, :16, :3]).max() > 12


def test_info_says_how_it_is_run(files, capsys):
    assert main(["info", str(files.lora)]) == 0
    said = capsys.readouterr().out
    assert "starts at     0.4361" in said and "odtsr_vae.safetensors" in said and "tiles         64 px" in said
    assert main(["info", str(files.encoder)]) == 0
    assert "second VAE encoder" in capsys.readouterr().out


def test_the_builtin_model_refuses_it(files, picture, capsys):
    code = main(["upscale", str(picture), "-o", str(picture.with_name("x.png")), "--lora", str(files.lora)])
    assert code == 2 and "was made for another" in capsys.readouterr().err
