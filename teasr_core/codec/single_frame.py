"""Qwen-Image's video VAE made a network for single pictures: a third of the multiplications, the same result.

The VAE is Wan 2.1's, with causal 3-D convolutions: each output frame sees its own frame and the two before it, and
before the first frame there are zeros. A picture is a first frame, so the slices of every kernel that look into the
past are multiplied by zeros and need not be computed. ComfyUI's VAE leaves them out for single frames; diffusers' does
not.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_first_frame(vae: Any) -> None:
    """Cut the kernels of diffusers' `AutoencoderKLQwenImage` to the slice that acts on a first frame, in place.

    Afterwards the VAE is right for single pictures alone: its results there are the same up to rounding. The
    convolutions over time between its stages act from the second frame on and are left as they are.
    """
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for name, module in vae.named_modules():
        if isinstance(module, QwenImageCausalConv3d) and not name.endswith("time_conv"):
            _cut(module)


def _cut(conv: Any) -> None:
    frames, height, width = conv.kernel_size
    left, right, top, bottom, before, after = conv._padding
    assert (before, after) == (frames - 1, 0), "the convolution is not causal"
    # A copy: a view would keep the whole kernel in memory.
    weight = conv.weight.detach()[:, :, -1:].clone()  # (out, in, 1, height, width)
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    conv.kernel_size = (1, height, width)
    conv._padding = (left, right, top, bottom, 0, 0)
