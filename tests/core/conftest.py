"""A tiny model in place of the shipped one, and the command line as a function."""

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.one_thread import one_thread  # noqa: F401, a fixture


@pytest.fixture(scope="session")
def tiny_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base under the shipped one's name."""
    from helpers.tiny import model as tiny

    return tiny.write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def tiny_model(tiny_assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base in place of the shipped one."""
    from teasr_core.weight_files import base_file

    monkeypatch.setattr(base_file, "ASSETS", tiny_assets)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments): (exit code, stdout, stderr) of `python -m teasr_core`."""
    from teasr_core.cli.commands import main

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the model is an error: what is refused must be refused before."""
    from teasr_core.cli import request as cli_request

    def load(*_args: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(cli_request, "load_restorer", load)
