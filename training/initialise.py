"""Starting weights of a small transformer that is trained from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

    from .config import ModelConfig

# The two fastest rotary frequencies (1 and about 0.5 radians a token) tell neighbours apart without repeating within a
# crop; all of them together would hardly differ from one token to the next.
LOCAL_PAIRS = 2
LOCAL_SHARPNESS = 2.0  # weight of the query and key norms, which bound the attention logit


@torch.no_grad()
def initialise(transformer: QwenImageTransformer2DModel, config: ModelConfig) -> None:
    """Zero-initialise modulation weights and output; local attention and open gates as asked. In place.

    Zero modulation weights and proj_out (adaLN-Zero, Peebles & Xie 2023) start the network at "the LQ image"; the gates
    start open, so that proj_out sees features of the LQ image from the first step.
    Local attention: at t = 1 a noise token knows nothing but its position, and must find the condition token at the
    same position. Left to chance it had not after 200 steps (docs/log.md); here rotary phases alone decide at the
    start, as ConViT's gated positional attention does (d'Ascoli et al. 2021).
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    blocks: Any = transformer.transformer_blocks  # torch types a ModuleList's items too loosely to be of use
    for block in blocks:
        for linear in (block.img_mod[1], block.txt_mod[1]):
            nn.init.zeros_(linear.weight)
            _, _, gate1, _, _, gate2 = linear.bias.chunk(6)  # shift, scale, gate of attention, then of the MLP
            gate1.fill_(config.gate_init)
            gate2.fill_(config.gate_init)
        if config.local_attention_init > 0:
            _make_attention_local(block, config)
    transformer.img_in.weight.mul_(config.input_gain)
    if config.time_scale_init > 0:
        _scale_attention_by_time(transformer, config.time_scale_init)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)


def _scale_attention_by_time(transformer: QwenImageTransformer2DModel, slope: float) -> None:
    """Fit img_mod so that the scale of every block's attention input starts at 1 - slope * t (ridge regression).

    A token at time t is noise but for its share 1 - t, so it should speak less; the modulation is a linear map of the
    time embedding, which spans such a smooth function of t.
    """
    times = torch.linspace(0, 1, 257)  # (T,)
    hidden = torch.zeros(1)
    features = nn.functional.silu(transformer.time_text_embed(times, hidden)).double()  # (T, D)
    gram = features.T @ features + 1e-3 * len(times) * features.var() * torch.eye(features.shape[1]).double()
    solution = torch.linalg.solve(gram, features.T @ (-slope * times.double()))  # (D,)
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        linear = block.img_mod[1]
        _, scale, *_ = linear.weight.chunk(6)  # rows: shift, scale, gate of attention, then of the MLP
        scale.copy_(solution.float().expand_as(scale))


def _make_attention_local(block: Any, config: ModelConfig) -> None:
    """Constant query and key biases on the fastest rotary pairs of rows and columns, in the first half of the heads."""
    frame, rows, _ = config.rope_axes
    for linear in (block.attn.to_q, block.attn.to_k):
        bias = linear.bias.view(config.num_heads, config.head_dim)[: (config.num_heads + 1) // 2]
        for axis_start in (frame, frame + rows):
            bias[:, axis_start : axis_start + 2 * LOCAL_PAIRS] = config.local_attention_init
    for norm in (block.attn.norm_q, block.attn.norm_k):
        nn.init.constant_(norm.weight, LOCAL_SHARPNESS)
