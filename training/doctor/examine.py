"""`doctor`: what a machine has and lacks for TEASR, one line for each finding, with its remedy.

This room imports nothing but the standard library and its own modules at import time, because it must run where
other packages are missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import config, machine
from .finding import Finding
from .packages import ALWAYS, PACKAGES, comfyui_findings, package_finding, python_finding


def examine(config_path: Path | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """List all findings, for the use of the built-in model or for a training config."""
    report = (
        config.examine(config_path, overrides) if config_path is not None else config.ConfigReport(uses_builtin=True)
    )
    needed_modules = {*ALWAYS, *report.modules}
    if sys.version_info < (3, 11):
        needed_modules.add("tomli")
    return [
        python_finding(sys.version_info[:3]),
        *machine.findings(),
        *(package_finding(package, package.module in needed_modules) for package in PACKAGES),
        machine.builtin_finding(report.uses_builtin),
        *comfyui_findings(os.environ),
        *report.findings,
    ]
