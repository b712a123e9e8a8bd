"""`python scripts/run.py demo | test | lint`: set up .venv as far as needed, then do it.

Uses nothing but the standard library of Python >= 3.10, so that it runs before anything is installed. The virtual
environment is made once for each set of extras and again when pyproject.toml changes.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# task -> (extra of pyproject.toml, commands)
TASKS = {
    "demo": ("standalone", [["-m", "teasr_core", "demo", "--overwrite"]]),
    "test": ("dev", [["-m", "pytest"]]),
    "lint": ("dev", [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "pyright"]]),
}


def main() -> int:
    task = sys.argv[1] if len(sys.argv) > 1 else ""
    if task not in TASKS:
        print(f"error: '{task}' is no task: run.py {' | '.join(TASKS)}", file=sys.stderr)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 (an older Python may well run this file)
        print(f"error: this is Python {sys.version.split()[0]}: TEASR needs 3.10 or newer", file=sys.stderr)
        return 2
    extra, commands = TASKS[task]
    if not prepare(extra):
        return 2
    for command in commands:
        code = subprocess.run([str(PYTHON), *command, *sys.argv[2:]], cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


def prepare(extra: str) -> bool:
    """Make .venv with the packages of `extra`; False, after one line on stderr, when that is impossible."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamps = [VENV / f".{name}.stamp" for name in ({extra, "dev"})]  # dev holds everything
    if PYTHON.exists() and any(stamp.exists() and stamp.read_text() == wanted for stamp in stamps):
        return True
    if not PYTHON.exists():
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            print("error: this Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)",
                  file=sys.stderr)  # fmt: skip
            return False
        print("making .venv", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode:
            print("error: .venv could not be made: see above", file=sys.stderr)
            return False
    print(f"installing what '{extra}' needs (once)", flush=True)
    install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f"{ROOT}[{extra}]"]
    if subprocess.run(install, check=False).returncode:
        print("error: pip could not install the packages: see above", file=sys.stderr)
        return False
    (VENV / f".{extra}.stamp").write_text(wanted)
    return True


if __name__ == "__main__":
    sys.exit(main())
