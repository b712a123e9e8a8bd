"""The dual-branch Qwen-Image transformer as plain tensor algebra in float64.

Independent of diffusers, ComfyUI and our hooks: noise, condition and text tokens are three tensors, the adapter is
merged into the condition branch's own copy of each weight, positions are angles. Only the sinusoid of the times is
float32, as in both hosts: near 1000 radians a float32 angle is off by 3e-5, so its rounding is part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from teasr_core.model.architecture import QwenArchitecture

THETA = 10_000
TIME_CHANNELS = 256
TIME_SCALE = 1000
EPS = 1e-6


class ReferenceQwen:
    """output(z_t, t_cur, z_lq, t_tar): the network's raw output on the noise tokens, (B, C, H, W) float64.

    Args:
        weights: the transformer's state dict. prompt_embeds: (T, text_width).
        lora: `{path}.lora_A.weight`, `{path}.lora_B.weight`; merged as W + strength B A for condition tokens alone.
        cond_frame: frame position of the condition tokens, 0 = shared with the noise tokens.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        architecture: QwenArchitecture,
        prompt_embeds: torch.Tensor,
        lora: Mapping[str, torch.Tensor] | None = None,
        lora_strength: float = 1.0,
        cond_frame: int = 0,
    ) -> None:
        self.architecture = architecture
        self.prompt_embeds = prompt_embeds.double()
        self.cond_frame = cond_frame
        self.weights = {key: value.double() for key, value in weights.items()}
        self.cond_weights = dict(self.weights)
        for key in lora or {}:
            if key.endswith(".lora_A.weight"):
                path = key.removesuffix(".lora_A.weight")
                delta = lora[f"{path}.lora_B.weight"].double() @ lora[key].double()  # (out, in)
                self.cond_weights[f"{path}.weight"] = self.weights[f"{path}.weight"] + lora_strength * delta

    def output(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        patch = self.architecture.patch_size
        batch, channels, height, width = z_t.shape
        h, w = height // patch, width // patch
        noise = self._linear("img_in", self._tokens(z_t))  # (B, N, D)
        cond = self._linear("img_in", self._tokens(z_lq))  # (B, N, D)
        prompt = rms_norm(self.prompt_embeds, self.weights["txt_norm.weight"])  # (T, text_width)
        text = self._linear("txt_in", prompt).expand(batch, -1, -1)  # (B, T, D)
        cur, tar = self._time_vector(t_cur), self._time_vector(t_tar)  # (B, D)
        angles = self._angles(h, w, text.shape[1])
        for index in range(self.architecture.num_layers):
            noise, cond, text = self._block(f"transformer_blocks.{index}", noise, cond, text, cur, tar, angles)
        scale, shift = self._linear("norm_out.linear", silu(cur)).chunk(2, dim=1)  # (B, D)
        out = self._linear("proj_out", modulate(noise, shift, scale))  # (B, N, C*p*p)
        patches = out.reshape(batch, h, w, channels, patch, patch)
        return torch.einsum("bhwcpq->bchpwq", patches).reshape(z_t.shape)

    def _block(
        self,
        path: str,
        noise: torch.Tensor,
        cond: torch.Tensor,
        text: torch.Tensor,
        cur: torch.Tensor,
        tar: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        branches = (
            Branch(noise, f"{path}.img_mod.1", f"{path}.img_mlp", "", cur, angles[0], self.weights),
            Branch(cond, f"{path}.img_mod.1", f"{path}.img_mlp", "", tar, angles[1], self.cond_weights),
            Branch(text, f"{path}.txt_mod.1", f"{path}.txt_mlp", "added_", cur, angles[2], self.weights),
        )
        heads = self.architecture.num_heads
        q, k, v = (
            torch.cat(parts, dim=1) for parts in zip(*(b.qkv(f"{path}.attn", heads) for b in branches), strict=True)
        )
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(self.architecture.head_dim)
        mixed = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(dim=-1), v).flatten(2)  # (B, 2N + T, D)
        parts = mixed.split([b.tokens.shape[1] for b in branches], dim=1)
        noise, cond, text = (b.finish(f"{path}.attn", part) for b, part in zip(branches, parts, strict=True))
        return noise, cond, text

    def _linear(self, path: str, x: torch.Tensor) -> torch.Tensor:
        return linear(self.weights, path, x)

    def _tokens(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, N, C*p*p): a token holds its patch channel by channel, row by row."""
        patch = self.architecture.patch_size
        batch, channels, height, width = latent.shape
        tokens = [
            latent[:, :, y : y + patch, x : x + patch].reshape(batch, channels * patch * patch)
            for y in range(0, height, patch)
            for x in range(0, width, patch)
        ]
        return torch.stack(tokens, dim=1).double()

    def _time_vector(self, t: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, D)."""
        half = TIME_CHANNELS // 2
        frequencies = torch.exp(-math.log(THETA) * torch.arange(half, dtype=torch.float32) / half)
        phase = (t.float()[:, None] * frequencies * TIME_SCALE).double()  # (B, 128)
        wave = torch.cat([phase.cos(), phase.sin()], dim=1)  # (B, 256)
        hidden = silu(self._linear("time_text_embed.timestep_embedder.linear_1", wave))
        return self._linear("time_text_embed.timestep_embedder.linear_2", hidden)

    def _angles(self, h: int, w: int, num_text: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotary angles (tokens, head_dim/2) of noise, condition and text tokens.

        Image positions are centred on 0; text positions begin where the longer image side ends, on all three axes.
        """
        rows, columns = torch.arange(h) - (h - h // 2), torch.arange(w) - (w - w // 2)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        frame = torch.zeros_like(y)
        text = max(h // 2, w // 2) + torch.arange(num_text)
        positions = (
            torch.stack([frame, y, x], dim=-1).reshape(-1, 3),
            torch.stack([frame + self.cond_frame, y, x], dim=-1).reshape(-1, 3),
            torch.stack([text, text, text], dim=-1),
        )
        noise, cond, text = (self._axis_angles(p.double()) for p in positions)
        return noise, cond, text

    def _axis_angles(self, positions: torch.Tensor) -> torch.Tensor:
        """(tokens, 3) -> (tokens, head_dim/2)."""
        parts = []
        for axis, dim in enumerate(self.architecture.rope_axes):
            frequencies = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            parts.append(positions[:, axis, None] * frequencies)
        return torch.cat(parts, dim=1)


class Branch:
    """One kind of token in one block: its modulation, its weights, its positions."""

    def __init__(
        self,
        tokens: torch.Tensor,
        mod_path: str,
        mlp_path: str,
        attn_prefix: str,
        time_vector: torch.Tensor,
        angles: torch.Tensor,
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        self.tokens, self.mlp_path, self.angles, self.weights = tokens, mlp_path, angles, weights
        self.is_text = bool(attn_prefix)
        (self.shift1, self.scale1, self.gate1, self.shift2, self.scale2, self.gate2) = linear(
            weights, mod_path, silu(time_vector)
        ).chunk(6, dim=1)  # (B, D) each

    def qkv(self, path: str, heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries and keys, values: (B, tokens, heads, head_dim)."""
        names = ("add_q_proj", "add_k_proj", "add_v_proj") if self.is_text else ("to_q", "to_k", "to_v")
        norms = ("norm_added_q", "norm_added_k") if self.is_text else ("norm_q", "norm_k")
        x = modulate(self.tokens, self.shift1, self.scale1)
        q, k, v = (linear(self.weights, f"{path}.{name}", x).unflatten(2, (heads, -1)) for name in names)
        q, k = (rms_norm(y, self.weights[f"{path}.{norm}.weight"]) for y, norm in zip((q, k), norms, strict=True))
        return rotate(q, self.angles), rotate(k, self.angles), v

    def finish(self, path: str, mixed: torch.Tensor) -> torch.Tensor:
        """Attention's output and the MLP added to the tokens, each through its gate."""
        out = linear(self.weights, f"{path}.to_add_out" if self.is_text else f"{path}.to_out.0", mixed)
        tokens = self.tokens + self.gate1[:, None] * out
        hidden = linear(self.weights, f"{self.mlp_path}.net.0.proj", modulate(tokens, self.shift2, self.scale2))
        return tokens + self.gate2[:, None] * linear(self.weights, f"{self.mlp_path}.net.2", gelu(hidden))


def linear(weights: Mapping[str, torch.Tensor], path: str, x: torch.Tensor) -> torch.Tensor:
    return x @ weights[f"{path}.weight"].T + weights[f"{path}.bias"]


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Layer norm without weights, then shift and scale (B, D)."""
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + EPS)
    return normed * (1 + scale[:, None]) + shift[:, None]


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + EPS) * weight


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Neighbouring pairs of (B, tokens, heads, head_dim) turned by angles (tokens, head_dim/2)."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # (tokens, 1, head_dim/2)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
