"""The step that `benchmarks.gpu_check` times in ComfyUI's own Python, at tiny size on the CPU."""

import json
import subprocess

from conftest import ROOT


def test_a_step_of_teasr_is_timed_beside_a_stock_one(comfyui, server_python):
    script = ROOT / "benchmarks" / "gpu_check" / "comfyui.py"
    command = [server_python, str(script), "--comfyui", str(comfyui), "--device", "cpu", "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["stock_seconds"] > 0 and 0.5 < figures["ratio"] < 5 and figures["layers"] == 2
