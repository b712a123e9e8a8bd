"""`upscale` with an imported ODTSR: the file alone decides how it is run, and what is missing is one sentence."""

import shutil

import pytest
import torch
from PIL import Image

from helpers.tiny import odtsr as tiny
from teasr_core.cli.commands import main
from teasr_core.image.levels import to_levels
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
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


def test_info_says_how_it_is_run(files, capsys):
    assert main(["info", str(files.lora)]) == 0
    said = capsys.readouterr().out
    assert "starts at     0.4361" in said and "odtsr_vae.safetensors" in said and "tiles         64 px" in said
    assert main(["info", str(files.encoder)]) == 0
    assert "second VAE encoder" in capsys.readouterr().out


def test_the_builtin_model_refuses_it(files, picture, capsys):
    code = main(["upscale", str(picture), "-o", str(picture.with_name("x.png")), "--lora", str(files.lora)])
    assert code == 2 and "was made for another" in capsys.readouterr().err
