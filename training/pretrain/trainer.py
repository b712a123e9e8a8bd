"""`pretrain`: train every weight of a small any-step restorer from scratch (docs/decisions.md#order-of-the-losses).

One batch, one forward: the role of a row decides its times and its target.
    data rows  (t, t_tar) = (1, 0), pure noise; the one-step result is compared with the photograph (Eq. 6, 12, 13).
               With `data_steps` also the result of several steps, of which the last alone has a gradient
    flow rows  t_tar = t; the velocity of the straight path (Eq. 5)
    cons rows  random (t, s); the average of the model's own two half steps (Eq. 1-4)
A model with an LQ encoder trains that first, by itself; it is frozen in the stages that train the transformer.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from teasr_core.errors import ConfigError
from teasr_core.weight_files.base_file import codec_from_json, codec_to_json

from ..config.pretrain import PretrainConfig
from ..config.stage import split_roles
from ..config.toml import to_mapping
from ..data.dataset import batches
from ..data.sources import data_summary
from ..objective import losses
from ..objective.lpips import load_perceptual
from ..run.bad_steps import BadSteps
from ..run.checkpoint import MODEL_PREFIX, list_checkpoints
from ..run.log import gain_db
from ..run.loop import Pictures, TrainingRun, compile_blocks
from ..run.preview import write_preview
from .losses import inner, pretrain_losses
from .model import PretrainModel, encoder_base, load_encoder, load_start, measure_codec
from .resume import check_resumable
from .rrdbnet import copy_rrdbnet
from .schedule import learning_rate


class Pretrainer(TrainingRun):
    """A run with its state; `train` goes from the newest checkpoint to the end of the last stage or to a signal."""

    config: PretrainConfig
    prefix = MODEL_PREFIX

    def __init__(self, config: PretrainConfig) -> None:
        if not config.stages:
            raise ConfigError("the config has no [[stages]]: add at least one")
        super().__init__(config)
        lines: dict[str, None] = {}  # each once, in order
        for with_target in sorted({stage.uses_target for stage in config.stages}):
            crops = [stage.crop_px for stage in config.stages if stage.uses_target is with_target]
            lines |= dict.fromkeys(data_summary(config.data, crops, with_target))
        for line in lines:
            self.log.note(line)
        perceptual = load_perceptual(config.loss.perceptual, config.loss.perceptual_backbone)
        self.perceptual = None if perceptual is None else perceptual.to(self.device)
        self.model = PretrainModel(config.model, config.run.seed)
        if not list_checkpoints(self.folder):  # a checkpoint has the codec, too
            self._start()
        self.model.to(self.device)
        bad_steps = BadSteps(self.folder, self.log, config.optim.max_bad_steps, "lr_start or optim.clip_norm")
        self._begin(dict(self.model.named_parameters()), config.optim, bad_steps)
        if config.run.compile:
            compile_blocks(self.model.transformer)

    def _start(self) -> None:
        """Give a new run its codec, and the weights that the config names."""
        model, encoder = self.config.model, encoder_base(self.config.model.encoder_start)
        if model.start:
            self.codec = load_start(self.model, Path(model.start))
            self.log.note(f"starting from {Path(model.start).name}")
        elif encoder is None:
            crop_px = min(stage.crop_px for stage in self.config.stages)
            self.codec = measure_codec(self.config.data, self.config.run.seed, crop_px, self.model.condition_encoder)
        if encoder is not None:
            codec = load_encoder(self.model, encoder)
            if model.start and codec_to_json(codec) != codec_to_json(self.codec):
                raise ConfigError(
                    f"model.start and model.encoder_start {encoder.path.name} were made with other statistics of the "
                    "latent: give files of one model, or one of the two settings"
                )
            self.codec = codec
            self.log.note(f"the condition encoder starts from {encoder.path.name}")
        elif model.encoder_start:
            copy_rrdbnet(self.model.condition_encoder, Path(model.encoder_start))
            self.log.note(f"the condition encoder starts from {Path(model.encoder_start).name}")

    @property
    def total_steps(self) -> int:
        return self.config.total_steps

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step)

    def _loader(self, last_step: int) -> Generator[list[Pictures], None, None]:
        run, processes = self.config.run, self.processes
        while self.step < last_step:
            _, stage, done = self.config.stage_at(self.step)
            steps = min(stage.steps - done, last_step - self.step)
            first, count = self.samples + processes.index * stage.batch_size, steps * stage.accumulation
            loader = batches(self.config.data, stage.crop_px, stage.batch_size, run.seed, first, count, run.workers,
                             processes.count, stage.uses_target)  # fmt: skip
            with closing(loader):
                for _ in range(steps):
                    yield [next(loader) for _ in range(stage.accumulation)]

    def _backward(
        self, pictures: Pictures, generator: torch.Generator, micro_step: int, scale: float
    ) -> dict[str, float]:
        _, stage, _ = self.config.stage_at(self.step)
        lq, hq = pictures[:2]
        parts = pretrain_losses(self.model, self.codec, pictures, stage, self.config.loss.loss_space, self.perceptual,
                                generator, self._autocast)  # fmt: skip
        (scale * torch.stack(list(parts.values())).sum()).backward()
        values = {name: float(value.detach()) for name, value in parts.items()}
        if "data" in values:  # of the one-step result
            data = slice(split_roles(stage)[0])
            lq, hq = inner(lq[data], stage.border_px), inner(hq[data], stage.border_px)
            before = float(losses.data_loss(2 * lq - 1, 2 * hq - 1)) * len(lq) / stage.batch_size
            values["gain_db"] = gain_db(before, values["data"] / stage.data_weight)
        return values

    def ema_model(self) -> PretrainModel:
        """A copy of the model with the averaged weights, on the CPU."""
        model = PretrainModel(self.config.model, self.config.run.seed)
        model.load_state_dict(self.ema.shadow, strict=True)
        return model.eval().requires_grad_(False)

    def _preview(self, photographs: Sequence[Path]) -> dict[str, float]:
        averaged = self.ema_model().to(self.device)
        codec = codec_from_json(codec_to_json(self.codec), averaged.condition_encoder)
        path = self.folder / f"preview_{self.step:08d}.jpg"
        figures = write_preview(path, averaged.velocity(), codec, photographs, self._autocast, self.perceptual)
        self.log.picture("preview/ema", self.step, path)
        return figures

    def _state(self) -> dict[str, Any]:
        return {
            "codec": codec_to_json(self.codec),
            "micro_steps_done": self.micro_step,
            "processes": self.processes.count,
        }

    def _check_resumable(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        processes = state.get("processes", 1), self.processes.count
        check_resumable(state["config"], to_mapping(self.config), state["step"], processes)

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.codec = codec_from_json(state["codec"], self.model.condition_encoder)
        self.micro_step = state.get("micro_steps_done", state["step"])
