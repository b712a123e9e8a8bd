"""Shared modules in reach (tests/tiny.py, tests/reference_qwen.py); one thread, since the models are tiny."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(path) for path in (TESTS, TESTS.parent) if str(path) not in sys.path]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
