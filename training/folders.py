"""Where something is to be written: what of the path is there already."""

from __future__ import annotations

from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest one above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
