"""`bench`: memory by phase and seconds of a SAD + TAR step and of a plain flow-matching LoRA step, with random weights.

Both steps have the same model, tokens, adapter, optimiser and checkpointing, and run the code of the trainer: memory
plan, loading, `Objective`, clipping, optimiser. The other parts of a run (data, previews, averaged weights) are on the
host and not measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from teasr_core.device import DTYPES, choose_device
from teasr_core.errors import InputError
from teasr_core.model.timesteps import dual_times

from ..frozen_base.settings import FLOAT32_BUDGET, memory_plan
from ..memory.meter import MemoryReport, Phase, measure_memory, no_phase
from ..memory.planner import CONTEXT_GIB, GIB, MemoryPlan
from ..objective.draws import Draws, draw
from ..objective.objective import Batch, LossWeights, Objective, velocity_calls
from ..run.optimizers import NamedOptimizer
from ..run.precision import choose_autocast
from .flops import FULL_ROWS, PLAIN_ROWS, Floor, floor
from .model import BenchModel, load_random, weights_dtype
from .settings import BenchSettings

FULL, PLAIN = "full", "plain"


@dataclass(frozen=True)
class StepReport:
    """What one kind of step took. Memory is in bytes on the device.

    seconds: the median of the timed steps. held: what is there before the step (weights, adapter, optimiser state).
    phases: the peak in each phase, with `held`. losses: without their weights, of the last micro-step.
    """

    seconds: float
    held: int
    phases: dict[str, int]
    losses: dict[str, float]
    floor: Floor

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def added(self) -> int:
        """What the step adds at its peak to what is held before it."""
        return self.peak - self.held


@dataclass(frozen=True)
class BenchResult:
    """Both steps. reserved: the bytes that the accelerator's allocator had taken at the end, 0 on the CPU."""

    settings: BenchSettings
    plan: MemoryPlan
    device: torch.device
    load_seconds: float
    load: MemoryReport
    full: StepReport
    plain: StepReport
    reserved: int


def run(settings: BenchSettings, note: Callable[[str], None] = print) -> BenchResult:
    """Plan, load, and measure both steps. `note` receives the budget before anything is loaded.

    Raises InputError when no plan fits, or when the device runs out of memory nevertheless.
    """
    device = choose_device(settings.config.run.device)
    if settings.config.run.threads:
        torch.set_num_threads(settings.config.run.threads)
    plan = memory_plan(settings.config, settings.architecture, settings.prompt_tokens)
    note(plan.format_table())
    if weights_dtype(settings) == torch.float32:
        note(FLOAT32_BUDGET)
    note(_limit(settings.config.memory.vram_gb, device))
    bench = Bench(settings, plan, device)
    torch.empty(1, device=device)  # an accelerator's counters exist from its first allocation on
    try:
        started = time.perf_counter()
        load = bench.load()
        seconds = time.perf_counter() - started
        note(f"loaded in {seconds:.1f} s; of each kind one step to warm up, {settings.steps} timed, one measured")
        plain, full = bench.measure(PLAIN), bench.measure(FULL)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory on {device} in '{bench.at}', the plan reckoned with {plan.device_gib:.1f} GiB "
            f"({' '.join(str(error).split())[:160]}): lower memory.vram_gb, or take a smaller crop, batch or rank"
        ) from None
    reserved = 0 if device.type == "cpu" else torch.accelerator.memory_reserved(device)
    return BenchResult(settings, plan, device, seconds, load, full, plain, reserved)


def _limit(vram_gb: float, device: torch.device) -> str:
    """Keep the process to `vram_gb` GiB of a larger card, what CUDA itself takes included; says what was done."""
    if not vram_gb:
        return f"{device}: no limit set"
    if device.type != "cuda":
        return f"{device}: the plan for {vram_gb:g} GiB is carried out, but its limit is kept on CUDA alone"
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    share = min(1.0, max(0.0, vram_gb - CONTEXT_GIB) / total)
    torch.cuda.set_per_process_memory_fraction(share, device.index)
    return f"{device}: {share * total:.1f} of {total:.1f} GiB may be taken, {CONTEXT_GIB} more are left to CUDA itself"


class Bench:
    """A loaded model and its steps. at: the running phase, for the text of an error."""

    model: BenchModel
    optimizer: NamedOptimizer

    def __init__(self, settings: BenchSettings, plan: MemoryPlan, device: torch.device) -> None:
        self.settings, self.plan, self.device = settings, plan, device
        self.config = settings.config
        self.generator = torch.Generator().manual_seed(self.config.run.seed)
        self.held = 0
        self.losses: dict[str, float] = {}
        self.at = "load"
        is_mixed = weights_dtype(settings) != DTYPES[self.config.adapter.dtype]
        self.use_autocast, _ = choose_autocast(self.config.run.autocast, device, is_mixed)

    def load(self) -> MemoryReport:
        def work(phase: Phase) -> None:
            with phase("load"):
                self.model = load_random(self.settings, self.plan, self.device)
                self.optimizer = NamedOptimizer(self.model.parameters, self.config.optim)

        report = measure_memory(work, self.device)
        self.held = report.end
        return report

    def measure(self, kind: str) -> StepReport:
        """Run a step to warm up, which creates the optimiser's state, timed steps, and one that measures memory."""

        def step(phase: Phase) -> None:
            self.step(kind, phase)

        self.held += measure_memory(step, self.device).end
        seconds = []
        for _ in range(self.settings.steps):
            self._synchronise()
            started = time.perf_counter()
            step(no_phase)
            self._synchronise()
            seconds.append(time.perf_counter() - started)
        memory = measure_memory(step, self.device)
        rows = FULL_ROWS[self.config.train.layout] if kind == FULL else PLAIN_ROWS
        count = floor(self.settings.problem, rows, self.plan.checkpointing, self.settings.micro_steps)
        phases = {name: self.held + size for name, size in memory.phases.items()}
        return StepReport(statistics.median(seconds), self.held, phases, self.losses, count)

    def step(self, kind: str, phase: Phase) -> None:
        """One step of the optimiser with new random times and noise."""

        def noted(name: str) -> AbstractContextManager[object]:
            self.at = name
            return phase(name)

        objective = Objective(
            self.model.velocity, self.model.codec, self.model.perceptual, use_tar=self.config.ablation.tar,
            w_max=self.config.loss.w_max, forward_context=self._autocast, phase=noted,
        )  # fmt: skip
        micro_step = self._full if kind == FULL else self._plain
        for number in range(self.settings.micro_steps):
            batch = self._batch(noted)
            draws = draw(tuple(batch.z_0.shape), self.generator).to(self.device)  # type: ignore[arg-type]
            micro_step(objective, batch, draws, number)
        with noted("optimiser"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters.values(), self.config.optim.clip_norm)
            self.optimizer.step(self.config.optim.lr)
            self.optimizer.zero_grad()

    def _full(self, objective: Objective, batch: Batch, draws: Draws, number: int) -> None:
        loss, scale = self.config.loss, 1 / self.settings.micro_steps
        lattice = loss.lattice if self.settings.use_decode else 0.0  # latents have no pixels to repeat
        weights = LossWeights(loss.data, loss.lpips, loss.flow, loss.cons, loss.adv, loss.rectify, lattice)
        with self._announced(velocity_calls(draws)):
            self.losses = objective.backward(batch, draws, weights, scale, self.config.train.layout, number).losses

    def _plain(self, objective: Objective, batch: Batch, draws: Draws, _number: int) -> None:
        velocity = self.model.velocity
        attached = velocity.lora_attached(*batch.z_lq.shape[2:])
        with self._announced([(draws.t_flow, draws.t_flow)]), attached, objective.phase("flow"):
            loss = objective.flow(batch, draws)
            (loss / self.settings.micro_steps).backward()
        self.losses = {"flow": float(loss.detach())}

    def _batch(self, phase: Phase) -> Batch:
        """Random images that are encoded where results are decoded too; otherwise random latents."""
        train, channels = self.config.train, self.settings.architecture.latent_channels
        if self.settings.use_decode:
            images = torch.rand(2, train.batch_size, 3, train.crop_px, train.crop_px, generator=self.generator)
            with phase("encode"):
                return Batch.encode(self.model.codec, *images.to(self.device))
        side = train.crop_px // self.model.codec.downscale
        z_0, z_lq = torch.randn(2, train.batch_size, channels, side, side, generator=self.generator).to(self.device)
        return Batch(z_0, z_0, z_lq)

    def _announced(self, calls: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> AbstractContextManager[object]:
        """The context of a micro-step: swept modulation must know its times beforehand."""
        use_dtc = self.model.velocity.use_dtc
        times = [dual_times(t_cur, t_tar, use_dtc) for t_cur, t_tar in calls]
        dtype = torch.bfloat16 if self.use_autocast else None
        return self.model.memory.step(times, dtype, self._autocast)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.use_autocast else nullcontext()

    def _synchronise(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
