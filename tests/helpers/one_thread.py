"""A fixture that a conftest imports: torch computes with one thread, since the models of the tests are tiny."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Set one thread for the whole session, because results are compared bit for bit with those of module fixtures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
