"""`distill --vram`: another name of memory.vram_gb; the budget is shown, and refused, before a weight is read."""

import contextlib
import io

import pytest

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from helpers.tiny.distill_run import changed, write_toml
from teasr_core.errors import InputError
from training.cli.commands import main
from training.frozen_base import qwen_base
from training.frozen_base.prompt_file import write_prompt
from training.memory.config import MemoryConfig, vram_gb_of
from training.run.checkpoint import list_checkpoints, load_checkpoint

GROUPS = ("image stream", "text stream", "modulation", "LoRA + optimiser", "activations", "decode + LPIPS")


@pytest.fixture
def toml(distillation, tmp_path):
    return str(write_toml(tmp_path / "run.toml", distillation(train={"steps": 1})))


@pytest.fixture
def qwen_toml(distillation, tmp_path):
    """Of a tiny Qwen-Image on disk."""
    folder = tiny_qwen.write_vae(tiny_qwen.write_folder(tmp_path / "Qwen-Image"))
    prompt = tmp_path / "prompt.safetensors"
    write_prompt(prompt, tiny.prompt_embeds(tiny_qwen.ARCHITECTURE, seed=5), "", "tiny")
    config = changed(
        distillation(), base={"path": str(folder), "prompt": str(prompt), "dtype": "fp32"}, train={"steps": 1},
        loss={"loss_space": "latent"},
    )  # fmt: skip
    return str(write_toml(tmp_path / "qwen.toml", config))


def saved_vram(tmp_path) -> float:
    """What the run's checkpoint has as memory.vram_gb."""
    _, state = load_checkpoint(list_checkpoints(tmp_path / "run")[-1])
    return state["config"]["memory"]["vram_gb"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--vram", "3"], 3.0),
        (["--vram=2.5", "memory.vram_gb=9"], 2.5),  # the flag wins; an override may stand behind it
        (["memory.vram_gb=9", "--vram", "auto", "run.seed=1"], 0.0),
        (["memory.vram_gb=9"], 9.0),
    ],
    ids=str,
)
def test_the_flag_is_the_key(toml, tmp_path, arguments, wanted):
    assert main(["distill", toml, *arguments]) == 0
    assert saved_vram(tmp_path) == wanted


@pytest.mark.parametrize("base", ["toml", "qwen_toml"])
def test_the_budget_comes_before_the_training(request, base):
    both = io.StringIO()
    with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
        assert main(["distill", request.getfixturevalue(base), "--vram", "4"]) == 0
    lines = both.getvalue().splitlines()
    found = [next(i for i, line in enumerate(lines) if line.startswith(name)) for name in (*GROUPS, "peak", "step 1 ")]
    assert found == sorted(found)


@pytest.mark.parametrize("base", ["toml", "qwen_toml"])
def test_what_does_not_fit_is_refused_before_a_weight_is_read(request, tmp_path, monkeypatch, capsys, base):
    def read(*_args: object, **_options: object) -> None:
        raise AssertionError("weights are read")

    path = request.getfixturevalue(base)
    monkeypatch.setattr(qwen_base, "load_packed", read)
    monkeypatch.setattr(qwen_base, "load_qwen_vae", read)
    monkeypatch.setattr("teasr_core.weight_files.base_file.build_velocity", read)
    assert main(["distill", path, "--vram", "0.5"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 0.5 GiB of GPU memory at 32 px")
    needed = float(error.split("the smallest plan needs ")[1].split(" GiB (image stream nf4")[0])
    assert list_checkpoints(tmp_path / "run") == []
    with pytest.raises(AssertionError, match="weights are read"):  # it bites, and what was named does fit
        main(["distill", path, "--vram", str(needed + 0.1)])


@pytest.mark.parametrize("text", ["0", "-3", "inf", "nan", "much", ""])
def test_other_values_are_refused(toml, capsys, text):
    assert main(["distill", toml, f"--vram={text}"]) == 2
    assert f"--vram is '{text}': expected auto or GiB above 0" in capsys.readouterr().err
    with pytest.raises(InputError):
        vram_gb_of(text)


def test_auto_is_the_default_of_the_key():
    assert vram_gb_of("auto") == MemoryConfig().vram_gb and MemoryConfig(vram_gb=vram_gb_of("auto")).budget_gb == "auto"
    assert vram_gb_of("24") == 24.0


@pytest.mark.parametrize(
    "arguments",
    [["distill", "a.toml", "--vram", "3", "b"], ["distill", "a.toml", "--ram=3"], ["degrade", "a", "b", "c=d"]],
    ids=" ".join,
)
def test_what_is_no_override_is_still_refused(capsys, arguments):
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2 and f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err
