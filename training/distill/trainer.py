"""`distill`: train the condition-branch LoRA of a frozen base by SAD + TAR.

Micro-step m of a run takes samples [m B, (m+1) B) and draws its times and noises from (seed, m), whichever process
runs it: so N processes with accumulation A do what one process does with accumulation N A, and a run resumes exactly.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch

from teasr_core.errors import ConfigError
from teasr_core.memory import peak_memory_mb
from teasr_core.model.timesteps import dual_times

from ..config.distill import DistillConfig
from ..config.toml import to_mapping
from ..data.dataset import batches
from ..data.sources import data_summary
from ..objective import losses
from ..objective.difference_log import DifferenceLog
from ..objective.draws import Draws, draw
from ..objective.lpips import load_perceptual
from ..objective.objective import Batch, Figures, LossWeights, Objective, velocity_calls
from ..run.bad_steps import BadSteps
from ..run.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from ..run.ema import Ema
from ..run.log import Means, RunLog, gain_db
from ..run.optimizers import NamedOptimizer
from ..run.preview import check_preview_images, write_preview
from ..run.processes import Processes
from ..run.stop_request import StopRequest
from .model import DistillModel
from .resume import check_resumable
from .schedule import learning_rate, loss_weights

LOSSES = ("data", "lpips", "flow", "cons", "adv", "rectify")
SHOWN = ("lr", "loss", *LOSSES, "gain_db", "grad_norm", "seconds_per_step")


class Distiller:
    """A run with its state; `train` goes from the newest checkpoint to the end or to a SIGTERM/SIGINT."""

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self.folder = Path(config.run.output_dir)
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        torch.set_flush_denormal(True)
        self.processes = Processes(config.run.device)
        self.log = RunLog(self.folder, config.run.use_tensorboard, self.processes.is_main)
        for line in data_summary(config.data, [config.train.crop_px]):
            self.log.note(line)
        check_preview_images(config.run.preview_images)
        device = self.processes.device
        perceptual = load_perceptual(config.loss.perceptual, config.loss.perceptual_backbone)
        self.model = DistillModel(config, device, self.log.note)
        self.parameters = self.model.parameters
        self.objective = Objective(
            self.model.velocity, self.model.codec, None if perceptual is None else perceptual.to(device),
            config.loss.loss_space, config.ablation.tar, config.loss.w_max, self._autocast,
            use_windows=config.loss.perceptual_windows,
            boundary_time=config.loss.boundary_time,
        )  # fmt: skip
        self.optimizer = NamedOptimizer(self.parameters, config.optim)
        self.ema = Ema(self.parameters.items(), config.optim.ema_decay)
        self.difference = DifferenceLog(config.loss.w_max, config.ablation.tar)
        self.micro_steps = config.train.accumulation * self.processes.count  # in a step
        self.step = 0
        self.bad_steps = BadSteps(self.folder, self.log, config.train.max_bad_steps, "optim.lr or loss.rectify")
        self.seconds = 0.0
        checkpoints = list_checkpoints(self.folder)
        if checkpoints:
            self._load(checkpoints[-1])
        if config.run.compile:
            self.model.compile_blocks()
        self._stop = StopRequest()

    def train(self, last_step: int | None = None) -> None:
        """Train to `last_step` (default: `train.steps`), then save. DivergedError when gradients stay infinite."""
        last_step = self.config.train.steps if last_step is None else last_step
        if self.step >= last_step:
            self.log.note(f"nothing to do: {self.folder} has reached step {self.step} of {last_step}")
            return
        try:
            with self._stop, closing(self._loader(last_step - self.step)) as loader:
                self._train_steps(loader, last_step)
                self.save()
        finally:
            self.log.close()

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.config.run.autocast:
            return nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def _loader(self, steps: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        train, run = self.config.train, self.config.run
        first = (self.step * self.micro_steps + self.processes.index) * train.batch_size
        count = steps * train.accumulation
        return batches(self.config.data, train.crop_px, train.batch_size, run.seed, first, count, run.workers,
                       stride=self.processes.count)  # fmt: skip

    def _train_steps(self, loader: Iterator[tuple[torch.Tensor, torch.Tensor]], last_step: int) -> None:
        run = self.config.run
        means = Means()
        since, waited, steps = time.perf_counter(), 0.0, 0
        while self.step < last_step:
            micro_batches = []
            before = time.perf_counter()
            for _ in range(self.config.train.accumulation):
                micro_batches.append(next(loader))
            waited += time.perf_counter() - before
            means.add(self._update(micro_batches))
            steps += 1
            stop = self.processes.any(self._stop.is_made)
            if self.step % run.log_every == 0 or stop or self.step == last_step:
                elapsed = time.perf_counter() - since
                values = means.values() | self.difference.values() | {
                    "lr": learning_rate(self.config, self.step - 1), "skipped": self.bad_steps.skipped,
                    "seconds_per_step": elapsed / steps, "data_wait": waited / elapsed,
                    "peak_memory_mb": peak_memory_mb(),
                }  # fmt: skip
                self.log.write(self.step, values, shown=SHOWN)
                self.seconds += elapsed
                self.difference.clear()
                means = Means()
                since, waited, steps = time.perf_counter(), 0.0, 0
            if stop:
                self.log.note(f"stopping after step {self.step}")
                return
            before = time.perf_counter()
            if self.step % run.checkpoint_every == 0:
                self.save()
            if run.preview_images and self.step % run.preview_every == 0:
                self._preview()
            since += time.perf_counter() - before  # not a step's time

    def _update(self, micro_batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        """One step of the optimiser over this process's micro-batches.

        Returns means over them; nothing for a step that was skipped, or it would spoil a window of the log.
        """
        train, device = self.config.train, self.processes.device
        weights, rate = loss_weights(self.config, self.step), learning_rate(self.config, self.step)
        means, differences = Means(), []
        for k, (lq, hq) in enumerate(micro_batches):
            number = self.step * self.micro_steps + k * self.processes.count + self.processes.index
            generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + number)
            batch = Batch.encode(self.model.codec, lq.to(device), hq.to(device))
            draws = draw(tuple(batch.z_0.shape), generator, self.config.loss.boundary_time).to(device)  # type: ignore[arg-type]
            with self._memory_step(draws):
                figures = self.objective.backward(batch, draws, weights, 1 / train.accumulation, train.layout, number)
            means.add(self._values(figures, weights, lq, hq))
            if figures.s is not None and figures.delta is not None:
                differences.append((figures.s, figures.delta))
        self.processes.average_gradients(self.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optim.clip_norm))
        values = means.values() | {"grad_norm": norm}
        first = self.step * self.micro_steps * train.batch_size
        if self.bad_steps.passes(self.step, first, rate, values):
            self.optimizer.step(rate)
            self.ema.update(self.parameters.items(), self.step + 1)
            for s, delta in differences:
                self.difference.add(s, delta)
        else:
            values = {}
        self.optimizer.zero_grad()
        self.step += 1
        return values

    def _memory_step(self, draws: Draws) -> AbstractContextManager[object]:
        """Announce the micro-step's times, for modulation that is swept once for all of them."""
        use_dtc = self.model.velocity.use_dtc
        times = (dual_times(t_cur, t_tar, use_dtc) for t_cur, t_tar in velocity_calls(draws))  # read by a sweep alone
        dtype = torch.bfloat16 if self.config.run.autocast else None
        return self.model.memory.step(times, dtype, self._autocast)

    def _values(self, figures: Figures, weights: LossWeights, lq: torch.Tensor, hq: torch.Tensor) -> dict[str, float]:
        raw = figures.losses
        weighted = {f"weighted/{name}": getattr(weights, name) * value for name, value in raw.items()}
        for name in {"lpips", "lattice"} & raw.keys():
            weighted[f"weighted/{name}"] *= weights.data  # they multiply within the data loss (Eq. 13)
        values = raw | weighted | {"loss": sum(weighted.values())}
        if "data" in raw:  # of the one-step result
            values["gain_db"] = gain_db(float(losses.data_loss(2 * lq - 1, 2 * hq - 1)), raw["data"])
        return values

    def _preview(self) -> None:
        if not self.processes.is_main:
            return
        photographs = [Path(p) for p in self.config.run.preview_images]
        for name, weights in (("raw", nullcontext()), ("ema", self.ema.swapped_in(self.parameters.items()))):
            path = self.folder / f"preview_{self.step:08d}_{name}.jpg"
            with weights:
                write_preview(path, self.model.velocity, self.model.codec, photographs, self._autocast)
            self.log.picture(f"preview/{name}", self.step, path)

    def save(self) -> Path | None:
        """Write a checkpoint (the main process alone)."""
        if not self.processes.is_main:
            return None
        prefix = self.model.prefix
        tensors = self.model.frozen_tensors()
        for name, parameter in self.parameters.items():
            tensors[f"{prefix}.{name}"] = parameter
            tensors[f"ema.{name}"] = self.ema.shadow[name]
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.state_tensors().items()}
        state = {
            "config": to_mapping(self.config),
            "samples": self.step * self.micro_steps * self.config.train.batch_size,
            "micro_steps": self.micro_steps,
            "seconds": self.seconds,
            **self.bad_steps.state(),
            **self.model.description(),
        }
        return save_checkpoint(self.folder, self.step, tensors, state, self.config.run.keep_checkpoints)

    def _load(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        check_resumable(state, self.config, self.micro_steps, self.model.description())
        prompt = self.model.velocity.prompt_embeds.detach().cpu()
        if not torch.equal(tensors.get("prompt_embeds", prompt), prompt):
            raise ConfigError("base.prompt names another prompt than the checkpoint's: restore it")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"{self.model.prefix}.{name}"])
                self.ema.shadow[name].copy_(tensors[f"ema.{name}"])
        prefix = "optimizer."
        self.optimizer.load_state_tensors(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        self.step, self.seconds = state["step"], state["seconds"]
        self.bad_steps.load_state(state)
        self.log.note(f"resuming {path.name}")
