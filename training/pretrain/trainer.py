"""`pretrain`: train every weight of a small any-step restorer from scratch (docs/decisions.md#order-of-the-losses).

One batch, one forward: the role of a row decides its times and its target.
    data rows  (t, t_tar) = (1, 0), pure noise; the one-step result is compared with the photograph (Eq. 6, 12, 13).
               With `data_steps` also the result of several steps, of which the last alone has a gradient
    flow rows  t_tar = t; the velocity of the straight path (Eq. 5)
    cons rows  random (t, s); the average of the model's own two half steps (Eq. 1-4)
A model with a condition encoder trains that first, by itself; it is frozen in the stages that train the transformer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch

from teasr_core.errors import ConfigError
from teasr_core.weight_files.builtin_file import codec_from_json, codec_to_json

from ..config.pretrain import PretrainConfig
from ..config.stage import StageConfig, split_roles
from ..config.toml import to_mapping
from ..data.dataset import batches
from ..data.sources import data_summary
from ..objective import losses
from ..objective.lpips import load_perceptual
from ..run.bad_steps import BadSteps
from ..run.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from ..run.ema import Ema
from ..run.log import Means, RunLog, gain_db
from ..run.preview import check_preview_images, write_preview
from ..run.stop_request import StopRequest
from .losses import pretrain_losses
from .model import PretrainModel, load_start, measure_codec
from .resume import check_resumable
from .schedule import learning_rate


class Pretrainer:
    """A run with its state; `train` goes from the newest checkpoint to the end or to a SIGTERM/SIGINT."""

    def __init__(self, config: PretrainConfig) -> None:
        if not config.stages:
            raise ConfigError("the config has no [[stages]]: add at least one")
        self.config = config
        self.folder = Path(config.run.output_dir)
        self.log = RunLog(self.folder, config.run.use_tensorboard)
        for line in data_summary(config.data, [stage.crop_px for stage in config.stages]):
            self.log.note(line)
        check_preview_images(config.run.preview_images)
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        torch.set_flush_denormal(True)
        self.perceptual = load_perceptual(config.loss.perceptual, config.loss.perceptual_backbone)
        self.model = PretrainModel(config.model, config.run.seed)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=0.0, betas=config.optim.betas, weight_decay=config.optim.weight_decay,
            eps=config.optim.eps, foreach=True,
        )  # fmt: skip
        self.step = 0
        self.samples = 0  # training samples drawn so far = number of the next one
        self.seconds = 0.0
        self.bad_steps = BadSteps(self.folder, self.log, config.optim.max_bad_steps, "lr_start or optim.clip_norm")
        checkpoints = list_checkpoints(self.folder)
        if config.model.start and not checkpoints:
            self.codec = load_start(self.model, Path(config.model.start))
            self.log.note(f"starting from {Path(config.model.start).name}")
        self.ema = Ema(self.parameters.items(), config.optim.ema_decay)
        if checkpoints:
            self._load(checkpoints[-1])
        elif not config.model.start:
            self.codec = measure_codec(config.data, config.run.seed, min(stage.crop_px for stage in config.stages))
        self.codec.condition_encoder = self.model.condition_encoder
        if config.run.compile:
            for block in self.model.transformer.transformer_blocks:
                block.compile(dynamic=False)
        self._stop = StopRequest()

    def train(self, last_step: int | None = None) -> None:
        """Train to `last_step` (default: the end of the last stage), then save. DivergedError as `BadSteps.passes`."""
        last_step = self.config.total_steps if last_step is None else last_step
        with self._stop:
            while self.step < last_step and not self._stop.is_made:
                _, stage, done = self.config.stage_at(self.step)
                self._train_stage(stage, min(stage.steps - done, last_step - self.step))
            self.save()

    def _train_stage(self, stage: StageConfig, count: int) -> None:
        run = self.config.run
        loader = batches(self.config.data, stage.crop_px, stage.batch_size, run.seed, self.samples, count, run.workers)
        with closing(loader):  # an error in a step must end the data processes too, or the command would wait for them
            self._train_steps(loader, stage, count)

    def _train_steps(self, loader: Iterator[tuple[torch.Tensor, torch.Tensor]], stage: StageConfig, count: int) -> None:
        run = self.config.run
        means = Means()
        window_start, waited, window_steps = time.perf_counter(), 0.0, 0
        for _ in range(count):
            before = time.perf_counter()
            lq, hq = next(loader)
            waited += time.perf_counter() - before
            means.add(self._update(lq, hq, stage))
            window_steps += 1
            if self.step % run.log_every == 0:
                elapsed = time.perf_counter() - window_start
                values = means.values()
                values["lr"] = learning_rate(self.config, self.step - 1)
                values["skipped"] = self.bad_steps.skipped
                values["seconds_per_step"], values["data_wait"] = elapsed / window_steps, waited / elapsed
                self.log.write(self.step, values)
                self.seconds += elapsed
                means, window_start, waited, window_steps = Means(), time.perf_counter(), 0.0, 0
            if self.step % run.checkpoint_every == 0:
                self.save()
            if run.preview_images and self.step % run.preview_every == 0:
                averaged = self.ema_model()
                codec = codec_from_json(codec_to_json(self.codec), averaged.condition_encoder)
                write_preview(self.folder / f"preview_{self.step:08d}.jpg", averaged.velocity(), codec,
                              [Path(p) for p in run.preview_images], self._autocast)  # fmt: skip
            if self._stop.is_made:
                self.log.note(f"stopping after step {self.step}")
                return

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self.config.run.autocast else nullcontext()

    def _update(self, lq: torch.Tensor, hq: torch.Tensor, stage: StageConfig) -> dict[str, float]:
        run = self.config.run
        generator = torch.Generator().manual_seed(run.seed * 1_000_003 + self.step)
        parts = pretrain_losses(self.model, self.codec, lq, hq, stage, self.config.loss.loss_space, self.perceptual,
                                generator, self._autocast)  # fmt: skip
        torch.stack(list(parts.values())).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optim.clip_norm)
        values = {name: float(value.detach()) for name, value in parts.items()} | {"grad_norm": float(norm)}
        rate = learning_rate(self.config, self.step)
        if self.bad_steps.passes(self.step, self.samples, rate, values):
            num_data = split_roles(stage)[0]
            if num_data:  # of the one-step result
                before = float(losses.data_loss(2 * lq[:num_data] - 1, 2 * hq[:num_data] - 1)) * num_data / len(lq)
                values["gain_db"] = gain_db(before, values["data"])
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.ema.update(self.parameters.items(), self.step + 1)
        else:
            values = {}  # it would spoil a window of the log
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.samples += len(lq)
        return values

    def ema_model(self) -> PretrainModel:
        """A copy of the model with the averaged weights."""
        model = PretrainModel(self.config.model, self.config.run.seed)
        model.load_state_dict(self.ema.shadow, strict=True)
        return model.eval().requires_grad_(False)

    def save(self) -> Path:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"model.{name}"] = parameter
            tensors[f"ema.{name}"] = self.ema.shadow[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        state = {
            "config": to_mapping(self.config),
            "codec": codec_to_json(self.codec),
            "samples": self.samples,
            "seconds": self.seconds,
            **self.bad_steps.state(),
        }
        return save_checkpoint(self.folder, self.step, tensors, state, self.config.run.keep_checkpoints)

    def _load(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        check_resumable(state["config"], to_mapping(self.config), state["step"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.ema.shadow[name].copy_(tensors[f"ema.{name}"])
                keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{k}.{name}" in tensors]
                if keys:
                    self.optimizer.state[parameter] = {k: tensors[f"optimizer.{k}.{name}"] for k in keys}
        self.codec = codec_from_json(state["codec"])
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        self.bad_steps.load_state(state)
        self.log.note(f"resuming {path.name}")
