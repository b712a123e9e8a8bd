"""`benchmarks.gpu_check`: its items at tiny size on the CPU, its budget of time, going on, and what it prints."""

import json
import re
import sys
import time

import pytest
import torch

from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.items import HELD, INFERENCE, PLANS, Item, ordered
from benchmarks.gpu_check.session import ROOT, Session, command_of
from benchmarks.gpu_check.table import markdown
from benchmarks.gpu_check.work import WORK, plan_overrides
from teasr_core.errors import InputError
from training.bench.settings import bench_settings
from training.bench.step import FULL, PLAIN
from training.config.presets import config_file
from training.config.toml import read_toml
from training.frozen_base.settings import memory_plan

CPU = torch.device("cpu")
MACHINE = {"name": "card", "gib": 24.0, "free_gib": 23.5, "host_gib": 60.0, "torch": "2", "cuda": "12", "tflops": 600.0}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return one_thread


# What is measured


@pytest.mark.parametrize("item", [PLANS[-1], HELD[2], HELD[4]], ids=lambda item: item.name)
def test_a_training_item_runs_and_holds_the_weights_as_it_says(item):
    figures = WORK[item.work](CPU, True, item.options)
    assert figures[FULL]["seconds"] > 0 and figures[FULL]["peak"] > figures[PLAIN]["held"] > 0
    if item.work == "weights":
        assert {group: figures["plan"]["groups"][group] for group in item.options} == item.options
        return
    planned = full_plan(item)
    assert figures["plan"]["groups"] == {name: str(group) for name, group in planned.groups.items()}
    assert figures["plan"]["checkpointing"] == str(planned.checkpointing) and figures["decode"] is True


@pytest.mark.parametrize("item", PLANS, ids=lambda item: item.name)
def test_the_memory_that_a_plan_asks_for_covers_it(item):
    planned = full_plan(item)
    assert planned.device_gib <= item.gib and 1.2 * planned.host_gib <= item.host_gib


def full_plan(item):
    path = config_file(f"distill/{item.options['preset']}")
    full = bench_settings(path, plan_overrides(item.options), "qwen-image")
    return memory_plan(full.config, full.architecture, full.prompt_tokens)


@pytest.mark.parametrize("item", [item for item in INFERENCE if item.work != "comfyui"], ids=lambda item: item.name)
def test_every_inference_item_runs(item):
    if item.options.get("storage") == "nf4":
        pytest.importorskip("bitsandbytes")
    figures = WORK[item.work](CPU, True, item.options)
    calls = [figures] if item.work == "forward" else [value for value in figures.values() if isinstance(value, dict)]
    assert len(calls) == (1 if item.work == "forward" else 2)
    assert all(call["seconds"] > 0 and call["peak_gib"] > 0 for call in calls)


def test_the_plans_are_the_presets_from_large_to_small():
    memory = [
        read_toml(config_file(f"distill/{plan.options['preset']}"), plan_overrides(plan.options))["memory"]["vram_gb"]
        for plan in PLANS
    ]
    assert memory == sorted(memory, reverse=True)
    names = [item.name for item in ordered(float("inf"), float("inf"))]
    assert len(set(names)) == len(names) == len(PLANS) + len(INFERENCE) + len(HELD)


@pytest.mark.parametrize(("gib", "host", "first"), [
    (140, 200, "h200"), (79, 200, "a100-80"), (47, 100, "48gb"), (23.5, 60, "24gb"), (15, 64, "16gb"),
    (14.6, 64, "16gb_in_11"),
    (23.5, 20, "h200"),  # none does
])  # fmt: skip
def test_the_largest_plan_that_fits_comes_first(gib, host, first):
    assert ordered(gib, host)[0].name == f"train_{first}"


def test_a_slower_card_takes_longer():
    item = Item("a", "A", "", "train", 10, 20)
    assert [item.seconds(tflops, False) for tflops in (600, 60)] == [30, 210]


# Time, files, processes


def script(body):
    """A process that stands for an item's: it prints what `body` says."""
    return [sys.executable, "-c", body]


BODIES = {
    "machine": f"print({json.dumps(MACHINE)!r})",
    "good": "print('a line'); print('{\"value\": 1}')",
    "cannot": 'print(\'{"skipped": "needs a package"}\')',
    "bad": "raise ValueError('it broke')",
    "slow": "import time; time.sleep(60)",
}


def session(path, minutes=1.0, bodies=BODIES, **options):
    notes = []
    made = Session(path, "cpu", False, time.monotonic() + 60 * minutes,
                   lambda item, _device, _tiny: script(bodies[item.work]), notes.append, **options)  # fmt: skip
    made.open()
    return made, notes


def item(name, setup=1.0, gib=0.0):
    return Item(name, f"title of {name}", "docs/training/memory.md", name, setup, 0, gib)


def test_each_item_is_saved_at_once_and_done_ones_are_not_run_again(tmp_path):
    path = tmp_path / "out.json"
    first, _ = session(path)
    assert first.run([item("good")]) == {}
    saved = json.loads(path.read_text())
    assert saved["items"]["good"]["figures"] == {"value": 1} and saved["machine"] == MACHINE
    first.run([item("bad"), item("cannot")])
    states = {name: found["state"] for name, found in json.loads(path.read_text())["items"].items()}
    assert states == {"good": "done", "bad": "failed", "cannot": "skipped"}
    assert (
        first.items["bad"]["reason"] == "ValueError: it broke" and first.items["cannot"]["reason"] == "needs a package"
    )
    again, notes = session(path, bodies=BODIES | {"good": "raise SystemExit(1)", "bad": BODIES["good"]})
    again.run([item("good"), item("bad")])
    assert "good: done before" in notes and again.items["good"]["figures"] == {"value": 1}
    assert again.items["bad"]["state"] == "done"  # what failed is tried again


def test_the_budget_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_check.session.LEAST_TIMEOUT", 2.0)
    made, _ = session(tmp_path / "out.json", minutes=0.5)
    started = time.monotonic()
    left_out = made.run([item("slow"), item("good", setup=400), item("cannot", gib=80)])
    assert time.monotonic() - started < 20
    assert made.items["slow"] == {
        "state": "late",
        "reason": "stopped after 2 s",
        "seconds": made.items["slow"]["seconds"],
    }
    made.deadline = time.monotonic() + 1.5
    made.run([item("slow")])
    assert made.items["slow"]["reason"].endswith("give it more with --minutes and --only slow")
    assert left_out["good"].startswith("takes about 400 s, ") and left_out["good"].endswith(" s are left")
    assert left_out["cannot"] == "needs 80 GiB on the card, 23.5 are free"


def test_what_failed_comes_after_what_was_never_tried(tmp_path):
    path = tmp_path / "out.json"
    session(path)[0].run([item("bad"), item("cannot")])
    again, notes = session(path)
    again.run([item("bad"), item("cannot"), item("good")])
    assert [line.split(":")[0] for line in notes if ", about" in line] == ["good", "bad", "cannot"]
    third, _ = session(path)
    left_out = third.run([item("bad", setup=400), item("good")])
    text = markdown(MACHINE, third.items, [item("bad", setup=400)], left_out)
    assert re.search(r"it takes about 400 s, \d+ s are left; before: failed, ValueError: it broke", text)


def test_a_process_that_is_stopped_takes_its_children_along(tmp_path, monkeypatch):
    """A child holds the pipes and the card's memory: reading on until it ends would break the limit of time."""
    monkeypatch.setattr("benchmarks.gpu_check.session.LEAST_TIMEOUT", 2.0)
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(6); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    made, _ = session(tmp_path / "out.json", bodies=BODIES | {"slow": parent})
    started = time.monotonic()
    made.run([item("slow", setup=0.5)])
    assert made.items["slow"]["state"] == "late" and time.monotonic() - started < 6
    time.sleep(8)
    assert not mark.exists()


def test_a_process_that_the_machine_kills_is_named(tmp_path):
    body = "import os, signal; print('{\"value\": 1}', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    made, _ = session(tmp_path / "out.json", bodies=BODIES | {"bad": body})
    made.run([item("bad"), item("good")])
    assert made.items["bad"]["reason"].startswith("killed by signal 9") and made.items["good"]["state"] == "done"


def test_results_of_another_machine_or_size_are_refused(tmp_path):
    path = tmp_path / "out.json"
    session(path)[0].run([item("good")])
    other = BODIES | {"machine": f"print({json.dumps(MACHINE | {'name': 'another'})!r})"}
    with pytest.raises(InputError, match="holds results of 'card' at full size, this is 'another': give another --out"):
        session(path, bodies=other)
    path.write_text("{}")
    with pytest.raises(InputError, match="holds no results of this command: give another --out"):
        session(path)
    with pytest.raises(InputError, match=r"the device cpu cannot be used \(RuntimeError: no driver\)"):
        session(path, bodies={"machine": "raise RuntimeError('no driver')"})


# The command


def test_the_table_shows_what_was_measured_and_names_the_rest():
    plan, tile, held = PLANS[3], INFERENCE[0], HELD[0]
    phases = {"flow": 2 * 2**30, "decode": 3 * 2**30}
    step = {"seconds": 4.5, "peak": 3 * 2**30, "phases": phases}
    groups = {"image_stream": "fp8 resident", "text_stream": "fp8 resident", "modulation": "bf16 swept"}
    figures = {"plan": {"groups": groups, "checkpointing": "all", "device_gib": 19.7}, "reserved": 0, FULL: step,
               PLAIN: step | {"seconds": 0.75}}  # fmt: skip
    results = {
        plan.name: {"state": "done", "figures": figures},
        tile.name: {"state": "done", "figures": {"seconds": 1.5, "held_gib": 39.1, "peak_gib": 40.25}},
        "comfyui": {"state": "done", "figures": {"side_px": 1024, "ratio": 1.02, "teasr_seconds": 1.02, "layers": 8,
                                                 "stock_seconds": 1.0}},
        "vae": {"state": "failed", "reason": "it broke"},
    }  # fmt: skip
    vae = next(item for item in INFERENCE if item.name == "vae")
    comfyui = next(item for item in INFERENCE if item.name == "comfyui")
    text = markdown(MACHINE, results, [plan, tile, comfyui, vae, held], {held.name: "needs 14 GiB on the card"})
    row = next(line for line in text.splitlines() if line.startswith("| SAD + TAR step, preset 24gb |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [*groups.values(), "all", "19.70", "3.00", "-", "4.50", "0.75", "decode"]
    assert "| 1024 px tile, bf16 | 39.10 | 40.25 | 1.500 |" in text and "takes 1.020 of a stock one" in text
    assert "- `vae` (Qwen-Image's VAE, 1024 px, for docs/using/qwen_image.md): failed, it broke" in text
    assert (
        f"- `{held.name}` (8 blocks, bf16 resident, for docs/training/memory.md): it needs 14 GiB on the card" in text
    )


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_check", *map(str, arguments)])
    code = main()
    return code, *capsys.readouterr()


def test_the_command_runs_here_at_tiny_size_and_goes_on(monkeypatch, capsys, tmp_path):
    out = tmp_path / "gpu_check.json"
    flags = ("--device", "cpu", "--tiny", "--out", out, "--only", "vae")
    code, printed, _ = run_main(monkeypatch, capsys, *flags)
    assert code == 0 and "| Qwen-Image's VAE, 1024 px, decode |" in printed
    saved = json.loads(out.read_text())
    assert saved["items"]["vae"]["state"] == "done" and saved["is_tiny"] is True
    code, again, notes = run_main(monkeypatch, capsys, *flags)
    assert code == 0 and again.splitlines()[1:] == printed.splitlines()[1:] and "vae: done before" in notes


@pytest.mark.parametrize(("flags", "message"), [
    (["--device", "cpu"], "no GPU was found: .*--device cpu --tiny"),
    (["--device", "cpu", "--tiny", "--minutes", "0"], "--minutes is 0: expected more than 0"),
    (["--device", "cpu", "--tiny", "--only", "vaee"], "--only names vaee: known are .*vae"),
    (["--device", "cpu", "--tiny", "--out", "/none/a.json"], "there is no folder /none"),
])  # fmt: skip
def test_bad_flags_are_one_line(monkeypatch, capsys, flags, message):
    code, printed, said = run_main(monkeypatch, capsys, *flags)
    assert code == 2 and not printed and len(said.splitlines()) == 1 and re.search(message, said)


def test_a_machine_without_comfyui_names_that_item(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    flags = ("--device", "cpu", "--tiny", "--out", tmp_path / "out.json", "--only", "comfyui")
    code, printed, _ = run_main(monkeypatch, capsys, *flags)
    assert code == 0 and f"needs a ComfyUI, {tmp_path} holds none: set COMFYUI_PATH" in printed
    comfyui = next(item for item in INFERENCE if item.name == "comfyui")
    command = command_of(comfyui, "cpu", True, tmp_path, "python")
    assert command[0] == "python" and (ROOT / "benchmarks" / "gpu_check" / "comfyui.py").samefile(command[1])
