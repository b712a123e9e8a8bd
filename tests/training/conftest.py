"""Photographs, tiny runs of both trainers, a tiny base, and processes that are cheap to start."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.one_thread import one_thread  # noqa: F401, a fixture


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.tiny import run as tiny_run

    return tiny_run.write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """config(folder name, stages=..., **run): a tiny run, its codec's statistics from few crops."""
    from helpers.tiny import run as tiny_run
    from training.pretrain import model as pretrain_model

    monkeypatch.setattr(pretrain_model, "STATISTICS_CROPS", 8)
    yield lambda name="run", **options: tiny_run.config(photos, tmp_path / name, **options)
    torch.set_flush_denormal(False)  # the trainer switches it on


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.tiny import model as tiny

    return tiny.write_base(tmp_path_factory.mktemp("base") / "tiny_base.safetensors")


@pytest.fixture
def distillation(photos: Path, tiny_base: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """distillation(folder name, train={...}, ...): the config of a tiny distillation, fields replaced by section."""
    from helpers.tiny import distill_run as tiny_distill_run

    yield lambda name="run", **sections: tiny_distill_run.config(photos, tiny_base, tmp_path / name, **sections)
    torch.set_flush_denormal(False)  # the trainer switches it on


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Processes that need no time to start (`tests/helpers/forks.py`)."""
    from helpers.forks import Forks

    helper = Forks(tmp_path_factory.mktemp("forks") / "log.txt")
    yield helper
    helper.close()
