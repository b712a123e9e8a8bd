"""A tiny built-in model with random weights: real classes, every weight non-zero, so that every part matters.

As a `QwenVelocity`, as a base file on disk, and a random TEASR LoRA for it as tensors, module and file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from teasr_core.codec.block_dct import DCT_CHANNELS
from teasr_core.codec.condition_encoder.encoder import ConditionEncoder
from teasr_core.codec.condition_encoder.residual import ResidualEncoder
from teasr_core.codec.condition_encoder.rrdb import RrdbEncoder
from teasr_core.codec.dct import DctCodec
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BLOCK_TARGETS, BranchLora, target_paths
from teasr_core.model.qwen_velocity import QwenVelocity, build_transformer
from teasr_core.weight_files import base_file
from teasr_core.weight_files.base_file import BASE_NAME, base_metadata, encoder_tensors
from teasr_core.weight_files.lora_file import PROMPT_KEY, fingerprint, lora_metadata, lora_tensors

ARCHITECTURE = QwenArchitecture(
    latent_channels=DCT_CHANNELS, num_layers=2, num_heads=2, head_dim=32, rope_axes=(8, 12, 12), text_width=16
)
PROMPT_TOKENS = 3
RANK = 4
BASE_ID = "tiny"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codec() -> DctCodec:
    """Statistics like those of photographs: a mean at DC alone, energy falling with frequency."""
    row = torch.arange(4.0)
    std = 1.0 / (1 + row[:, None] + row[None, :])  # (4, 4)
    mean = torch.zeros(3, 16)
    mean[:, 0] = torch.tensor([-0.3, -0.2, -0.1])
    return DctCodec(mean.flatten().tolist(), std.flatten().repeat(3).tolist())


def random_weights(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Matrices of about unit gain, norm weights around 1, biases around 0."""
    source = generator(seed)
    weights = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=source)
        if len(shape) == 2:
            weights[key] = noise * shape[1] ** -0.5
        else:
            weights[key] = 0.1 * noise + (1.0 if key.endswith("weight") else 0.0)
    return weights


def base_weights(architecture: QwenArchitecture = ARCHITECTURE, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a random transformer."""
    shapes = {key: value.shape for key, value in build_transformer(architecture).state_dict().items()}
    return random_weights(shapes, seed)


def prompt_embeds(architecture: QwenArchitecture = ARCHITECTURE, seed: int = 1) -> torch.Tensor:
    return torch.randn(PROMPT_TOKENS, architecture.text_width, generator=generator(seed))


def lora_weights(architecture: QwenArchitecture = ARCHITECTURE, seed: int = 2) -> dict[str, torch.Tensor]:
    """A random adapter, `{path}.lora_A.weight` and `{path}.lora_B.weight`, big enough to show."""
    linears = dict(build_transformer(architecture).named_modules())
    shapes = {}
    for path in target_paths(architecture.num_layers):
        out_features, in_features = linears[path].weight.shape
        shapes[f"{path}.lora_A.weight"] = torch.Size((RANK, in_features))
        shapes[f"{path}.lora_B.weight"] = torch.Size((out_features, RANK))
    return {key: 0.5 * value for key, value in random_weights(shapes, seed).items()}


def velocity(
    prediction: str = "lq_residual",
    use_lora: bool = False,
    lora_strength: float = 1.0,
    use_dtc: bool = True,
    dtype: torch.dtype = torch.float32,
) -> QwenVelocity:
    transformer = build_transformer(ARCHITECTURE)
    transformer.load_state_dict(base_weights())
    nn.Module.to(transformer, dtype).eval().requires_grad_(False)  # diffusers would warn of the cast
    lora = None
    if use_lora:
        lora = BranchLora.from_tensors(lora_weights()).to(dtype).requires_grad_(False)
    return QwenVelocity(transformer, prompt_embeds(), prediction, lora, lora_strength, use_dtc)


def latents(batch: int = 2, height: int = 8, width: int = 12, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """(z_t, z_lq), each (B, 48, H, W): by default not square."""
    both = torch.randn(2, batch, DCT_CHANNELS, height, width, generator=generator(seed))
    return both[0], both[1]


def picture(height: int, width: int, batch: int = 1, seed: int = 4) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1]: a soft ramp with a little grain."""
    ramp = torch.linspace(0.2, 0.7, width).expand(batch, 3, height, width)
    return (ramp + 0.2 * torch.rand(batch, 3, height, width, generator=generator(seed))).contiguous()


def condition_encoder(seed: int = 5) -> ResidualEncoder:
    """A random encoder that sees 6 latent pixels away."""
    encoder = ResidualEncoder(DCT_CHANNELS, width=8, blocks=2)
    shapes = {key: value.shape for key, value in encoder.state_dict().items()}
    source = generator(seed)
    encoder.load_state_dict({key: 0.1 * torch.randn(shape, generator=source) for key, shape in shapes.items()})
    return encoder.eval().requires_grad_(False)


def rrdb_encoder(seed: int = 5, blocks: int = 2) -> RrdbEncoder:
    """A random one of 8 features; a skip of its own, so that nothing is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = RrdbEncoder(blocks, width=8, growth=4)
        torch.nn.init.normal_(encoder.skip.weight, std=0.02)
    encoder.set_statistics(codec().mean, codec().std)
    return encoder.eval().requires_grad_(False)


def write_base(
    path: Path,
    architecture: QwenArchitecture = ARCHITECTURE,
    dtype: torch.dtype = torch.float32,
    encoder: ConditionEncoder | None = None,
    **changes: str,
) -> Path:
    """A base file, with a condition encoder if one is given; `changes` replace metadata."""
    its_codec = codec()
    its_codec.condition_encoder = encoder
    tensors = {**base_weights(architecture), PROMPT_KEY: prompt_embeds(architecture), **encoder_tensors(its_codec)}
    metadata = base_metadata(architecture, "lq_residual", True, its_codec, {"steps": 0})
    save_file({key: value.to(dtype) for key, value in tensors.items()}, path, metadata=metadata | changes)
    return path


def write_assets(folder: Path) -> Path:
    """A folder to stand in for `builtin.ASSETS`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_base(folder / BASE_NAME)
    return folder


def lora_file_metadata(architecture: QwenArchitecture = ARCHITECTURE, **changes: str) -> dict[str, str]:
    metadata = lora_metadata(
        prediction="lq_residual", rank=RANK, targets=BLOCK_TARGETS, base=BASE_ID,
        base_fingerprint=fingerprint(base_weights(architecture)), step=7, config={"rank": RANK},
    )  # fmt: skip
    return metadata | changes


def write_lora(path: Path, architecture: QwenArchitecture = ARCHITECTURE, **changes: str) -> Path:
    """A LoRA file for the tiny base; `changes` replace metadata."""
    tensors = lora_tensors(lora_weights(architecture), prompt_embeds(architecture, seed=5))
    save_file(tensors, path, metadata=lora_file_metadata(architecture, **changes))
    return path


def read_tiny_base(folder: Path) -> base_file.BaseFile:
    return base_file.read_base(write_base(folder / BASE_NAME))


def pixels(height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    """A soft ramp with grain, (H, W, C), or (H, W) for one channel."""
    top = np.iinfo(dtype).max
    ramp = np.linspace(0.2, 0.7, width)[None, :, None].repeat(height, 0).repeat(channels, 2)
    grain = np.random.default_rng(channels).random((height, width, channels)) * 0.2
    values = ((ramp + grain) * top).astype(dtype)
    return values[..., 0] if channels == 1 else values


def write_picture(path: Path, channels: int = 3, height: int = 7, width: int = 10) -> Path:
    Image.fromarray(pixels(height, width, channels)).save(path)
    return path
