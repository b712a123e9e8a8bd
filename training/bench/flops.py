"""Floating-point operations of a distillation step, from shapes; a multiplication with its addition counts as two.

The floor: every row of the transformer once forward; for each row with a gradient one more, since the backward of a
frozen Linear is one product (the gradient of its input); and its recomputed blocks once more. What is left out above
it: the backward of attention costs two forwards of it, the LoRA's own gradients one of the LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..memory.checkpointing import Checkpointing
from ..memory.costs import MLP, TIME_CHANNELS, Problem, lora_parameters

# Rows of a sample in a micro-step, all of them and those with a gradient. `rotate` takes four micro-steps for every
# role, and needs the one-step result a second time.
FULL_ROWS: dict[str, tuple[float, float]] = {"sequential": (8, 4), "batched": (8, 4), "rotate": (9 / 4, 1)}
PLAIN_ROWS: tuple[float, float] = (1, 1)


@dataclass(frozen=True)
class Floor:
    """forwards: of one row, that the step amounts to; flop: of the whole step."""

    forwards: float
    flop: float


def forward_flop(problem: Problem) -> int:
    """Of one row: noise and condition tokens of one sample, and its prompt."""
    architecture = problem.architecture
    D, tokens, S = architecture.width, architecture.token_channels, problem.image_tokens
    embed = tokens * D * S + architecture.text_width * D * problem.prompt_tokens + 2 * (TIME_CHANNELS * D + D * D)
    out = 2 * D * D + D * tokens * S
    return blocks_flop(problem) + 2 * (embed + out)


def blocks_flop(problem: Problem) -> int:
    """The blocks' and the LoRA's share of it."""
    D, S, T = problem.architecture.width, problem.image_tokens, problem.prompt_tokens
    streams = (4 + 2 * MLP) * D * D * (S + T)  # attention's and the MLP's Linears
    modulation = 6 * D * D * 3  # two image rows and a text row
    attention = 2 * (S + T) ** 2 * D  # both products
    return 2 * (problem.architecture.num_layers * (streams + modulation + attention) + _lora_products(problem))


def floor(problem: Problem, rows: tuple[float, float], checkpointing: Checkpointing, micro_steps: int = 1) -> Floor:
    """Of a step of `micro_steps` batches; rows: (all, with gradient) of a sample in each."""
    L = problem.architecture.num_layers
    recomputed = sum(checkpointing.covers(block) for block in range(L)) / L
    samples = problem.batch * micro_steps
    whole, again = samples * (rows[0] + rows[1]), samples * rows[1] * recomputed
    return Floor(whole + again, whole * forward_flop(problem) + again * blocks_flop(problem))


def _lora_products(problem: Problem) -> int:
    """Multiplications of the adapter: its modulation sees one vector, the rest the condition tokens."""
    D, L, rank = problem.architecture.width, problem.architecture.num_layers, problem.rank
    modulation = L * rank * 7 * D
    return modulation + (lora_parameters(problem.architecture, rank) - modulation) * problem.image_tokens // 2
