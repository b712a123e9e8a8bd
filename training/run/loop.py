"""A training run, whatever it trains: device and processes, steps, log, previews, checkpoints, resume, stopping.

Micro-step m of a run takes the samples [m B, (m+1) B) and draws its random numbers from (seed, m), whichever process
computes it. So N processes with accumulation A do what one process does with accumulation N A, and a run resumes
exactly.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

from teasr_core.memory import peak_memory_mb

from ..config.distill import DistillConfig
from ..config.pretrain import PretrainConfig
from ..config.shared import DistillOptimConfig, OptimConfig
from ..config.toml import to_mapping
from .bad_steps import BadSteps
from .checkpoint import EMA_PREFIX, OPTIMIZER_PREFIX, list_checkpoints, load_checkpoint, save_checkpoint
from .ema import Ema
from .log import Means, RunLog
from .optimizers import NamedOptimizer
from .precision import choose_autocast
from .preview import check_preview_images
from .processes import Processes
from .stop_request import StopRequest
from .trackers import Trackers

Pictures: TypeAlias = tuple[torch.Tensor, ...]  # (lq, hq), in some runs (lq, hq, target): (B, 3, H, W) in [0, 1]


class TrainingRun(ABC):
    """The state of a run. A subclass builds its model, calls `_begin`, and says what one micro-step computes.

    Attributes:
        step: steps of the optimiser so far. micro_step: micro-steps of all processes so far.
        samples: training samples drawn so far, which is the number of the next one.
        use_autocast: whether steps run under bf16 autocast.
        prefix: of the trained weights in a checkpoint.
    """

    prefix: str
    shown: ClassVar[tuple[str, ...]] = ()  # values on the terminal; empty = all of them

    def __init__(self, config: PretrainConfig | DistillConfig) -> None:
        run = config.run
        self.config: Any = config
        self.folder = Path(run.output_dir)
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.set_flush_denormal(True)
        self.processes = Processes(run.device)
        self.device = self.processes.device
        self.log = RunLog(self.folder, self.processes.is_main)
        check_preview_images(run.preview_images)
        if self.processes.is_main:
            self.log.trackers = Trackers(run, to_mapping(config), self.log.note)
        self.step, self.micro_step, self.samples, self.seconds = 0, 0, 0, 0.0
        self.use_autocast = False
        self._stop = StopRequest()

    def _begin(
        self, parameters: Mapping[str, nn.Parameter], optim: OptimConfig | DistillOptimConfig, bad_steps: BadSteps,
        mixes_dtypes: bool = False,
    ) -> None:  # fmt: skip
        """Make the optimiser and the averages of the trainable `parameters`; go on from the newest checkpoint.

        mixes_dtypes: as in `choose_autocast`.
        """
        self.parameters = dict(parameters)
        self.optimizer = NamedOptimizer(self.parameters, optim)
        self.ema = Ema(self.parameters.items(), optim.ema_decay)
        self.clip_norm = optim.clip_norm
        self.bad_steps = bad_steps
        checkpoints = list_checkpoints(self.folder)
        if checkpoints:
            self._load(checkpoints[-1])
        else:
            requested = self.config.run.autocast
            chosen, line = choose_autocast(requested, self.device, mixes_dtypes)
            self.use_autocast = self.processes.any(chosen)  # processes that measure differently do the same
            if requested:
                self.log.note(line)

    # What a subclass says

    @property
    @abstractmethod
    def total_steps(self) -> int: ...

    @abstractmethod
    def _learning_rate(self, step: int) -> float: ...

    @abstractmethod
    def _loader(self, last_step: int) -> Generator[list[Pictures], None, None]:
        """From `self.step` on, the micro-batches of this process for one step after the other."""

    @abstractmethod
    def _backward(
        self, pictures: Pictures, generator: torch.Generator, micro_step: int, scale: float
    ) -> dict[str, float]:
        """Add `scale` times the gradient of one micro-batch to the parameters; what the log shows of it."""

    @abstractmethod
    def _preview(self, photographs: Sequence[Path]) -> dict[str, float]:
        """Draw the previews of `run.preview_images` as files and into the log; the figures of the averaged weights."""

    def _chart(self, path: Path) -> bool:
        """Draw what the log's values alone do not show of the steps since the last chart; False without anything."""
        return False

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the state of this class, as JSON values."""

    @abstractmethod
    def _check_resumable(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """ConfigError where going on from this checkpoint would be another run."""

    def _frozen_tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds beside the trained weights."""
        return {}

    def _after_update(self, passed: bool) -> None:  # noqa: B027 (most have nothing to do)
        """The step was taken, or it was skipped as a bad one."""

    def _window_values(self) -> dict[str, float]:
        """What the log shows of the steps since it was last asked, beside the means of `_backward`'s values."""
        return {}

    # Steps

    def train(self, last_step: int | None = None) -> None:
        """Train to `last_step` (default: the end), or to a signal, then save. DivergedError as `BadSteps.passes`."""
        last_step = self.total_steps if last_step is None else last_step
        if self.step >= last_step:
            self.log.note(f"nothing to do: {self.folder} has reached step {self.step} of {last_step}")
            return
        try:
            # An error in a step must end the data processes too, or the command would wait for them.
            with self._stop, closing(self._loader(last_step)) as loader:
                self._train_steps(loader, last_step)
                self.save()
        finally:
            self.log.close()

    def _train_steps(self, loader: Iterator[list[Pictures]], last_step: int) -> None:
        run = self.config.run
        means, since, waited, steps = Means(), time.perf_counter(), 0.0, 0
        held_out: dict[str, float] = {}  # figures that wait for the next line of the log
        while self.step < last_step:
            before = time.perf_counter()
            micro_batches = next(loader)
            waited += time.perf_counter() - before
            means.add(self._update(micro_batches))
            steps += 1
            stop = self.processes.any(self._stop.is_made)
            line: dict[str, float] | None = None
            if self.step % run.log_every == 0 or stop or self.step == last_step:
                elapsed = time.perf_counter() - since
                self.seconds += elapsed
                line = means.values() | self._window_values() | {
                    "lr": self._learning_rate(self.step - 1), "skipped": self.bad_steps.skipped,
                    "seconds_per_step": elapsed / steps, "data_wait": waited / elapsed,
                    "peak_memory_mb": peak_memory_mb(),
                }  # fmt: skip
                means, since, waited, steps = Means(), time.perf_counter(), 0.0, 0
            before = time.perf_counter()
            if self.step % run.checkpoint_every == 0 and not stop:
                self.save()
            if self.step % run.preview_every == 0 and self.processes.is_main and not stop:
                held_out = self._try_preview()
            if line is not None:
                shown = (*self.shown, *held_out) if self.shown else ()
                self.log.write(self.step, line | held_out, shown)
                held_out = {}
            if stop:
                self.log.note(f"stopping after step {self.step}")
                return
            since += time.perf_counter() - before  # it is not part of a step's time

    def _update(self, micro_batches: list[Pictures]) -> dict[str, float]:
        """One step of the optimiser over this process's micro-batches.

        Returns the means of their values; nothing for a step that was skipped, which would spoil a window of the log.
        """
        processes, rate, means = self.processes, self._learning_rate(self.step), Means()
        for k, pictures in enumerate(micro_batches):
            number = self.micro_step + k * processes.count + processes.index
            generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + number)
            scale = 1 / len(micro_batches)
            means.add(self._backward(tuple(one.to(self.device) for one in pictures), generator, number, scale))
        processes.average_gradients(self.parameters.values())
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm))
        values = means.values() | {"grad_norm": norm}
        passed = self.bad_steps.passes(self.step, self.samples, rate, values)
        if passed:
            self.optimizer.step(rate)
            self.ema.update(self.parameters.items(), self.step + 1)
        self._after_update(passed)
        self.optimizer.zero_grad()
        self.step += 1
        self.micro_step += len(micro_batches) * processes.count
        self.samples += len(micro_batches) * processes.count * len(micro_batches[0][0])
        return values if passed else {}

    def _try_preview(self) -> dict[str, float]:
        """Draw the previews and the chart; the previews' figures."""
        images, figures = self.config.run.preview_images, {}
        try:
            if images:
                figures = self._preview([Path(name) for name in images])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "chart.png"
                if self.log.has_trackers and self._chart(path):
                    self.log.picture("delta/histogram", self.step, path)
        except OSError as error:  # such as a full disk
            self.log.note(f"step {self.step} has no preview, which cannot be written ({error.strerror or error})")
        return figures

    def _autocast(self) -> AbstractContextManager[object]:
        """Entered around the network alone; losses and codec stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.use_autocast else nullcontext()

    # Checkpoints

    def save(self) -> Path | None:
        """Write a checkpoint (the main process alone)."""
        if not self.processes.is_main:
            return None
        tensors = self._frozen_tensors()
        for name, parameter in self.parameters.items():
            tensors[f"{self.prefix}{name}"] = parameter
            tensors[f"{EMA_PREFIX}{name}"] = self.ema.shadow[name]
        tensors |= {f"{OPTIMIZER_PREFIX}{key}": value for key, value in self.optimizer.state_tensors().items()}
        state = {
            "config": to_mapping(self.config),
            "samples": self.samples,
            "seconds": self.seconds,
            "autocast": self.use_autocast,
            **self.bad_steps.state(),
            **self._state(),
        }
        return save_checkpoint(self.folder, self.step, tensors, state, self.config.run.keep_checkpoints)

    def _load(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        self._check_resumable(tensors, state)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"{self.prefix}{name}"])
                self.ema.shadow[name].copy_(tensors[f"{EMA_PREFIX}{name}"])
        self.optimizer.load_state_tensors(
            {k.removeprefix(OPTIMIZER_PREFIX): v for k, v in tensors.items() if k.startswith(OPTIMIZER_PREFIX)}
        )
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        self.bad_steps.load_state(state)
        self._load_state(state)
        # A run does not change its precision on the way. Checkpoints without the entry always did what was requested.
        self.use_autocast = state.get("autocast", self.config.run.autocast)
        self.log.note(f"resuming {path.name} in {'bf16 autocast' if self.use_autocast else 'the dtype of the weights'}")

    @abstractmethod
    def _load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `_state`, and `micro_step`; the rest is loaded by then."""


def compile_blocks(transformer: nn.Module) -> None:
    """torch.compile of each block of a Qwen-Image transformer."""
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        block.compile(dynamic=False)
