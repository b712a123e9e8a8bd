"""The losses of one pretraining batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from teasr_core.codec.dct import DctCodec
from teasr_core.model.flow import clean_from_output, interpolate
from teasr_core.sampling.sampler import sample
from teasr_core.sampling.schedule import linear_taus

from ..config.stage import StageConfig, split_roles
from ..objective import losses, texture, time_sampling
from ..objective.losses import Perceptual
from ..run.loop import Pictures
from .model import PretrainModel


def pretrain_losses(
    model: PretrainModel,
    codec: DctCodec,
    pictures: Pictures,
    stage: StageConfig,
    loss_space: str,
    perceptual: Perceptual | None,
    generator: torch.Generator,
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, torch.Tensor]:
    """The losses of one batch, each already multiplied by its share of rows; their sum is to be differentiated.

    pictures: (lq, hq) or (lq, hq, target), each (B, 3, H, W) in [0, 1]. Returns scalars `data`, `lpips`, `flow`, `cons`
    and so on, those with rows and a weight only.
    The one-step result (Eq. 6) is formed here. data_steps is as in DMD2's backward simulation (arXiv 2405.14867): the
    last step learns to clean up what the steps before it leave. A stage that trains the condition
    encoder has the losses of data rows alone, of the encoder's own picture.
    forward_context: entered around the network that is trained alone, e.g. autocast; codec, losses and a frozen
    condition encoder stay float32, as in `distill` and at inference.
    """
    lq, hq = pictures[:2]
    if stage.trains == "encoder":
        assert model.condition_encoder is not None  # checked with the config
        plain = codec.encode(lq)  # (B, C, h, w)
        with forward_context():
            encoded = model.condition_encoder(plain)  # (B, C, h, w)
        return picture_losses(codec, encoded.float(), pictures[1:], stage, perceptual, generator, share=1.0)
    network = model.velocity()

    def velocity(z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        with forward_context():
            return network(z_t, t_cur, z_lq, t_tar)  # (B, C, h, w)

    num_data, num_flow, num_cons = split_roles(stage)
    z_0, z_lq = codec.encode(hq), codec.encode_lq(lq, scale=1.0)  # (B, C, h, w)
    # Random numbers come from a CPU generator, so that they are the same on every device.
    noise = torch.randn(z_0.shape, generator=generator).to(z_0)  # (B, C, h, w)
    t_flow = time_sampling.flow_times(num_flow, generator)  # (F,)
    t_cons, s_cons = time_sampling.consistency_times(num_cons, generator, stage.boundary_time)  # (K,)
    taus = linear_taus(time_sampling.one_of(stage.data_steps, generator))  # (N+1,)
    t = torch.cat([taus[-2].expand(num_data), t_flow, t_cons]).to(z_0)  # (B,)
    t_tar = torch.cat([torch.zeros(num_data), t_flow, s_cons]).to(z_0)  # (B,)
    start = noise[:num_data]  # (D, C, h, w)
    if num_data and len(taus) > 2:
        start = sample(velocity, start, z_lq[:num_data], taus[:-1])
    others = slice(num_data, None)
    z_t = torch.cat([start, interpolate(z_0[others], noise[others], t[others])])  # (B, C, h, w)
    with forward_context():
        output = network.network_output(z_t, t, z_lq, t_tar)  # (B, C, h, w)
    output = output.float()

    batch = stage.batch_size
    data, flow, cons = (slice(0, num_data), slice(num_data, num_data + num_flow), slice(batch - num_cons, batch))
    weight = codec.pixel_weights.to(z_0)  # (1, C, 1, 1)
    if loss_space != "pixel":
        weight = torch.ones_like(weight)
    kind = model.config.prediction
    result: dict[str, torch.Tensor] = {}
    if num_data:
        clean = clean_from_output(kind, output[data], z_t[data], z_lq[data], t[data])
        compared = [one[data] for one in pictures[1:]]
        result |= picture_losses(codec, clean, compared, stage, perceptual, generator, num_data / batch, len(taus) - 1)
    if num_flow:
        target = losses.flow_target(z_0[flow], noise[flow])
        result["flow"] = losses.velocity_loss(kind, output[flow], target, z_t[flow], z_lq[flow], t[flow], weight) * (
            num_flow / batch
        )
    if num_cons:
        target = losses.consistency_target(velocity, z_t[cons], t[cons], z_lq[cons], t_tar[cons])
        flow_target = losses.flow_target(z_0[cons], noise[cons])
        target = losses.with_boundary(target, flow_target, t[cons], t_tar[cons], stage.boundary_time)
        result["cons"] = losses.velocity_loss(kind, output[cons], target, z_t[cons], z_lq[cons], t[cons], weight) * (
            num_cons / batch
        )
    return result


def picture_losses(
    codec: DctCodec,
    clean: torch.Tensor,
    compared: Sequence[torch.Tensor],
    stage: StageConfig,
    perceptual: Perceptual | None,
    generator: torch.Generator,
    share: float,
    steps: int = 1,
) -> dict[str, torch.Tensor]:
    """`data` (Eq. 12), `lpips` (Eq. 13), and the others that the stage gives a weight, times it and `share`.

    clean: (B, C, h, w). compared: the photograph and, where a loss asks for it, the target picture, each (B, 3, H, W)
    in [0, 1]. steps: how many made it; `lpips` and `lattice` count that often, `texture` once less, so that more steps
    give more texture at the price of fidelity and one step gives none.
    """
    pictures = [inner(2 * picture - 1, stage.border_px) for picture in (codec.decode(clean), *compared)]
    x_fake, x_0 = pictures[:2]  # (B, 3, H, W) in [-1, 1]
    offset = None
    if perceptual is not None and max(stage.perceptual_weight, stage.target_perceptual_weight) > 0:
        offset = losses.perceptual_offset(generator)
    weighted: dict[str, tuple[float, Callable[[], torch.Tensor]]] = {
        "data": (stage.data_weight, lambda: losses.data_loss(x_fake, x_0)),
        "l1": (stage.l1_weight, lambda: losses.absolute_loss(x_fake, x_0)),
        "gradient": (stage.gradient_weight, lambda: losses.gradient_loss(x_fake, x_0)),
        "lpips": (stage.perceptual_weight * steps, lambda: _lpips(perceptual, x_fake, x_0, offset)),
        "lattice": (stage.lattice_weight * steps, lambda: texture.lattice_loss(x_fake, x_0)),
        "sharpness": (stage.sharpness_weight, lambda: -losses.gradient_loss(x_fake, torch.zeros_like(x_fake))),
        "texture": (stage.texture_weight * (steps - 1), lambda: texture.texture_loss(x_fake, x_0)),
    }
    if stage.uses_target:
        target = pictures[2]
        weighted |= {
            "target_l1": (stage.target_l1_weight, lambda: losses.absolute_loss(x_fake, target)),
            "target_gradient": (stage.target_gradient_weight, lambda: losses.gradient_loss(x_fake, target)),
            "target_lpips": (stage.target_perceptual_weight, lambda: _lpips(perceptual, x_fake, target, offset)),
        }
    if perceptual is None:
        weighted = {name: entry for name, entry in weighted.items() if not name.endswith("lpips")}
    return {name: loss() * (weight * share) for name, (weight, loss) in weighted.items() if weight > 0}


def inner(picture: torch.Tensor, border_px: int) -> torch.Tensor:
    """(B, 3, H, W) without `border_px` pixels on each side."""
    height, width = picture.shape[2:]
    return picture[:, :, border_px : height - border_px, border_px : width - border_px]


def _lpips(
    perceptual: Perceptual | None, x_fake: torch.Tensor, x: torch.Tensor, offset: torch.Tensor | None
) -> torch.Tensor:
    assert perceptual is not None and offset is not None  # checked with the config
    window = losses.perceptual_window(x, offset)
    return losses.perceptual_loss(perceptual, x_fake[window], x[window])
