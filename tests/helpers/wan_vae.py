"""ComfyUI's own VAE class around a small Qwen-Image VAE with random weights."""

from __future__ import annotations

from typing import Any

import torch


def random_vae(seed: int = 0, attention: float = 0.25) -> Any:
    """ComfyUI's VAE around a WanVAE 8 wide: convolutions of unit gain, norms 1, so that no tensor goes unnoticed.

    attention: gain of what the one attention layer adds, which sees a whole tile (Wan's own training starts at 0).
    """
    from comfy.ldm.wan.vae import WanVAE
    from comfy.sd import VAE

    made = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                  temperal_downsample=[False, True, True])  # fmt: skip
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, tensor in made.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("gamma"):
            tensors[name] = 1 + 0.1 * noise
        else:
            tensors[name] = noise * (tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1)
        if "middle.1.proj" in name:
            tensors[name] *= attention
    tensors["decoder.head.2.weight"] *= 0.3  # most of the picture in [0, 1]
    return VAE(sd=tensors)
