"""`distill`: train the condition-branch LoRA of a frozen base by SAD + TAR."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from teasr_core.errors import ConfigError
from teasr_core.model.timesteps import dual_times

from ..config.distill import DistillConfig
from ..data.dataset import batches
from ..data.sources import data_summary
from ..objective import losses
from ..objective.difference_log import DifferenceHistogram, DifferenceLog
from ..objective.draws import Draws, draw
from ..objective.lpips import load_perceptual
from ..objective.objective import Batch, Figures, LossWeights, Objective, velocity_calls
from ..run.bad_steps import BadSteps
from ..run.checkpoint import PROMPT_NAME
from ..run.log import gain_db
from ..run.loop import Pictures, TrainingRun, compile_blocks
from ..run.preview import write_preview
from .model import DistillModel
from .resume import check_resumable
from .schedule import learning_rate, loss_weights

LOSSES = ("data", "lpips", "flow", "cons", "adv", "rectify")


class Distiller(TrainingRun):
    """A run with its state; `train` goes from the newest checkpoint to the end or to a signal."""

    config: DistillConfig
    shown = ("lr", "loss", *LOSSES, "gain_db", "grad_norm", "seconds_per_step")

    def __init__(self, config: DistillConfig) -> None:
        super().__init__(config)
        for line in data_summary(config.data, [config.train.crop_px]):
            self.log.note(line)
        perceptual = load_perceptual(config.loss.perceptual, config.loss.perceptual_backbone)
        self.model = DistillModel(config, self.device, self.log.note)
        self.prefix, self.start = self.model.prefix, self.model.start
        self.objective = Objective(
            self.model.velocity, self.model.codec, None if perceptual is None else perceptual.to(self.device),
            config.loss.loss_space, config.ablation.tar, config.loss.w_max, self._autocast,
            use_windows=config.loss.perceptual_windows,
            boundary_time=config.loss.boundary_time,
        )  # fmt: skip
        self.difference = DifferenceLog(config.loss.w_max, config.ablation.tar)
        self.histogram = DifferenceHistogram()
        self._step_differences: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the step under way
        bad_steps = BadSteps(self.folder, self.log, config.train.max_bad_steps, "optim.lr or loss.rectify")
        self._begin(self.model.parameters, config.optim, bad_steps, self.model.mixes_dtypes)
        if config.run.compile:
            compile_blocks(self.model.velocity.transformer)

    @property
    def total_steps(self) -> int:
        return self.config.train.steps

    @property
    def micro_steps(self) -> int:
        """Of all processes together, in one step."""
        return self.config.train.accumulation * self.processes.count

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step)

    def _loader(self, last_step: int) -> Generator[list[Pictures], None, None]:
        train, run, processes = self.config.train, self.config.run, self.processes
        steps = last_step - self.step
        first, count = self.samples + processes.index * train.batch_size, steps * train.accumulation
        loader = batches(self.config.data, train.crop_px, train.batch_size, run.seed, first, count, run.workers,
                         processes.count)  # fmt: skip
        with closing(loader):
            for _ in range(steps):
                yield [next(loader) for _ in range(train.accumulation)]

    def _backward(
        self, pictures: Pictures, generator: torch.Generator, micro_step: int, scale: float
    ) -> dict[str, float]:
        lq, hq = pictures
        weights = loss_weights(self.config, self.step)
        batch = Batch.encode(self.model.codec, lq, hq)
        draws = draw(tuple(batch.z_0.shape), generator, self.config.loss.boundary_time).to(self.device)  # type: ignore[arg-type]
        with self._memory_step(draws):
            figures = self.objective.backward(batch, draws, weights, scale, self.config.train.layout, micro_step)
        if figures.s is not None and figures.delta is not None:
            self._step_differences.append((figures.s, figures.delta))
        return self._values(figures, weights, lq, hq)

    def _memory_step(self, draws: Draws) -> AbstractContextManager[object]:
        """Announce the micro-step's times, for modulation that is swept once for all of them."""
        use_dtc = self.model.velocity.use_dtc
        times = (dual_times(t_cur, t_tar, use_dtc) for t_cur, t_tar in velocity_calls(draws))  # read by a sweep alone
        dtype = torch.bfloat16 if self.use_autocast else None
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

    def _after_update(self, passed: bool) -> None:
        for s, delta in self._step_differences if passed else ():
            self.difference.add(s, delta)
            if self.log.has_trackers:
                self.histogram.add(s, delta)
        self._step_differences.clear()

    def _window_values(self) -> dict[str, float]:
        values = self.difference.values()
        self.difference.clear()
        return values

    def _preview(self, photographs: Sequence[Path]) -> dict[str, float]:
        figures = {}
        for name, weights in (("raw", nullcontext()), ("ema", self.ema.swapped_in(self.parameters.items()))):
            path = self.folder / f"preview_{self.step:08d}_{name}.jpg"
            with weights:
                figures = write_preview(path, self.model.velocity, self.model.codec, photographs, self._autocast,
                                        self.objective.perceptual)  # fmt: skip
            self.log.picture(f"preview/{name}", self.step, path)
        return figures  # of the averaged weights, the last ones

    def _chart(self, path: Path) -> bool:
        return self.histogram.draw(path)

    def _frozen_tensors(self) -> dict[str, torch.Tensor]:
        return self.model.frozen_tensors()

    def _state(self) -> dict[str, Any]:
        start = {} if self.start is None else {"start": dict(self.start)}
        return {"micro_steps": self.micro_steps, **self.model.description(), **start}

    def _check_resumable(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        check_resumable(dict(state), self.config, self.micro_steps, self.model.description())
        prompt = self.model.velocity.prompt_embeds.detach().cpu()
        if not torch.equal(tensors.get(PROMPT_NAME, prompt), prompt):
            raise ConfigError("base.prompt names another prompt than the checkpoint's: restore it")

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.micro_step = self.step * self.micro_steps
        self.start = state.get("start")
