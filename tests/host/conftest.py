"""Pictures and workflows for the server's tests."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.comfy import server as comfy_server


@pytest.fixture(scope="session")
def picture(server: comfy_server.Server) -> str:
    """photo.png (48 x 40) in the server's input folder: a smooth scene with edges and a little noise."""
    return comfy_server.write_picture(server, "photo.png", 48, 40)


@pytest.fixture(scope="session")
def large_picture(server: comfy_server.Server) -> str:
    """large.png (160 x 128): several tiles at x2."""
    return comfy_server.write_picture(server, "large.png", 160, 128)


@pytest.fixture(scope="session")
def shipped_workflow() -> Any:
    return comfy_server.workflow
