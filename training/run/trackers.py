"""Where a run can be followed beside its log.jsonl: TensorBoard, Weights & Biases, Trackio, through accelerate.

Source: accelerate's experiment trackers, https://huggingface.co/docs/accelerate/usage_guides/tracking. They are used
without an Accelerator, because one process trains without it.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from teasr_core.errors import ConfigError, InputError
from teasr_core.whole_file import cause_of, write_whole

from ..config.shared import RunConfig

TENSORBOARD, WANDB, TRACKIO = "tensorboard", "wandb", "trackio"


class Trackers:
    """The trackers of `run.trackers`. What fails in one of them later costs its values, not the run.

    Without the package `tensorboard` there is no TensorBoard log, and a note says so. Raises ConfigError where another
    tracker's package is not installed, and InputError where a tracker cannot start.

    run: the table of the config. config: all of it as plain values, which the services keep with the run.
    note: prints a line.
    """

    def __init__(self, run: RunConfig, config: Mapping[str, Any], note: Callable[[str], None]) -> None:
        self._note, self._failed = note, set[str]()
        self.opened: dict[str, Any] = {}  # name -> accelerate's tracker
        for name in run.trackers:
            if name == TENSORBOARD and not run.use_tensorboard:
                continue
            if _is_installed(name) and _is_installed("accelerate"):
                self.opened[name] = _open(name, run, config)
            elif name == TENSORBOARD:
                note("no TensorBoard log: pip install tensorboard accelerate, or set run.use_tensorboard = false")
            else:
                raise ConfigError(
                    f"run.trackers names '{name}' and the package {name} is not installed: pip install {name} "
                    "accelerate, or take it out of run.trackers"
                )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in self.opened.items():
            self._try(name, lambda tracker=tracker: tracker.log(dict(values), step=step))

    def image(self, title: str, step: int, pixels: np.ndarray) -> None:
        """pixels: (H, W, 3) uint8."""
        for name, tracker in self.opened.items():
            self._try(name, lambda name=name, tracker=tracker: _log_image(name, tracker, title, step, pixels))

    def close(self) -> None:
        for name, tracker in self.opened.items():
            self._try(name, lambda tracker=tracker: tracker.finish())
        self.opened = {}

    def _try(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a full disk, a connection that is gone, whatever a service answers
            if name not in self._failed:
                self._note(f"{name} lacks values of this run ({cause_of(error)})")
            self._failed.add(name)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _open(name: str, run: RunConfig, config: Mapping[str, Any]) -> Any:
    from accelerate import PartialState, tracking

    PartialState(cpu=run.device == "cpu")  # accelerate's logger asks for it
    folder = Path(run.output_dir)
    title = {"name": folder.resolve().name, "resume": "allow"}
    try:
        if name == TENSORBOARD:
            tracker: Any = tracking.TensorBoardTracker(TENSORBOARD, folder)
        elif name == WANDB:
            tracker = tracking.WandBTracker(run.project, dir=str(folder), id=_run_id(folder), **title)
        else:
            tracker = tracking.TrackioTracker(run.project, **title)
        tracker.start()
        if name != TENSORBOARD:  # there it would make a second run
            tracker.store_init_configuration(dict(config))
    except Exception as error:  # such as a service without a login
        raise InputError(
            f"run.trackers names '{name}', which cannot start ({cause_of(error)}): log in to it, or take it out of "
            f"run.trackers{'; WANDB_MODE=offline works without an account' if name == WANDB else ''}"
        ) from None
    return tracker


def _run_id(folder: Path) -> str:
    """The run's id with the service, kept in its folder: a resumed run goes on in the same one."""
    path = folder / "wandb_id.txt"
    if not path.exists():
        write_whole(uuid.uuid4().hex.encode(), path)
    return path.read_text(encoding="utf-8").strip()


def _log_image(name: str, tracker: Any, title: str, step: int, pixels: np.ndarray) -> None:
    if name == TENSORBOARD:
        tracker.log_images({title: pixels[None]}, step=step, dataformats="NHWC")
    elif name == WANDB:
        tracker.log_images({title: [pixels]}, step=step)
    else:  # accelerate has no pictures for it
        import trackio

        tracker.log({title: trackio.Image(pixels)}, step=step)
