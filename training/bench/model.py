"""The model that `bench` measures: random weights, held as the memory plan of a distillation says.

Weights are drawn tensor by tensor and loaded like those of a file (`qwen_base.load_packed`): each is packed and moved
to its place at once, so that memory never holds the whole transformer in bf16 beside its packed form.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from teasr_core.codec.block_dct import DCT_CHANNELS
from teasr_core.codec.dct import DctCodec
from teasr_core.codec.protocol import Codec
from teasr_core.codec.single_frame import keep_first_frame
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.weight_files.file_kind import Kind, KindOfFile
from teasr_core.weight_files.qwen_file import QwenSource, empty_transformer

from ..frozen_base.new_adapter import lora_scale, new_adapter
from ..frozen_base.qwen_base import CheckpointedVaeCodec, load_packed
from ..frozen_base.settings import DTYPES, base_dtype
from ..memory.apply import PreparedMemory, prepare
from ..memory.planner import MemoryPlan
from ..objective.losses import Perceptual
from .settings import BenchSettings


@dataclass(frozen=True)
class BenchModel:
    """Everything is on the device, except for what the plan holds on the host."""

    velocity: QwenVelocity
    codec: Codec
    perceptual: Perceptual | None
    memory: PreparedMemory
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True)
class RandomSource(QwenSource):
    """A transformer without a file: each parameter is drawn when it is read."""

    seed: int = 0

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", as_packed: Collection[str] = ()
    ) -> Iterator[tuple[str, torch.Tensor]]:
        assert not as_packed, "no weight is packed before it is drawn"
        generator = torch.Generator(device).manual_seed(self.seed)
        for name, shape in self.shapes.items():
            yield name, _random(name, shape, dtype, generator)


def weights_dtype(settings: BenchSettings) -> torch.dtype:
    """The dtype of the frozen weights that are not quantised. Raises the ConfigError of `base_dtype`."""
    is_builtin = settings.architecture.latent_channels == DCT_CHANNELS
    return base_dtype(settings.config, "fp32" if is_builtin else "bf16")


def random_source(settings: BenchSettings) -> RandomSource:
    shapes = {name: tuple(p.shape) for name, p in empty_transformer(settings.architecture).named_parameters()}
    kind = KindOfFile(Path("random weights"), Kind.QWEN_TRANSFORMER)
    seed = settings.config.run.seed
    return RandomSource(kind, settings.architecture, shapes, False, settings.prediction, seed=seed)


def load_random(settings: BenchSettings, plan: MemoryPlan, device: torch.device) -> BenchModel:
    """Make transformer, adapter, codec and perceptual network; the global random state does not change."""
    config = settings.config
    dtype = weights_dtype(settings)
    source = random_source(settings)
    transformer = load_packed(source, dtype, device, plan.groups)
    memory = prepare(transformer, plan, device)
    lora = new_adapter(transformer, settings.architecture, config.adapter, config.run.seed)
    lora = lora.to(device, DTYPES[config.adapter.dtype])
    generator = torch.Generator().manual_seed(config.run.seed)
    prompt = torch.randn(settings.prompt_tokens, settings.architecture.text_width, generator=generator)
    velocity = QwenVelocity(
        memory.transformer, prompt.to(device), source.prediction, lora, lora_scale(config.adapter),
        config.ablation.dtc,
    )  # fmt: skip
    if config.run.compile:
        for block in memory.transformer.transformer_blocks:
            block.compile(dynamic=False)
    codec, perceptual = _codec_and_perceptual(settings, plan, device)
    return BenchModel(velocity, codec, perceptual, memory, dict(lora.named_parameters()))


class LatentCodec(Codec):
    """A codec without a decoder: the data loss compares latents, as images of the same shape."""

    def __init__(self, channels: int, downscale: int) -> None:
        self.channels, self.downscale = channels, downscale

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return 2 * image - 1

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent + 1) / 2


def _codec_and_perceptual(
    settings: BenchSettings, plan: MemoryPlan, device: torch.device
) -> tuple[Codec, Perceptual | None]:
    channels = settings.architecture.latent_channels
    if not settings.use_decode:
        return LatentCodec(channels, 4 if channels == DCT_CHANNELS else 8), None
    with torch.random.fork_rng(devices=[]):
        perceptual = _random_lpips(settings.config.loss.perceptual, device)
        if channels == DCT_CHANNELS:
            return DctCodec([0.0] * DCT_CHANNELS, [1.0] * DCT_CHANNELS), perceptual
        from diffusers import AutoencoderKLQwenImage

        vae = AutoencoderKLQwenImage(base_dim=settings.vae_width).eval().requires_grad_(False)
        keep_first_frame(vae)  # as the trainer loads it
        nn.Module.to(vae, device, DTYPES[plan.decode_dtype])
        return CheckpointedVaeCodec(vae), perceptual


def _random_lpips(name: str, device: torch.device) -> Perceptual | None:
    """The network of `loss.perceptual` with random weights, so that no file is needed."""
    if name == "none":
        return None
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns of an argument that the package lpips passes
        network = lpips.LPIPS(net=name.removeprefix("lpips-"), pretrained=False, pnet_rand=True, verbose=False)
    return network.eval().requires_grad_(False).to(device)


def _random(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Matrices of about unit gain, norm weights around 1, biases around 0."""
    noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    if len(shape) == 2:
        return noise.mul_(shape[1] ** -0.5)
    return noise.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
