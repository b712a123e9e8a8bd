"""SAD + TAR: the losses of one micro-step and their gradients (docs/decisions.md#one-graph-at-a-time).

A sample costs 8 transformer rows, 4 of them with a gradient:
    flow      1 with gradient      the real trajectory, t_tar = t
    cons      2 without, 1 with    a step must equal its own two halves
    one step  1 with, 2 without    data + LPIPS on the one-step result, and the pull towards the real trajectory
    adv       1 with gradient      the fake trajectory, t_tar = -t
One network plays generator (one step), fake score (adv, t_tar < 0) and real score (flow, t_tar = t).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from teasr_core.codec.protocol import Codec
from teasr_core.model.flow import clean_from_output, interpolate
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.model.timesteps import check_target_times

from ..memory.meter import Phase, no_phase
from . import losses, texture
from .draws import Draws
from .losses import Perceptual

ROLES = ("flow", "cons", "one_step", "adv")
LAYOUTS = ("sequential", "rotate", "batched")


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses in the sum that is differentiated.

    `cons` is the lambda of Eq. 5, `lpips` that of Eq. 13: it multiplies within the data loss. So does `lattice`.
    """

    data: float = 1.0
    lpips: float = 1.0
    flow: float = 1.0
    cons: float = 1.0
    adv: float = 1.0
    rectify: float = 0.25
    lattice: float = 0.0  # of `texture.lattice_loss` at the pitch of a token


@dataclass(frozen=True)
class Batch:
    """What a micro-step trains on: pixels x_0 (B, 3, H, W) in [-1, 1], latents z_0 and z_lq (B, C, h, w)."""

    x_0: torch.Tensor
    z_0: torch.Tensor
    z_lq: torch.Tensor

    @classmethod
    def encode(cls, codec: Codec, lq: torch.Tensor, hq: torch.Tensor) -> Batch:
        """From images (B, 3, H, W) in [0, 1], each lq enlarged by a factor of its own; no gradient."""
        with torch.no_grad():
            return cls(2 * hq - 1, codec.encode(hq), codec.encode_lq(lq, scale=1.0))


@dataclass
class Figures:
    """What a micro-step reports: raw losses (means over the batch) and the score difference it met."""

    losses: dict[str, float] = field(default_factory=dict)
    s: torch.Tensor | None = None  # (B,)
    delta: torch.Tensor | None = None  # (B, C, H, W), before the clamp


class Objective:
    """Losses and gradients of a velocity with a trainable adapter.

    Args:
        velocity: network and adapter; gradients go to whatever of them requires one.
        codec: decodes the one-step result for the data loss; differentiable.
        perceptual: LPIPS or None. use_windows: it sees `losses.perceptual_window`, drawn anew each time.
        loss_space: "pixel" weighs latent errors as pixel errors (it needs the codec's `pixel_weights`), "latent".
        use_tar: False sets w(s) = 1 (ablation).
        w_max: cap of w(s).
        boundary_time: of `losses.with_boundary` in L_cons.
        forward_context: entered around network calls alone, e.g. autocast; losses and codec stay float32.
        phase: entered around the parts of a micro-step by name, for `memory_meter`.
    """

    def __init__(
        self,
        velocity: QwenVelocity,
        codec: Codec,
        perceptual: Perceptual | None = None,
        loss_space: str = "latent",
        use_tar: bool = True,
        w_max: float = losses.MAX_RECTIFICATION,
        forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
        phase: Phase = no_phase,
        use_windows: bool = False,
        boundary_time: float = 0.0,
    ) -> None:
        self.velocity = velocity
        self.boundary_time = boundary_time
        self.use_windows = use_windows
        self.codec = codec
        self.perceptual = perceptual
        self.use_tar = use_tar
        self.w_max = w_max
        self.forward_context = forward_context
        self.phase = phase
        self.channel_weight = codec.pixel_weights if loss_space == "pixel" else torch.ones(1)

    @property
    def prediction(self) -> str:
        return self.velocity.prediction

    def backward(
        self, batch: Batch, draws: Draws, weights: LossWeights, scale: float = 1.0,
        layout: str = "sequential", micro_step: int = 0,
    ) -> Figures:  # fmt: skip
        """Add scale * gradient of the weighted losses to the parameters' `.grad`; one micro-step.

        layout: "sequential" one role after the other, each with its own backward (least memory); "rotate" only role
        micro_step mod 4; "batched" three roles in one forward and one backward (large cards).
        """
        assert layout in LAYOUTS, layout
        figures = Figures()
        with self.velocity.lora_attached(*batch.z_lq.shape[2:]):  # checkpointed blocks run again in the backward
            if layout == "batched":
                with self.phase("batched"):
                    self._batched(batch, draws, weights, scale, figures)
            else:
                roles = ROLES if layout == "sequential" else (ROLES[micro_step % len(ROLES)],)
                self._role_by_role(roles, batch, draws, weights, scale, figures)
        return figures

    def _role_by_role(
        self, roles: Sequence[str], batch: Batch, draws: Draws, weights: LossWeights, scale: float, figures: Figures
    ) -> None:
        z_fake: torch.Tensor | None = None
        for role in roles:
            if role == "flow":
                with self.phase("flow"):
                    self._differentiate(scale * weights.flow, self.flow(batch, draws), "flow", figures)
            elif role == "cons":
                with self.phase("cons"):
                    self._differentiate(scale * weights.cons, self.cons(batch, draws), "cons", figures)
            elif role == "one_step":
                z_fake = self._one_step(batch, draws, weights, scale, figures)
            else:
                with self.phase("fake"):
                    if z_fake is None:  # `rotate` has it not from the role before
                        with torch.no_grad():
                            z_fake = self._clean(self._one_step_output(batch, draws), draws, batch)
                    self._differentiate(scale * weights.adv, self.adv(batch, draws, z_fake), "adv", figures)

    def flow(self, batch: Batch, draws: Draws) -> torch.Tensor:
        """L_flow: the velocity of the real trajectory, asked at t_tar = t. Eq. 5"""
        z_t = interpolate(batch.z_0, draws.noise_flow, draws.t_flow)  # (B, C, h, w)
        output = self._output(z_t, draws.t_flow, batch.z_lq, draws.t_flow)
        return self._velocity_loss(output, losses.flow_target(batch.z_0, draws.noise_flow), z_t, batch, draws.t_flow)

    def cons(self, batch: Batch, draws: Draws) -> torch.Tensor:
        """L_cons: one step t -> s against the average of its halves. Eq. 1-4"""
        z_t = interpolate(batch.z_0, draws.noise_cons, draws.t_cons)  # (B, C, h, w)
        target = self._consistency_target(z_t, batch, draws)
        output = self._output(z_t, draws.t_cons, batch.z_lq, draws.s_cons)
        return self._velocity_loss(output, target, z_t, batch, draws.t_cons)

    def _consistency_target(self, z_t: torch.Tensor, batch: Batch, draws: Draws) -> torch.Tensor:
        t, s = draws.t_cons, draws.s_cons
        target = losses.consistency_target(self._velocity, z_t, t, batch.z_lq, s)
        return losses.with_boundary(target, losses.flow_target(batch.z_0, draws.noise_cons), t, s, self.boundary_time)

    def adv(self, batch: Batch, draws: Draws, z_fake: torch.Tensor) -> torch.Tensor:
        """L_adv: the velocity of the fake trajectory, asked at t_tar = -t. Eq. 7, 8"""
        t = draws.t_fake
        check_target_times(-t)
        z_t = losses.adversarial_point(z_fake, draws.noise_fake, t)  # (B, C, h, w)
        output = self._output(z_t, t, batch.z_lq, -t)
        return self._velocity_loss(output, losses.adversarial_target(z_fake, draws.noise_fake), z_t, batch, t)

    def data(self, batch: Batch, draws: Draws, z_fake: torch.Tensor, weights: LossWeights) -> dict[str, torch.Tensor]:
        """`data` (MSE) and `lpips` of the decoded one-step result, raw; `lattice` where it has a weight. Eq. 12, 13

        LPIPS is 0 without a network for it.
        """
        x_fake = 2 * self.codec.decode(z_fake) - 1  # (B, 3, H, W)
        result = {"data": losses.data_loss(x_fake, batch.x_0), "lpips": z_fake.new_zeros(())}
        if self.perceptual is not None:
            window = losses.perceptual_window(x_fake, draws.perceptual_offset) if self.use_windows else slice(None)
            result["lpips"] = losses.perceptual_loss(self.perceptual, x_fake[window], batch.x_0[window])
        if weights.lattice:
            pitch = self.codec.downscale * self.velocity.patch_size
            result["lattice"] = texture.lattice_loss(x_fake, batch.x_0, pitch)
        return result

    @staticmethod
    def _weighted(data: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
        """What `data` adds to the sum that is differentiated."""
        total = data["data"] + weights.lpips * data["lpips"]
        if "lattice" in data:
            total = total + weights.lattice * data["lattice"]
        return weights.data * total

    def rectify(self, output: torch.Tensor, delta: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """L_rectify on the raw one-step output; w(s) = 1 without TAR. Eq. 11, 14"""
        w = losses.rectification_weight(s, self.w_max) if self.use_tar else torch.ones_like(s)  # (B,)
        return losses.rectification_loss(output, delta, w, self.prediction, self._weight(output))

    @torch.no_grad()
    def score_difference(self, batch: Batch, draws: Draws, z_fake: torch.Tensor) -> torch.Tensor:
        """Delta at z_s between the fake and the real trajectory, for the same z_s. Eq. 9, 10

        One forward after the other: the graph of the one-step result is alive, and a batch of both would double what
        is held on top of it.
        """
        s = draws.s
        check_target_times(-s)
        z_s = losses.adversarial_point(z_fake, draws.noise_s, s)  # (B, C, h, w)
        real = self._output(z_s, s, batch.z_lq, s)  # (B, C, h, w)
        fake = self._output(z_s, s, batch.z_lq, -s)  # (B, C, h, w)
        return losses.score_difference(real, fake, self.prediction)

    def _one_step(
        self, batch: Batch, draws: Draws, weights: LossWeights, scale: float, figures: Figures
    ) -> torch.Tensor:
        """The one-step role. The graph is cut at the latent, so that decoder and LPIPS are gone before Delta. Eq. 6"""
        with self.phase("rectify forward"):
            output = self._one_step_output(batch, draws)  # (B, C, h, w)
            z_fake = self._clean(output, draws, batch)  # (B, C, h, w)
        leaf = z_fake.detach().requires_grad_()
        with self.phase("decode"):
            data = self.data(batch, draws, leaf, weights)
            (scale * self._weighted(data, weights)).backward()
        with self.phase("rectify forward"):
            delta = self.score_difference(batch, draws, leaf)
        with self.phase("rectify backward"):
            rectify = self.rectify(output, delta, draws.s)
            torch.autograd.backward([scale * weights.rectify * rectify, z_fake], [None, leaf.grad])
        self._note_one_step(figures, data, rectify, delta, draws)
        return z_fake.detach()

    def _batched(self, batch: Batch, draws: Draws, weights: LossWeights, scale: float, figures: Figures) -> None:
        z_flow = interpolate(batch.z_0, draws.noise_flow, draws.t_flow)
        z_cons = interpolate(batch.z_0, draws.noise_cons, draws.t_cons)
        target = self._consistency_target(z_cons, batch, draws)
        one, zero = torch.ones_like(draws.t_flow), torch.zeros_like(draws.t_flow)
        out_flow, out_cons, out_one = self._output(
            torch.cat([z_flow, z_cons, draws.noise_one]),
            torch.cat([draws.t_flow, draws.t_cons, one]),
            torch.cat([batch.z_lq] * 3),
            torch.cat([draws.t_flow, draws.s_cons, zero]),
        ).chunk(3)  # (B, C, h, w)
        z_fake = self._clean(out_one, draws, batch)
        delta = self.score_difference(batch, draws, z_fake)
        data = self.data(batch, draws, z_fake, weights)
        rectify = self.rectify(out_one, delta, draws.s)
        flow_target = losses.flow_target(batch.z_0, draws.noise_flow)
        parts = {
            "flow": self._velocity_loss(out_flow, flow_target, z_flow, batch, draws.t_flow),
            "cons": self._velocity_loss(out_cons, target, z_cons, batch, draws.t_cons),
            "adv": self.adv(batch, draws, z_fake),
        }
        total = self._weighted(data, weights) + weights.rectify * rectify
        total = total + sum(getattr(weights, name) * part for name, part in parts.items())
        (scale * total).backward()
        figures.losses |= {name: float(part.detach()) for name, part in parts.items()}
        self._note_one_step(figures, data, rectify, delta, draws)

    def _one_step_output(self, batch: Batch, draws: Draws) -> torch.Tensor:
        ones = torch.ones_like(draws.t_flow)  # (B,)
        return self._output(draws.noise_one, ones, batch.z_lq, torch.zeros_like(ones))

    def _clean(self, output: torch.Tensor, draws: Draws, batch: Batch) -> torch.Tensor:
        return clean_from_output(
            self.prediction, output, draws.noise_one, batch.z_lq, torch.ones_like(draws.t_flow)
        )  # (B, C, h, w)

    def _output(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        with self.forward_context():
            output = self.velocity.network_output(z_t, t_cur, z_lq, t_tar)
        return losses.float32_or_wider(output)

    def _velocity(
        self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor
    ) -> torch.Tensor:
        with self.forward_context():
            return self.velocity(z_t, t_cur, z_lq, t_tar)

    def _velocity_loss(
        self, output: torch.Tensor, target: torch.Tensor, z_t: torch.Tensor, batch: Batch, t: torch.Tensor
    ) -> torch.Tensor:
        return losses.velocity_loss(self.prediction, output, target, z_t, batch.z_lq, t, self._weight(output))

    def _weight(self, like: torch.Tensor) -> torch.Tensor:
        return self.channel_weight.to(like)

    @staticmethod
    def _differentiate(factor: float, loss: torch.Tensor, name: str, figures: Figures) -> None:
        figures.losses[name] = float(loss.detach())
        if factor:
            (factor * loss).backward()

    @staticmethod
    def _note_one_step(
        figures: Figures,
        data: dict[str, torch.Tensor],
        rectify: torch.Tensor,
        delta: torch.Tensor,
        draws: Draws,
    ) -> None:
        figures.losses |= {name: float(value.detach()) for name, value in data.items()}
        figures.losses["rectify"] = float(rectify.detach())
        figures.s, figures.delta = draws.s, delta


def velocity_calls(draws: Draws) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
    """The (t_cur, t_tar) pairs, each (rows,), that `Objective.backward` asks for in the sequential layout, in order."""
    m = (draws.t_cons + draws.s_cons) / 2
    ones = torch.ones_like(draws.t_flow)
    s, t_fake = draws.s, draws.t_fake
    return [
        (draws.t_flow, draws.t_flow),
        (draws.t_cons, m),
        (m, draws.s_cons),
        (draws.t_cons, draws.s_cons),
        (ones, torch.zeros_like(ones)),
        (s, s),
        (s, -s),
        (t_fake, -t_fake),
    ]
