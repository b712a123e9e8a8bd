"""Errors of training alone; the others are `teasr_core.errors`."""

from __future__ import annotations

from teasr_core.errors import TeasrError


class DivergedError(TeasrError):
    """Training met too many steps without a finite gradient."""
