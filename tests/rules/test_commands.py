"""The commands that an installation adds start the same functions as `python -m`."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from training.config.toml import tomllib

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]


def test_there_are_two_and_the_core_knows_nothing_of_the_trainer():
    assert SCRIPTS == {"teasr": "teasr_core.__main__:start", "teasr-train": "training.__main__:start"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_shows_its_help(name, monkeypatch, capsys):
    module, function = SCRIPTS[name].split(":")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        getattr(importlib.import_module(module), function)()
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["teasr_core", "training"])
def test_a_missing_package_is_one_line(package):
    """-S leaves out everything that is installed."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", package, "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: the package '") and done.stderr.count("\n") == 1
