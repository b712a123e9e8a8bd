"""File names that stdout cannot show, terminals and readers that have gone, full disks: every image is done."""

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import model as tiny
from teasr_core.cli.commands import main
from teasr_core.cli.terminal import LastingStream, lasting_streams, write_line

pytestmark = pytest.mark.usefixtures("tiny_model")
ROOT = Path(__file__).parents[3]
NO_TEXT = os.fsdecode(b"a\xe9.png")  # a name in Latin-1, where names are UTF-8


@pytest.fixture
def upscale(tmp_path, monkeypatch):
    """upscale(name, encoding, *options): (exit code, stdout in a strict encoding) of it, b.png and c.png."""

    def call(name, encoding, *options):
        folder = tmp_path / "in"
        folder.mkdir()
        for each in ("b.png", "c.png"):
            tiny.write_picture(folder / each)
        try:
            (folder / "c.png").rename(folder / name)
            tiny.write_picture(folder / "c.png")
        except OSError:
            pytest.skip("this file system takes no such name")
        stdout = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        code = main(["upscale", str(folder), "-o", str(tmp_path / "out"), "--dtype", "fp32", "--scale", "1", *options])
        assert sorted(os.listdir(tmp_path / "out")) == sorted([name, "b.png", "c.png"])
        return code, stdout.buffer.getvalue().decode(encoding)

    return call


@pytest.mark.parametrize(
    ("name", "encoding", "shown"),
    [
        ("a\u7167\u7247.png", "cp1252", r"a\u7167\u7247.png"),
        (NO_TEXT, "utf-8", r"a\udce9.png"),
        ("ä.png", "ascii", r"\xe4.png"),
    ],
    ids=("cp1252", "no text", "ascii"),
)
def test_names_that_stdout_cannot_show(upscale, name, encoding, shown):
    code, out = upscale(name, encoding)
    assert code == 0
    assert sum(shown in line for line in out.splitlines()) == 1 and len(out.splitlines()) == 4


@pytest.mark.parametrize("name", [NO_TEXT, "ä\U0001f600.png"], ids=("no text", "emoji"))
@pytest.mark.parametrize("target", ["file", "stdout"])
def test_the_report_holds_every_name(upscale, tmp_path, name, target):
    """As a script reads it, byte for byte."""
    code, out = upscale(name, "cp1252", "--json", str(tmp_path / "r.json") if target == "file" else "-")
    assert code == 0
    report = json.loads((tmp_path / "r.json").read_bytes() if target == "file" else out)
    assert {os.fsencode(Path(image["input"]).name) for image in report["images"]} == {
        os.fsencode(each) for each in (name, "b.png", "c.png")
    }


# Streams that fail. Each command has a process of its own, since Python writes to its streams once more when it exits.


@pytest.fixture
def command(tmp_path):
    """The command that restores three images, the second of which is damaged; it must exit with 3."""
    (tmp_path / "in").mkdir()
    for k in range(3):
        tiny.write_picture(tmp_path / "in" / f"{k}.png")
    (tmp_path / "in" / "1.png").write_bytes(b"no image")
    base = tiny.write_base(tmp_path / "base.safetensors")
    options = ("--model", base, "--dtype", "fp32", "--scale", "1")
    return [
        sys.executable,
        "-m",
        "teasr_core",
        *map(str, ("upscale", tmp_path / "in", "-o", tmp_path / "out", *options)),
    ]


def check_that_all_is_done(tmp_path, code, told):
    assert code == 3, told
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "2.png"]
    for word in ("Traceback", "Errno", "Exception"):
        assert word not in told


@pytest.mark.parametrize("options", [[], ["--json", "-"]], ids=["lines", "report"])
def test_a_reader_that_has_gone_does_not_end_the_run(tmp_path, command, options):
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [*command, *options], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=600, check=False
    )
    os.close(writer)
    check_that_all_is_done(tmp_path, run.returncode, run.stderr)
    assert "error: 1 of 3 images failed" in run.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("redirection", ["> /dev/full", "2> /dev/full", "2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_full_or_absent_stream_does_not_end_the_run(tmp_path, command, redirection):
    line = f"{shlex.join(command)} {redirection}"
    run = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    check_that_all_is_done(tmp_path, run.returncode, run.stdout + run.stderr)


def test_a_terminal_that_goes_away_does_not_end_the_run(tmp_path, command):
    """As after `disown`: the hang-up is ignored, and every later write to the terminal fails."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = os.openpty()

    def take_the_terminal():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    run = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_the_terminal)
    os.close(theirs)
    told = b""
    while b"0.png: " not in told:
        told += os.read(ours, 1024)
    os.close(ours)
    check_that_all_is_done(tmp_path, run.wait(600), told.decode())


class Full(io.StringIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_lasting_stream_drops_what_cannot_be_written():
    closed = io.StringIO()
    closed.close()
    for broken in (None, closed, Full()):
        stream = LastingStream(broken)
        print("lost", file=stream, flush=True)
        assert not stream.isatty()
    whole = io.StringIO()
    print("kept", file=LastingStream(whole))
    assert whole.getvalue() == "kept\n"


def test_an_error_of_our_own_is_not_hidden():
    with pytest.raises(UnicodeEncodeError):
        print("ä", file=LastingStream(io.TextIOWrapper(io.BytesIO(), "ascii")))


def test_the_streams_come_back(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    before = sys.stdout
    with lasting_streams():
        print("lost", file=sys.stderr)
        assert sys.stdout is not before
    assert sys.stdout is before and sys.stderr is None


def test_a_name_stays_one_line(capsys):
    """A file name may hold line breaks and codes that steer a terminal."""
    write_line("a\nb\r\nc\x1b[31m\x07\td é.png")
    assert capsys.readouterr().out == "a b c\\x1b[31m\\x07\\td é.png\n"


def test_pillow_warns_nobody(run, tmp_path):
    """Pillow's own warnings, which other readers of pictures than ours may cause."""
    import warnings

    with warnings.catch_warnings():
        run("info", tmp_path / "missing")
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 1, "PIL.TiffImagePlugin")
            warnings.warn_explicit("ours", UserWarning, "a.py", 1, "teasr_core.a")
    assert [str(warning.message) for warning in caught] == ["ours"]
