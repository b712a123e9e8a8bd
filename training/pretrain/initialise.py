"""Starting weights of a small transformer that is trained from scratch.

At t = 1 a noise token knows nothing but its position, and what it must become stands in the condition tokens around
it. Left to chance, attention had not found them after hundreds of steps (docs/log/any_step_training.md). So the network
starts as a local gather: each head looks at one neighbour, noise tokens look past each other, and what they gather
outweighs their noise. All of this is in the weights, so training may change every part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

    from ..config.pretrain import ModelConfig

# The two fastest rotary frequencies (1 and about 0.5 radians a token) tell neighbours apart without repeating within a
# crop; all of them together would hardly differ from one token to the next.
LOCAL_PAIRS = 2
LOCAL_SHARPNESS = 2.0  # weight of the query and key norms, which bound the attention logit
ROPE_THETA = 10000  # of Qwen-Image's rotary positions
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))  # (rows, columns) away


@torch.no_grad()
def initialise(transformer: QwenImageTransformer2DModel, config: ModelConfig) -> None:
    """Zero-initialise modulation weights and output, then build the local gather as asked. In place.

    Zero modulation weights and proj_out (adaLN-Zero, Peebles & Xie 2023) start the network at "the LQ image"; the gates
    start open, so that proj_out sees features of the LQ image from the first step. Local heads start as ConViT's
    gated positional attention does (d'Ascoli et al. 2021), through rotary phases.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.orthogonal_(transformer.img_in.weight, gain=config.input_gain)
    blocks: Any = transformer.transformer_blocks  # torch types a ModuleList's items too loosely to be of use
    for layer, block in enumerate(blocks):
        for linear in (block.img_mod[1], block.txt_mod[1]):
            nn.init.zeros_(linear.weight)
            _, _, gate1, _, _, gate2 = linear.bias.chunk(6)  # shift, scale, gate of attention, then of the MLP
            gate1.fill_(config.gate_init)
            gate2.fill_(config.gate_init)
        if config.local_attention_init > 0:
            _make_attention_local(block, layer, config)
    if config.use_dtc:  # one fused time could not tell the condition from the noise
        time = _time_readout(transformer)
        _scale_attention_by_time(transformer, -config.time_scale_init * time)
        _open_first_gate_by_time(transformer, config.noise_gate_init * time)
        if config.local_attention_init > 0:
            _turn_noise_keys(transformer, config.noise_repel_init, time)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)


def _time_readout(transformer: QwenImageTransformer2DModel) -> torch.Tensor:
    """(D,) weights that read t out of the modulation's input, silu of the time embedding (ridge regression)."""
    times = torch.linspace(0, 1, 257)  # (T,)
    features = nn.functional.silu(transformer.time_text_embed(times, torch.zeros(1))).double()  # (T, D)
    gram = features.T @ features + 1e-3 * len(times) * features.var() * torch.eye(features.shape[1]).double()
    return torch.linalg.solve(gram, features.T @ times.double()).float()


def _modulation(block: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(shift, scale, gate), each (D, D): the rows of img_mod that modulate attention. Views."""
    shift, scale, gate, *_ = block.img_mod[1].weight.chunk(6)
    return shift, scale, gate


def _scale_attention_by_time(transformer: Any, slope: torch.Tensor) -> None:
    """A token at time t is noise but for its share 1 - t, so it should speak less."""
    for block in transformer.transformer_blocks:
        _modulation(block)[1].copy_(slope.expand(len(slope), -1))


def _open_first_gate_by_time(transformer: Any, slope: torch.Tensor) -> None:
    """What the first layer gathers drowns the noise a token starts with; the norm of the next layer sees to the rest.

    Without it, noise fills `token_channels` of the D dimensions of every noise token up to the output.
    """
    _modulation(transformer.transformer_blocks[0])[2].copy_(slope.expand(len(slope), -1))


def _turn_noise_keys(transformer: Any, amount: float, time: torch.Tensor) -> None:
    """Subtract `amount` * t times the positional bias from the keys: at t = 1 noise tokens do not attract each other.

    Time enters through the shift along one direction that only the keys read.
    """
    width = len(time)
    for block in transformer.transformer_blocks:
        direction = torch.where(torch.rand(width) < 0.5, -1.0, 1.0) / math.sqrt(width)  # unit length
        for linear in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
            linear.weight.sub_((linear.weight @ direction)[:, None] * direction)
        _modulation(block)[0].copy_(math.sqrt(width) * direction[:, None] * time)
        block.attn.to_k.weight.sub_(amount / math.sqrt(width) * block.attn.to_k.bias[:, None] * direction)


def head_offsets(layer: int, num_heads: int) -> list[tuple[int, int]]:
    """(rows, columns) each local head of a layer looks away: its own place, then neighbours, dealt out layer by layer.

    The last of several heads stays free, so the list is one shorter than `num_heads`.
    """
    count = max(0, num_heads - 2)
    return [(0, 0)] + [NEIGHBOURS[(layer * count + k) % len(NEIGHBOURS)] for k in range(count)]


def _make_attention_local(block: Any, layer: int, config: ModelConfig) -> None:
    """Constant query and key biases on the fastest rotary pairs; the query's are turned by the head's offset.

    A rotary pair scores cos(frequency * (key position - query position) - turn), largest at the offset.
    """
    frame, rows, columns = config.rope_axes
    radius = config.local_attention_init * math.sqrt(2)
    for name, linear in (("query", block.attn.to_q), ("key", block.attn.to_k)):
        bias = linear.bias.view(config.num_heads, config.head_dim)
        for head, offset in enumerate(head_offsets(layer, config.num_heads)):
            for start, size, away in zip((frame, frame + rows), (rows, columns), offset, strict=True):
                for pair in range(LOCAL_PAIRS):
                    turn = away * ROPE_THETA ** (-2 * pair / size) if name == "query" else 0.0
                    bias[head, start + 2 * pair] = radius * math.cos(math.pi / 4 + turn)
                    bias[head, start + 2 * pair + 1] = radius * math.sin(math.pi / 4 + turn)
    for norm in (block.attn.norm_q, block.attn.norm_k):
        nn.init.constant_(norm.weight, LOCAL_SHARPNESS)
