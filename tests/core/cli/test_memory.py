"""Memory that really runs out, wherever it does: the image is named and counted, the others are done."""

import dataclasses
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from teasr_core.memory import is_out_of_memory
from teasr_core.picture_files.read import load_picture

resource = pytest.importorskip("resource")
pytestmark = [
    pytest.mark.usefixtures("tiny_model"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is limited, and counted, as Linux does"),
]
ROOM_MIB = 320
LOOK = ("--dtype", "fp32", "--scale", "8")


def write_unreadable(path):
    """Three channels of it are 1.1 GiB in float32: too much even if other tests leave memory to be freed."""
    Image.new("L", (10000, 10000), 90).save(path)


def write_unrestorable(path):
    """Small enough to be read; its alpha at 8 times the size alone is 256 MiB, twice while it is resized."""
    image = Image.new("RGBA", (1024, 1024), (90, 120, 30, 0))
    image.paste((20, 200, 100, 255), (100, 100, 500, 500))
    image.save(path)


@pytest.fixture
def folder(tmp_path, run):
    """A folder with b.png; whatever is imported and made once is there already."""
    (tmp_path / "in").mkdir()
    small = tiny.write_picture(tmp_path / "in" / "b.png")
    assert run("compare", small, "-o", tmp_path / "first.png", *LOOK)[0] == 0
    return tmp_path / "in"


@pytest.fixture
def little_memory(folder):
    """ROOM_MIB more than what is taken now, once the garbage of earlier tests is collected."""
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("write", [write_unreadable, write_unrestorable])
def test_a_folder_goes_on(request, tmp_path, run, folder, write):
    write(folder / "a.png")
    request.getfixturevalue("little_memory")
    code, _, err = run("upscale", folder, "-o", tmp_path / "out", "--quiet", *LOOK)
    first, last = err.splitlines()
    assert code == 3
    assert first.startswith("error: a.png: memory does not suffice ")
    assert last == "error: 1 of 2 images failed (named above): the others are written"
    assert os.listdir(tmp_path / "out") == ["b.png"]
    code, _, err = run("upscale", folder / "a.png", "-o", tmp_path / "a.png", *LOOK)
    assert code == 2 and err.splitlines()[-1].startswith("error: memory does not suffice ")


@pytest.mark.parametrize("write", [write_unreadable, write_unrestorable])
def test_a_comparison_goes_on(request, tmp_path, run, folder, write):
    write(folder / "a.png")
    request.getfixturevalue("little_memory")
    code, _, err = run("compare", folder, "-o", tmp_path / "grid.png", "--steps", "1", "--quiet", *LOOK)
    assert code == 3
    assert err.splitlines()[0].startswith("error: a.png: memory does not suffice ")
    assert (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("command", ["upscale", "compare"])
def test_a_model_too_large_is_one_line(tmp_path, folder, command):
    """In a process of its own: what this one has freed would do for the model's many small tensors."""
    wide = dataclasses.replace(tiny.ARCHITECTURE, num_layers=2, num_heads=16, head_dim=64, rope_axes=(16, 24, 24))
    model = tiny.write_base(tmp_path / "wide.safetensors", wide, torch.bfloat16)  # 292 MiB in float32
    code = (
        "import sys, resource, teasr_core.cli.commands, teasr_core.cli.upscale, teasr_core.cli.compare\n"
        "import teasr_core.model.qwen_velocity\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, -1))\n"
        "sys.exit(teasr_core.cli.commands.main(sys.argv[1:]))"
    )
    arguments = (command, folder / "b.png", "-o", tmp_path / "b.png", "--quiet", "--model", model, *LOOK)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]  # diffusers may say something of its own before
    assert done.returncode == 2 and last.startswith("error: memory does not suffice to load the model: "), done.stderr
    assert not (tmp_path / "b.png").exists()


def test_an_image_too_large_is_not_called_damaged(request, folder):
    write_unreadable(folder / "a.png")
    request.getfixturevalue("little_memory")
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        load_picture(folder / "a.png")
    assert is_out_of_memory(caught.value) and not isinstance(caught.value, InputError)
