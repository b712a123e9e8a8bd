"""A folder of images on the command line: subfolders, resume, bad ones among good ones, interruption (R31)."""

import os
import signal
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import model as tiny
from teasr_core.cli import request as cli_request
from teasr_core.cli import upscale as cli_upscale
from teasr_core.cli.jobs import plan_jobs
from teasr_core.errors import InputError

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def folder(tmp_path):
    """Three images of different sizes."""
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("a.png", "b.png", "c.jpg")):
        tiny.write_picture(tmp_path / "in" / name, 3, 7 + k, 10)
    return tmp_path / "in"


@pytest.fixture
def upscale(run, folder, tmp_path):
    """upscale(*options): (exit code, stdout, stderr) of the folder to `out` at twice the size."""

    def call(*options, target=tmp_path / "out"):
        return run("upscale", folder, "-o", target, "--dtype", "fp32", "--scale", "2", *options)

    return call


def bytes_in(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# Subfolders


def test_subfolders_are_kept(folder, upscale, tmp_path):
    for name in ("x/y", "x/.hidden", ".cache"):
        (folder / name).mkdir(parents=True)
        tiny.write_picture(folder / name / "a.png")
    tiny.write_picture(folder / "x" / "d.bmp")
    assert upscale()[0] == 0
    assert sorted(bytes_in(tmp_path / "out")) == ["a.png", "b.png", "c.jpg"]
    code, out, _ = upscale("--recursive", target=tmp_path / "all")
    assert code == 0 and out.splitlines()[-1].startswith("5 images: 5 written")
    everything = bytes_in(tmp_path / "all")
    assert sorted(everything) == [
        "a.png",
        "b.png",
        "c.jpg",
        os.path.join("x", "d.png"),
        os.path.join("x", "y", "a.png"),
    ]
    assert everything.items() >= bytes_in(tmp_path / "out").items()


def test_an_output_folder_inside_the_input_is_no_input(folder, upscale):
    out = folder / "x" / "out"
    assert upscale("--recursive", target=out)[0] == 0
    assert len(bytes_in(out)) == 3
    assert [job.name for job in plan_jobs(folder, out, is_recursive=True)] == ["a.png", "b.png", "c.jpg"]
    assert upscale("--recursive", "--resume", target=out)[1].startswith("3 images: 0 written, 3 existed already")


def test_only_subfolders_hold_images(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    with pytest.raises(InputError, match="--recursive"):
        plan_jobs(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="no image"):
        plan_jobs(tmp_path / "in", tmp_path / "out", is_recursive=True)


# Originals


@pytest.fixture
def refused(run, tmp_path):
    """refused(*arguments): stderr, one line, of a run that changes no file."""

    def call(*arguments):
        before = bytes_in(tmp_path)
        code, out, err = run(*arguments)
        assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "no original is replaced" in err
        assert bytes_in(tmp_path) == before
        return err

    return call


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_a_subfolder_does_not_come_out_over_its_parent(tmp_path, refused, option):
    (tmp_path / "a" / "a").mkdir(parents=True)
    tiny.write_picture(tmp_path / "a" / "x.png", 3, 7, 10)
    tiny.write_picture(tmp_path / "a" / "a" / "x.png", 3, 8, 10)
    assert "x.png" in refused("upscale", tmp_path / "a", "-o", tmp_path, "--recursive", option)


@pytest.mark.usefixtures("no_model")
def test_a_link_into_the_output_is_an_original(folder, refused, tmp_path):
    (tmp_path / "out").mkdir()
    original = tiny.write_picture(tmp_path / "out" / "d.png")
    try:
        (folder / "d.png").symlink_to(original)
    except OSError as error:
        pytest.skip(f"no symbolic links here ({error.strerror})")
    assert "d.png" in refused("upscale", folder, "-o", tmp_path / "out", "--overwrite")
    refused("upscale", folder / "d.png", "-o", original, "--overwrite")


@pytest.mark.usefixtures("no_model")
def test_an_image_does_not_replace_itself(folder, refused):
    refused("upscale", folder / "a.png", "-o", folder / "x" / ".." / "a.png", "--overwrite")


# Resume


def test_resume_passes_over_what_is_there(folder, upscale, tmp_path):
    whole = tmp_path / "whole"
    assert upscale(target=whole)[0] == 0
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_bytes(b"of an earlier run")
    assert upscale()[0] == 2  # today's contract: nothing is replaced or passed over unasked
    assert sorted(bytes_in(out)) == ["b.png"]
    code, text, err = upscale("--resume")
    assert (code, err) == (0, "")
    assert text.splitlines()[-1].startswith("3 images: 2 written, 1 existed already")
    assert bytes_in(out) == bytes_in(whole) | {"b.png": b"of an earlier run"}


@pytest.mark.usefixtures("no_model")
def test_resume_with_nothing_left_loads_no_model(folder, upscale, run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.png", "b.png", "c.jpg"):
        (out / name).write_bytes(b"")
    assert upscale("--resume")[:2] == (0, "3 images: 0 written, 3 existed already, 0:00\n")
    assert run("upscale", folder / "a.png", "-o", out / "a.png", "--resume") == (0, "", "")


@pytest.mark.usefixtures("no_model")
def test_resume_and_overwrite_contradict_each_other(upscale):
    code, _, err = upscale("--resume", "--overwrite")
    assert code == 2 and "--overwrite" in err and len(err.splitlines()) == 1


# Bad images among good ones


def test_a_bad_image_is_named_and_counted(folder, upscale, tmp_path):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    tiny.write_picture(folder / "d.png", 4)
    (tmp_path / "out").mkdir()
    code, out, err = upscale("--quiet")
    assert (code, out) == (3, "")
    lines = err.splitlines()
    assert lines[0].startswith("error: b.png: ")
    assert lines[1:] == ["error: 1 of 4 images failed (named above): the others are written"]
    assert sorted(bytes_in(tmp_path / "out")) == ["a.png", "c.jpg", "d.png"]
    tiny.write_picture(folder / "b.png")
    assert upscale("--resume")[0] == 0
    assert len(bytes_in(tmp_path / "out")) == 4


def test_a_folder_of_bad_images_alone(folder, upscale, tmp_path):
    for path in folder.iterdir():
        path.write_bytes(b"")
    code, out, err = upscale()
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == "error: 3 of 3 images failed (named above): none is written"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 10 GB)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_image_too_large_for_the_memory_does_not_stop_the_others(upscale, tmp_path, monkeypatch, error):
    load = cli_request.load_restorer

    def loaded(*args):
        restorer = load(*args)
        restore = restorer.restore

        def limited(image, *rest, **callbacks):
            if image.shape[-2] == 8:  # b.png
                raise error
            return restore(image, *rest, **callbacks)

        monkeypatch.setattr(restorer, "restore", limited)
        return restorer

    monkeypatch.setattr(cli_request, "load_restorer", loaded)
    code, _, err = upscale()
    assert code == 3
    assert err.startswith("error: b.png: memory does not suffice for 20 x 16 pixels: use a smaller --tile-px")
    assert sorted(bytes_in(tmp_path / "out")) == ["a.png", "c.jpg"]


def test_another_runtime_error_is_our_bug(upscale, monkeypatch):
    monkeypatch.setattr(cli_request, "load_restorer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        upscale()


def test_a_folder_of_results_that_cannot_be_made(folder, upscale, tmp_path):
    (folder / "x").mkdir()
    tiny.write_picture(folder / "x" / "d.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("a file in the way")
    code, _, err = upscale("--recursive")
    assert code == 3
    assert os.path.join("x", "d.png") in err.splitlines()[0]
    assert sorted(bytes_in(tmp_path / "out")) == ["a.png", "b.png", "c.jpg", "x"]


@pytest.mark.parametrize("alike", [("A.png", "a.PNG"), ("\u00c4.png", "A\u0308.png")])
def test_two_outputs_that_would_be_one_file(upscale, folder, tmp_path, monkeypatch, alike):
    """Where the folder takes both names for one, as on Windows and macOS, it is found before the work."""
    for name in alike:
        tiny.write_picture(folder / name)
    if not all(name in os.listdir(folder) for name in alike):
        pytest.skip("this file system holds only one of them")
    with monkeypatch.context() as patch:
        patch.setattr("teasr_core.whole_file.are_one_file", lambda a, b: True)
        code, _, err = upscale()
    assert code == 2 and "would both become" in err and len(err.splitlines()) == 1
    assert upscale()[0] == 0  # this one holds both
    assert set(alike) <= set(os.listdir(tmp_path / "out"))


# Interruption


@pytest.fixture
def handlers():
    """Handlers before and after: the command must put them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["restoring", "before it has its name"])
def test_an_interrupted_run_leaves_whole_images_and_goes_on(upscale, tmp_path, monkeypatch, number, moment):
    assert upscale(target=tmp_path / "whole")[0] == 0
    module, name = (cli_upscale, "restore_picture") if moment == "restoring" else (os, "replace")
    original, calls = getattr(module, name), []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
            if number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGTERM)  # a launcher's, which must not disturb the ending
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        code, out, err = upscale()
    assert code == 130
    assert len(out.splitlines()) == 1
    assert err == (
        "interrupted: 1 of 3 images are done, none is half-written; the same command with --resume goes on\n"
    )
    whole = bytes_in(tmp_path / "whole")
    assert bytes_in(tmp_path / "out") == {"a.png": whole["a.png"]}  # nor a temporary file
    assert upscale("--resume")[0] == 0
    assert bytes_in(tmp_path / "out") == whole


@pytest.mark.usefixtures("handlers")
def test_interrupted_while_overwriting(upscale, tmp_path, monkeypatch):
    assert upscale()[0] == 0
    monkeypatch.setattr(cli_upscale, "restore_picture", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = upscale("--overwrite", "--quiet")
    assert code == 130
    assert err.endswith("; the same command begins anew\n")
    assert len(bytes_in(tmp_path / "out")) == 3


def test_an_ignored_signal_stays_ignored(upscale, monkeypatch):
    """`nohup` and shells' background jobs ignore Ctrl-C on purpose."""
    original, restore = signal.signal(signal.SIGINT, signal.SIG_IGN), cli_upscale.restore_picture

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return restore(*args)

    monkeypatch.setattr(cli_upscale, "restore_picture", interrupted)
    try:
        assert upscale()[0] == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, original)


def test_outside_the_main_thread(upscale, tmp_path):
    """Python takes no signal handlers there; everything else works."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(upscale("--quiet")[0]))
    thread.start()
    thread.join()
    assert codes == [0] and len(bytes_in(tmp_path / "out")) == 3


def test_sizes_from_headers_are_those_of_the_pixels(tmp_path):
    from teasr_core.picture_files.read import load_picture, read_size

    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.jpg"
        Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(path, exif=exif)
        assert read_size(path) == tuple(load_picture(path).rgb.shape[:1:-1])
    (tmp_path / "text.png").write_text("no image")
    assert read_size(tmp_path / "text.png") is None
    assert read_size(tmp_path / "missing.png") is None
