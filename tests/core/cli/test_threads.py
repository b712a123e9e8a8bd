"""How threads wait for one another is settled before torch is loaded, and the user's own choice stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from teasr_core.cli.threads import SPINS

ROOT = Path(__file__).parents[3]
# Stands for torch and says what libgomp would read at this moment.
TORCH = """
import os, sys
print("spins", os.environ.get("GOMP_SPINCOUNT"), flush=True)
os._exit(7)
"""


@pytest.mark.parametrize("command", [("teasr_core", "info", "x"), ("training", "degrade", "a", "b")])
@pytest.mark.parametrize(
    ("own", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waits_are_settled_before_torch(tmp_path, command, own, spins):
    (tmp_path / "torch.py").write_text(TORCH)
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = plain | own | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7 and done.stdout.splitlines()[-1] == f"spins {spins}", done.stderr
