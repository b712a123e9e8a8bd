"""The least floating-point operations of a distillation step, from shapes; a multiply-add counts as two.

Every row runs forward through the transformer once. A row with a gradient costs one forward more, since the backward of
a frozen Linear is one product (the gradient of its input), and its recomputed blocks run once more. Not counted: the
backward of attention, which costs as much as two of its forwards, and the gradients of the LoRA itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..memory.checkpointing import Checkpointing
from ..memory.costs import MLP, TIME_CHANNELS, Problem, lora_parameters

# Rows of a sample in a micro-step: (all of them, those with a gradient). `rotate` takes four micro-steps to train every
# role, and computes the one-step result a second time.
FULL_ROWS: dict[str, tuple[float, float]] = {"sequential": (8, 4), "batched": (8, 4), "rotate": (9 / 4, 1)}
PLAIN_ROWS: tuple[float, float] = (1, 1)


@dataclass(frozen=True)
class Floor:
    """forwards: the number of forwards of one row that cost as much as the step. flop: of the whole step."""

    forwards: float
    flop: float


def forward_flop(problem: Problem) -> int:
    """The operations of one row: noise and condition tokens of one sample, and its prompt."""
    architecture = problem.architecture
    D, tokens, S = architecture.width, architecture.token_channels, problem.image_tokens
    embed = tokens * D * S + architecture.text_width * D * problem.prompt_tokens + 2 * (TIME_CHANNELS * D + D * D)
    out = 2 * D * D + D * tokens * S
    return blocks_flop(problem) + 2 * (embed + out)


def blocks_flop(problem: Problem) -> int:
    """The share of the blocks and of the LoRA in `forward_flop`."""
    D, S, T = problem.architecture.width, problem.image_tokens, problem.prompt_tokens
    streams = (4 + 2 * MLP) * D * D * (S + T)  # attention's and the MLP's Linears
    modulation = 6 * D * D * 3  # two image rows and a text row
    attention = 2 * (S + T) ** 2 * D  # both products
    return 2 * (problem.architecture.num_layers * (streams + modulation + attention) + _lora_products(problem))


def floor(problem: Problem, rows: tuple[float, float], checkpointing: Checkpointing, micro_steps: int = 1) -> Floor:
    """The least operations of a step of `micro_steps` batches. rows: (all, with gradient) of a sample in each batch."""
    L = problem.architecture.num_layers
    recomputed = sum(checkpointing.covers(block) for block in range(L)) / L
    samples = problem.batch * micro_steps
    passes, recomputations = samples * (rows[0] + rows[1]), samples * rows[1] * recomputed
    flop = passes * forward_flop(problem) + recomputations * blocks_flop(problem)
    return Floor(passes + recomputations, flop)


def _lora_products(problem: Problem) -> int:
    """The multiplications of the adapter: its modulation processes one vector, the rest the condition tokens."""
    D, L, rank = problem.architecture.width, problem.architecture.num_layers, problem.rank
    modulation = L * rank * 7 * D
    return modulation + (lora_parameters(problem.architecture, rank) - modulation) * problem.image_tokens // 2
