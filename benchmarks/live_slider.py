"""What does moving the slider cost on a real ComfyUI server, and what does the pack add to its start?

    COMFYUI_PATH=... COMFYUI_PYTHON=... python -m benchmarks.live_slider [--side 128] [--scale 4]

Run by a Python that has websocket-client, such as ComfyUI's own. Seconds from queueing a prompt to its end:
    first        cold: loading, encoding, one step
    reseeded     one step with another seed: what a run costs that loads and encodes nothing
    moved_N      the slider moved to N steps it has not visited
    visited      back to a step count it has visited: no step runs
    strength     strength moved: no step runs
    pack_import  what ComfyUI itself prints of the pack's import
The last line is JSON, with `visited_to_first` and `reseeded_to_first`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.comfy import server as comfy_server  # noqa: E402

MOVES = (2, 4, 8)


def seconds(server: comfy_server.Server, picture: str, **inputs: Any) -> float:
    """From queueing the quick start on `picture` to its end."""
    prompt = comfy_server.workflow("teasr_quick_start", LoadImage={"image": picture}, TEASRUpscale=inputs)
    start = time.perf_counter()
    run = server.run(prompt)
    assert run.error is None, run.error
    return time.perf_counter() - start


def pack_import_seconds(server: comfy_server.Server) -> float:
    """From the table of import times that ComfyUI writes at its start."""
    log = (server.folder / "server.log").read_text()
    found = re.search(r"([\d.]+) seconds.*custom_nodes/teasr", log)
    assert found, "the server's log has no import time of the pack"
    return float(found[1])


def measure(server: comfy_server.Server, side: int, scale: float) -> dict[str, float]:
    picture = comfy_server.write_picture(server, "photo.png", side, side)
    size = {"size.scale": scale}
    result = {"first": seconds(server, picture, steps=1, **size)}
    result["reseeded"] = seconds(server, picture, steps=1, seed=1, **size)
    for steps in MOVES:
        result[f"moved_{steps}"] = seconds(server, picture, steps=steps, **size)
    result["visited"] = seconds(server, picture, steps=1, **size)
    result["strength"] = seconds(server, picture, steps=1, strength=0.5, **size)
    result["pack_import"] = pack_import_seconds(server)
    result["visited_to_first"] = result["visited"] / result["first"]
    result["reseeded_to_first"] = result["reseeded"] / result["first"]
    return {key: round(value, 3) for key, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128, help="of the picture in pixels")
    parser.add_argument("--scale", type=float, default=4.0)
    arguments = parser.parse_args()
    with comfy_server.from_environment() as server:
        print(json.dumps(measure(server, arguments.side, arguments.scale)))


if __name__ == "__main__":
    main()
