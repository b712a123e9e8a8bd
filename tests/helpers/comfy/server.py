"""A real ComfyUI server on the CPU, in a process of its own, with this repository as a custom node."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
START_SECONDS = 300  # a busy machine takes ten times an idle one
RUN_SECONDS = 180


@dataclass
class Run:
    """What one prompt did: executed node ids in order, cached ones, (time, value, max) of the progress, the error, what
    each output node showed by its id."""

    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[float, int, int]] = field(default_factory=list)
    previews: int = 0
    interrupted: float | None = None
    error: dict[str, Any] | None = None
    images: list[dict[str, str]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Queued:
    """A prompt in the server's queue, and the websocket that hears of it."""

    link: Any
    prompt_id: str


class Server:
    """The HTTP and websocket interface of one running ComfyUI."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process, self.port, self.folder = process, port, folder

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as reply:
            content = reply.read()
        return json.loads(content) if content else None

    def queue(self, prompt: dict[str, Any]) -> Queued:
        """Put a prompt behind what is queued already; `follow` tells what became of it."""
        import websocket

        client = uuid.uuid4().hex
        link = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=RUN_SECONDS)
        return Queued(link, self.call("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"])

    def follow(self, queued: Queued, on_progress: Any = None) -> Run:
        """Wait for the end of a queued prompt. `on_progress(run)` may press cancel."""
        run = Run()
        try:
            while True:
                message = queued.link.recv()
                if isinstance(message, bytes):
                    run.previews += 1
                    continue
                event = json.loads(message)
                data = event.get("data", {})
                if data.get("prompt_id") != queued.prompt_id:
                    continue
                if event["type"] == "executing" and data["node"] is None:
                    break  # the history is complete only now
                self._note(run, event["type"], data)
                if event["type"] == "progress" and on_progress:
                    on_progress(run)
        finally:
            queued.link.close()
        run.outputs = self.call(f"/history/{queued.prompt_id}")[queued.prompt_id]["outputs"]
        run.images = [image for output in run.outputs.values() for image in output.get("images", [])]
        return run

    def run(self, prompt: dict[str, Any], on_progress: Any = None) -> Run:
        """Queue a prompt and follow it to its end."""
        return self.follow(self.queue(prompt), on_progress)

    @staticmethod
    def _note(run: Run, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing":
            run.executed.append(data["node"])
        elif kind == "execution_cached":
            run.cached += data["nodes"]
        elif kind == "progress":
            run.progress.append((time.perf_counter(), data["value"], data["max"]))
        elif kind == "execution_interrupted":
            run.interrupted = time.perf_counter()
        elif kind == "execution_error":
            run.error = data

    def image(self, run: Run) -> Any:
        """The first saved picture as a uint8 array (H, W, C)."""
        import numpy as np
        from PIL import Image

        assert run.error is None, run.error
        return np.asarray(Image.open(self.folder / "output" / run.images[0]["filename"]))

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(comfyui: Path, python: str, folder: Path, flags: Sequence[str] = ("--cpu",)) -> Server:
    """Start a server with `folder` as its base directory and wait until it answers."""
    for name in ("custom_nodes", "input", "output", "user", "models/loras"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "custom_nodes" / "teasr").symlink_to(ROOT, target_is_directory=True)
    port = free_port()
    command = [python, "main.py", *flags, "--port", str(port), "--base-directory", str(folder),
               "--disable-api-nodes", "--preview-method", "latent2rgb"]  # fmt: skip
    log = (folder / "server.log").open("wb")
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # tests share the machine: two threads waiting for one core are slower
    process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, env=env)
    server = Server(process, port, folder)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.call("/system_stats")
            return server
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    process.kill()
    raise RuntimeError(f"ComfyUI did not start: {(folder / 'server.log').read_text()[-3000:]}")


@contextlib.contextmanager
def from_environment() -> Iterator[Server]:
    """A server of COMFYUI_PATH (else ~/ComfyUI) by COMFYUI_PYTHON (else this interpreter), in a folder of its own."""
    comfyui = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
    with tempfile.TemporaryDirectory() as folder:
        server = start(comfyui, os.environ.get("COMFYUI_PYTHON", sys.executable), Path(folder))
        try:
            yield server
        finally:
            server.stop()


def forget(server: Server) -> None:
    """Empty the server's caches and unload its models: the next prompt starts cold."""
    server.call("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)  # the worker acts on it between prompts


def write_picture(server: Server, name: str, width: int, height: int) -> str:
    import numpy as np
    from PIL import Image

    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    scene = np.stack(
        [x, (np.sin(9 * x + 5 * y) + 1) / 2, np.where((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, 0.9, 0.2)], -1
    )
    noise = np.random.default_rng(0).normal(0, 0.03, scene.shape)
    pixels = ((scene + noise).clip(0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (server.folder / "input" / name).write_bytes(buffer.getvalue())
    return name


def workflow(name: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A shipped API workflow with inputs changed by class name: workflow("...", LoadImage={"image": "photo.png"})."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    for class_type, inputs in changes.items():
        nodes = [node for node in prompt.values() if node["class_type"] == class_type]
        assert len(nodes) == 1, class_type
        nodes[0]["inputs"] |= inputs
    return prompt
