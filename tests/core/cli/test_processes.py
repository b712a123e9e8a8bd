"""Several processes, each with its share of a folder: together the same files as one process alone (R31)."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.cli.processes import Processes, find_processes, own_device
from teasr_core.errors import InputError

ROOT = Path(__file__).parents[3]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
COUNT = 5


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def command(tmp_path):
    """command(out, *options): arguments for the folder of COUNT images, its third one bad, by a base file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(COUNT):
        tiny.write_picture(folder / f"{k}.png", 3, 6 + k, 9)
    (folder / "2.png").write_bytes(b"no image")
    base = tiny.write_base(tmp_path / "base.safetensors")

    def call(out, *options):
        fixed = ("--model", base, "--dtype", "fp32", "--scale", "2", "--steps", "2")
        return [str(a) for a in ("upscale", folder, "-o", tmp_path / out, *fixed, *options)]

    return call


def bytes_in(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(arguments):
    """Processes 0 and 1 of two, which can meet, as a launcher starts them."""
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", "teasr_core", *arguments], cwd=ROOT, text=True,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip


def test_two_processes_write_what_one_writes(tmp_path, run, command):
    """None ends before the other, and process 0 reports for both."""
    processes = start_two(command("two", "--json", tmp_path / "report.json"))
    assert run(*command("one"))[0] == 3
    outputs = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [3, 0], outputs
    assert bytes_in(tmp_path / "two") == bytes_in(tmp_path / "one")
    names = [[Path(line.split(": ")[0]).name for line in out.splitlines()] for out, _ in outputs]
    assert names == [["0.png", "4.png"], ["1.png", "3.png"]]
    assert "error: 2.png: " in outputs[0][1]
    assert "error: 1 of 5 images failed" in outputs[0][1]
    assert "error" not in outputs[1][1]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [Path(image["input"]).name for image in report["images"]] == [f"{k}.png" for k in range(COUNT)]
    assert (report["totals"]["written"], report["totals"]["failed"], report["exit_code"]) == (4, 1, 3)


def test_an_output_in_one_share_refuses_both(tmp_path, command):
    """Found before anything is begun, and nobody waits for the other."""
    (tmp_path / "two").mkdir()
    tiny.write_picture(tmp_path / "two" / "1.png")
    before = bytes_in(tmp_path / "two")
    processes = start_two(command("two"))
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert all("1.png exists already" in err and out == "" for out, err in outputs)
    assert bytes_in(tmp_path / "two") == before


def test_none_begins_before_all_are_here():
    store = torch.distributed.HashStore()
    begun = []
    first = threading.Thread(target=lambda: begun.append(Processes(0, 2, 0, True, store).wait_for_all()))
    first.start()
    first.join(0.3)
    assert first.is_alive() and not begun
    Processes(1, 2, 1, True, store).wait_for_all()
    first.join(60)
    assert not first.is_alive() and len(begun) == 1


def test_nobody_waits_for_ever_to_begin():
    with pytest.raises(InputError, match="process 1 of 3 finds no process 0: see why"):
        Processes(1, 3, 1, True, torch.distributed.HashStore()).wait_for_all(patience_s=0.2)
    assert Processes().meet() == Processes()
    Processes().wait_for_all()


def test_without_a_meeting_place_each_goes_its_own_way(tmp_path, run, command, monkeypatch):
    """The jobs of a cluster that cannot reach each other."""
    assert run(*command("one"))[0] == 3
    monkeypatch.setenv("WORLD_SIZE", "3")
    seen = {}
    for rank, code in ((2, 3), (0, 0), (1, 0)):
        monkeypatch.setenv("RANK", str(rank))
        before = set(seen)
        assert run(*command("three", "--json", tmp_path / "report.json"))[0] == code
        seen = bytes_in(tmp_path / "three") if (tmp_path / "three").exists() else {}
        assert len(set(seen) - before) == (0 if rank == 2 else 2)
        report = json.loads((tmp_path / f"report.rank{rank}.json").read_text())
        assert report["totals"]["images"] == (1 if rank == 2 else 2)
    assert seen == bytes_in(tmp_path / "one")
    assert not (tmp_path / "report.json").exists()


def test_resume_keeps_the_shares(tmp_path, run, command, monkeypatch):
    """Whatever another process has finished meanwhile, no image is done twice or by nobody."""
    assert run(*command("out"))[0] == 3
    (tmp_path / "out" / "0.png").unlink()
    (tmp_path / "out" / "3.png").unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, name in enumerate(("0.png", "3.png")):
        monkeypatch.setenv("RANK", str(rank))
        _, out, _ = run(*command("out", "--resume"))
        assert name in out.splitlines()[0]
    assert len(bytes_in(tmp_path / "out")) == 4


def test_one_process_unless_told_otherwise():
    assert find_processes({}) == Processes()
    assert find_processes({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}) == Processes()
    assert find_processes({"RANK": "1", "WORLD_SIZE": "4"}) == Processes(1, 4, 1)
    assert find_processes({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}).can_meet
    assert [k for k in range(9) if Processes(1, 4).is_mine(k)] == [1, 5]
    assert find_processes({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Processes(5, 8, 1)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "2", "RANK": "-1"},
        {"WORLD_SIZE": "2", "RANK": "x"}, {"WORLD_SIZE": "0", "RANK": "0"}, {"WORLD_SIZE": "many", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"},
    ],
)  # fmt: skip
def test_variables_that_make_no_sense(environment):
    with pytest.raises(InputError, match="WORLD_SIZE"):
        find_processes(environment)


def test_each_process_has_its_own_device():
    assert own_device("cuda", 1, 2) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="process 2 on this machine finds 2 cuda"):
        own_device("cuda", 2, 2)
    two = Processes(1, 2, 1)
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        assert two.place(device) == device
    assert Processes().place(torch.device("cuda")) == torch.device("cuda")
