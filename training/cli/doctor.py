"""`doctor`: list what this machine lacks and how to get it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from teasr_core.cli.exit_codes import BAD_INPUT, DONE

from ..config.presets import config_file


def add_doctor(commands: Any) -> None:
    """Add `doctor` to the subparsers `commands`."""
    parser = commands.add_parser("doctor", help="what is missing on this machine, or for a config, and how to get it")
    parser.add_argument("config", type=config_file, nargs="?", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of lines")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from ..doctor.examine import examine
    from ..doctor.finding import MISSING

    findings = examine(args.config, args.overrides)
    missing = sum(finding.level == MISSING for finding in findings)
    if args.json:
        print(json.dumps({"missing": missing, "findings": [dataclasses.asdict(finding) for finding in findings]}))
        return BAD_INPUT if missing else DONE
    for finding in findings:
        print(finding.line())
    print(f"{missing} missing" if missing else "nothing is missing")
    return BAD_INPUT if missing else DONE
