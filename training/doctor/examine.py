"""`doctor`: what a machine has and lacks for TEASR, one finding a line, the remedy beside it (T16).

Only the standard library is imported with this module: it must run where the rest is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .finding import Finding
from .packages import ALWAYS, PACKAGES, comfyui_findings, package_finding, python_finding


def examine(config_path: Path | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """All findings, for base use or for a config."""
    from . import config as doctor_config
    from . import machine as doctor_machine

    findings = [python_finding(sys.version_info[:3]), *doctor_machine.findings()]
    asked = doctor_config.read(config_path, overrides) if config_path is not None else None
    needed = set(ALWAYS) | ({"tomli"} if sys.version_info < (3, 11) else set())
    needed |= asked.modules if asked is not None else set()
    findings += [package_finding(package, package.module in needed) for package in PACKAGES]
    needs_builtin = asked is None or asked.needs_builtin
    findings.append(doctor_machine.builtin_finding(needs_builtin))
    findings += comfyui_findings(os.environ)
    return findings + (asked.findings if asked is not None else [])
