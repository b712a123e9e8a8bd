"""Bytes of each part of a distillation step, computed from shapes; tests compare them with counted bytes.

Tokens: N of one branch, S = 2N image tokens, T of the prompt. A "unit" is one image-token tensor (B, S, D) in bf16.
The computation is in bf16 and attention is fused (it keeps its inputs, its output and one number for each row).
Autocast on CUDA runs layer norm in float32, where its input and result take twice the memory, whatever the adapter's
dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import target_paths
from teasr_core.weight_files.packed import ACCELERATOR_CHUNK

from .checkpointing import Checkpointing
from .groups import GroupPlan
from .quantise import packed_bytes
from .streaming import RING

COMPUTE_BYTES = 2  # bf16
TIME_CHANNELS = 256  # of the sinusoid
PIECE_BYTES = 12  # a weight of the piece that is being unpacked: codes, two float32 numbers and temporaries
MLP = 4  # hidden width of an MLP, in D
VAE_CHANNELS = 16
VAE_PX = 8  # pixels per latent pixel
DCT_PX = 4
VAE_PARAMETERS = 126_892_531
VAE_BASE_DIM = 96

# Linears of a block as (out, in) in units of the width
_STREAM = ((1, 1), (1, 1), (1, 1), (1, 1), (MLP, 1), (1, MLP))
BLOCK_LINEARS = {"image_stream": _STREAM, "text_stream": _STREAM, "modulation": ((6, 1), (6, 1))}

# Counted with live tensors, in units: without and with autocast, the most that is alive in the backward of a recomputed
# block and in a forward without gradient; and in a backward on top of activations that were kept.
RECOMPUTE_UNITS = {False: 39.0, True: 45.5}
NO_GRAD_UNITS = {False: 19.1, True: 23.2}
KEPT_UNITS = 14.0
# The same for the decoder, bytes per pixel and base channel: alive at the end of its forward, and at most.
DECODE_HELD = {"bf16": 16.2, "fp32": 28.2}
DECODE_PEAK = {"bf16": 92.0, "fp32": 144.0}
# LPIPS of a pair in float32: bytes per pixel at most, and weights.
LPIPS_PEAK = {"none": 0.0, "lpips-alex": 280.0, "lpips-squeeze": 1085.0, "lpips-vgg": 3920.0}
LPIPS_WEIGHTS = {"none": 0, "lpips-alex": 9_883_392, "lpips-squeeze": 2_898_944, "lpips-vgg": 58_864_640}


@dataclass(frozen=True)
class OptimiserBytes:
    """Bytes per LoRA parameter: weight, gradient and optimiser state on the device, state on the host."""

    weight: float
    gradient: float
    state: float
    host: float = 0.0

    @property
    def device(self) -> float:
        return self.weight + self.gradient + self.state


# `optim.kind`, and the adapter's dtype on the device where it is not float32
OPTIMISERS = {
    "adamw": OptimiserBytes(4, 4, 8),
    "adamw-8bit": OptimiserBytes(4, 4, 2),
    "prodigy": OptimiserBytes(4, 4, 16),  # two moments, the sum of the gradients, the first weights
    "adafactor": OptimiserBytes(4, 4, 0.25),  # a row and a column of each matrix
    "adamw-cpu": OptimiserBytes(4, 4, 0, host=12),  # float32 weight and states on the host
    "adamw-cpu bf16": OptimiserBytes(2, 2, 0, host=12),  # the same, and bf16 on the device
}


@dataclass(frozen=True)
class FileWeights:
    """What the block Linears of a packed file take as they are: bytes of each block, by group.

    is_kept: whether plans keep them so unless the config says otherwise.
    """

    block_bytes: Mapping[str, tuple[int, ...]]
    is_kept: bool


@dataclass(frozen=True)
class Problem:
    """What a step trains, and on what: all that its memory depends on."""

    architecture: QwenArchitecture
    resolution_px: int  # side of the training crop
    rank: int
    batch: int = 1
    layout: str = "sequential"  # of the step: sequential | rotate | batched
    perceptual: str = "lpips-alex"
    prompt_tokens: int = 16
    use_autocast: bool = True  # run.autocast
    file: FileWeights | None = None  # of a base whose file packs its weights

    @property
    def uses_vae(self) -> bool:
        return self.architecture.latent_channels == VAE_CHANNELS

    @property
    def image_tokens(self) -> int:
        """S: tokens of both branches."""
        token_px = (VAE_PX if self.uses_vae else DCT_PX) * self.architecture.patch_size
        return 2 * math.ceil(self.resolution_px / token_px) ** 2

    @property
    def graph_rows(self) -> int:
        """The samples whose activations are held at the same time, which are also the rows of the longest backward."""
        return self.batch * (4 if self.layout == "batched" else 1)


def group_parameters(architecture: QwenArchitecture) -> dict[str, int]:
    """Number of parameters of each memory group."""
    D, L, head = architecture.width, architecture.num_layers, architecture.head_dim
    counts = {}
    for group, linears in BLOCK_LINEARS.items():
        numbers = sum(o * i * D * D + o * D for o, i in linears)
        counts[group] = L * (numbers + (0 if group == "modulation" else 2 * head))  # two norms of a head each
    return counts | {"rest": _rest_parameters(architecture)}


def _rest_parameters(architecture: QwenArchitecture) -> int:
    D, text, tokens = architecture.width, architecture.text_width, architecture.token_channels
    time = TIME_CHANNELS * D + D + D * D + D
    out = 2 * D * D + 2 * D + D * tokens + tokens
    return text + (tokens * D + D) + (text * D + D) + time + out


def block_bytes(
    architecture: QwenArchitecture, group: str, precision: str, file: FileWeights | None = None
) -> tuple[int, ...]:
    """Bytes of the group's Linears in each block."""
    if precision == "file" and file is not None:
        return file.block_bytes[group]
    D = architecture.width
    block = sum(packed_bytes((o * D, i * D), precision) for o, i in BLOCK_LINEARS[group])
    return (block,) * architecture.num_layers


def weight_bytes(
    architecture: QwenArchitecture, group: str, plan: GroupPlan, file: FileWeights | None = None
) -> tuple[int, int]:
    """(device, host) bytes of a group's weights in a forward; biases and norms stay on the device in bf16."""
    parameters = group_parameters(architecture)[group]
    if group == "rest":
        return COMPUTE_BYTES * parameters, 0
    D, L = architecture.width, architecture.num_layers
    blocks = block_bytes(architecture, group, plan.precision, file)
    small = COMPUTE_BYTES * (parameters - L * sum(o * i * D * D for o, i in BLOCK_LINEARS[group]))
    if plan.placement == "resident":
        return sum(blocks) + small, 0
    ring = min(RING, L) * max(blocks) if plan.placement == "streamed" else 0
    return ring + small, sum(blocks)


def sweep_bytes(problem: Problem, plan: GroupPlan) -> tuple[int, int]:
    """(rows that stay for the step, ring while sweeping) of swept modulation: 8 rows a sample in pairs."""
    if plan.placement != "swept":
        return 0, 0
    D, L = problem.architecture.width, problem.architecture.num_layers
    rows = 8 * problem.batch * L * 3 * 6 * D * COMPUTE_BYTES  # two image rows and a text row each
    blocks = block_bytes(problem.architecture, "modulation", plan.precision, problem.file)
    return rows, min(RING, L) * max(blocks)


def scratch_bytes(architecture: QwenArchitecture, plans: dict[str, GroupPlan]) -> int:
    """The largest weight while it is unpacked: in bf16, for NF4 also its codes as integers, for a file's own packing
    also the piece that is computed in float32."""
    D = architecture.width
    per_weight = {"bf16": 0, "fp8": COMPUTE_BYTES, "nf4": 2 * COMPUTE_BYTES, "file": COMPUTE_BYTES}
    pieces = ACCELERATOR_CHUNK * PIECE_BYTES if any(plan.precision == "file" for plan in plans.values()) else 0
    sizes = [
        per_weight[plan.precision] * o * i * D * D for group, plan in plans.items() for o, i in BLOCK_LINEARS[group]
    ]
    return max(sizes) + pieces


def lora_parameters(architecture: QwenArchitecture, rank: int) -> int:
    """Parameters of the branch LoRA on all its targets."""
    D = architecture.width
    sizes = {"img_mlp.net.0.proj": (D, MLP * D), "img_mlp.net.2": (MLP * D, D), "img_mod.1": (D, 6 * D)}
    paths = [path.split(".", 2)[2] for path in target_paths(architecture.num_layers)]
    return sum(rank * sum(sizes.get(path, (D, D))) for path in paths)


def unit_bytes(problem: Problem, rows: int) -> int:
    return rows * problem.image_tokens * problem.architecture.width * COMPUTE_BYTES


def block_input_bytes(problem: Problem, rows: int) -> int:
    """What a checkpointed block keeps, its image and text tokens."""
    tokens = problem.image_tokens + problem.prompt_tokens
    return rows * tokens * problem.architecture.width * COMPUTE_BYTES


def block_saved_bytes(problem: Problem, rows: int) -> int:
    """What autograd keeps of a block that is not checkpointed (frozen Linears keep nothing)."""
    S, T = problem.image_tokens, problem.prompt_tokens
    D, heads = problem.architecture.width, problem.architecture.num_heads
    b = COMPUTE_BYTES
    # A single sample's LoRA inputs are views that keep the whole tensor; with more samples they are copies of the half.
    lora = 6.0 if rows == 1 else 4.5  # units: modulated tokens twice, gelu's output four times as wide
    # Two layer norms a stream; of the text's, whose modulation has no adapter, the result need not be kept.
    norms = (4, 2) if problem.use_autocast else (0, 0)  # units more: (image, text)
    image = rows * S * D * ((12 + MLP + lora + norms[0]) * b + 2 * 4)  # norms, gates, gelu; q and k in float32
    text = rows * T * D * ((4 + MLP + norms[1]) * b + 2 * 4)
    attention = rows * (S + T) * (4 * D * b + 4 * heads)
    statistics = rows * S * heads * 8 + 3 * rows * S * problem.rank * b
    return int(image + text + attention + statistics)


def activation_bytes(problem: Problem, checkpointing: Checkpointing, lora_weight: float) -> tuple[int, int]:
    """(device, host) bytes that are held between a forward with gradient and its backward.

    A float32 LoRA computes in bf16 copies, which blocks that are not checkpointed keep too.
    """
    L, rows = problem.architecture.num_layers, problem.graph_rows
    inputs = block_input_bytes(problem, rows)
    if checkpointing.mode == "offload":
        return 2 * inputs, L * inputs
    covered = sum(checkpointing.covers(block) for block in range(L))
    kept = (L - covered) * (block_saved_bytes(problem, rows) + lora_copy_bytes(problem, lora_weight) / L)
    return int(covered * inputs + kept), 0


def lora_copy_bytes(problem: Problem, lora_weight: float) -> int:
    """bf16 copies of a float32 LoRA (bytes a weight: `lora_weight`), which autocast keeps to the end of a forward."""
    return lora_parameters(problem.architecture, problem.rank) * COMPUTE_BYTES if lora_weight > 2 else 0


def backward_bytes(problem: Problem, checkpointing: Checkpointing, lora_weight: float) -> int:
    """The peak of a backward in addition to the held activations, with the recomputation of one block."""
    rows = problem.batch * (3 if problem.layout == "batched" else 1)
    if checkpointing.mode == "none":
        return int(KEPT_UNITS * unit_bytes(problem, rows))
    copies = lora_copy_bytes(problem, lora_weight) / problem.architecture.num_layers
    return int(RECOMPUTE_UNITS[problem.use_autocast] * unit_bytes(problem, rows) + copies)


def score_bytes(problem: Problem, lora_weight: float) -> int:
    """The peak of a forward without gradient.

    The two of Delta run one after the other on top of the one-step graph: B rows, and all of a float32 LoRA's copies.
    """
    units = NO_GRAD_UNITS[problem.use_autocast] * unit_bytes(problem, problem.batch)
    return int(units + lora_copy_bytes(problem, lora_weight))


def working_bytes(problem: Problem, checkpointing: Checkpointing, lora_weight: float) -> int:
    """The peak in addition to the held activations while the transformer runs forward or backward."""
    return max(backward_bytes(problem, checkpointing, lora_weight), score_bytes(problem, lora_weight))


def decode_bytes(problem: Problem, dtype: str) -> tuple[int, int]:
    """(peak, weights) of the decode with its gradient and LPIPS, a checkpoint per up-block."""
    pixels = problem.batch * problem.resolution_px**2
    lpips, weights = LPIPS_PEAK[problem.perceptual] * pixels, LPIPS_WEIGHTS[problem.perceptual]
    if not problem.uses_vae:
        return int(lpips + 4 * 3 * 4 * pixels), weights  # the DCT has no weights; a few float32 images
    channels = VAE_BASE_DIM * pixels
    peak = max(DECODE_PEAK[dtype] * channels, DECODE_HELD[dtype] * channels + lpips)
    return int(peak), weights + VAE_PARAMETERS * (4 if dtype == "fp32" else 2)
