"""TEASR on a Qwen-Image transformer in plain tensor operations, from a state dict alone: what the hosts must equal.

Written from the paper's Eq. 1-3 and Algorithm 1 and from the published architecture, sharing no line with
`teasr_core.model.qwen_velocity` and `nodes.model.dual_branch`: no module is called or hooked. There is one sequence of
tokens, noise then condition then text; each token is told its time, its position and whether the adapter acts on it.
Everything is float64 but the times and the phases of their sinusoid, which the models compute in float32.

Letters: B batch, C latent channels, H W latent size, N tokens of one image (H/2 * W/2), T prompt tokens, D width,
S = 2N + T all tokens, h heads of d dimensions. Even token grids only (docs/tour.md).
"""

import itertools
import math

import torch

PATCH = 2
THETA = 10_000.0  # of the rotary positions and of the time sinusoid alike
TIME_WAVES = 128  # cosines, and as many sines
NORM_EPS = 1e-6


class PlainQwen:
    """velocity(z, t_cur, z_lq, t_tar, prompt): Eq. 1's v, (B, C, H, W) float64.

    Args:
        state: the transformer's tensors by name, dequantised. lora: `{path}.lora_A.weight` (r, in) and
            `{path}.lora_B.weight` (out, r), added to condition tokens at `strength`.
        cond_frame: frame index of the condition tokens' positions; 0 shares the noise tokens' positions
            (docs/decisions.md#shared-positions).
    """

    def __init__(self, state, lora=None, strength=1.0, cond_frame=0):
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.lora = {name: tensor.double() for name, tensor in (lora or {}).items()}
        self.strength = strength
        self.cond_frame = cond_frame
        self.head_dim = len(state["transformer_blocks.0.attn.norm_q.weight"])  # d
        self.num_layers = len({name.split(".")[1] for name in state if name.startswith("transformer_blocks.")})

    def velocity(self, z, t_cur, z_lq, t_tar, prompt):
        grid = z.shape[2] // PATCH, z.shape[3] // PATCH
        n = grid[0] * grid[1]
        image = self.linear("img_in", torch.cat([to_tokens(z), to_tokens(z_lq)], dim=1))  # (B, 2N, D)
        text = self.linear("txt_in", rms_norm(prompt.double(), self.state["txt_norm.weight"]))  # (B, T, D)
        cur, tar = self.time_vector(t_cur), self.time_vector(t_tar)  # (B, D)
        angles = self.angles(grid, text.shape[1])  # (S, d/2)
        for index in range(self.num_layers):
            image, text = self.block(f"transformer_blocks.{index}", image, text, cur, tar, angles, n)
        scale, shift = self.linear("norm_out.linear", silu(cur))[:, None].chunk(2, dim=-1)  # (B, 1, D)
        noise = layer_norm(image[:, :n]) * (1 + scale) + shift  # (B, N, D)
        return from_tokens(self.linear("proj_out", noise), grid)  # (B, C, H, W)

    def block(self, path, image, text, cur, tar, angles, n):
        # Six vectors per token: shift, scale, gate of the attention, then of the MLP. (B, tokens, D) each
        at_cur = self.linear(f"{path}.img_mod.1", silu(cur))  # (B, 6D)
        at_tar = self.linear(f"{path}.img_mod.1", silu(tar)) + self.delta(f"{path}.img_mod.1", silu(tar))  # (B, 6D)
        of_image = torch.stack([at_cur] * n + [at_tar] * n, dim=1).chunk(6, dim=-1)
        of_text = self.linear(f"{path}.txt_mod.1", silu(cur))[:, None].chunk(6, dim=-1)

        image_in = layer_norm(image) * (1 + of_image[1]) + of_image[0]  # (B, 2N, D)
        text_in = layer_norm(text) * (1 + of_text[1]) + of_text[0]  # (B, T, D)
        q, k, v = (
            torch.cat(
                [
                    self.heads(self.image_linear(f"{path}.attn.to_{kind}", image_in, n), f"{path}.attn.norm_{kind}"),
                    self.heads(self.linear(f"{path}.attn.add_{kind}_proj", text_in), f"{path}.attn.norm_added_{kind}"),
                ],
                dim=1,
            )
            for kind in "qkv"
        )  # (B, S, h, d)
        q, k = rotate(q, angles), rotate(k, angles)
        weights = torch.einsum("bshd,bthd->bhst", q, k).div(math.sqrt(self.head_dim)).softmax(dim=-1)  # (B, h, S, S)
        mixed = torch.einsum("bhst,bthd->bshd", weights, v).flatten(2)  # (B, S, D)
        image_out = self.image_linear(f"{path}.attn.to_out.0", mixed[:, : 2 * n], n)
        image = image + of_image[2] * image_out  # (B, 2N, D)
        text = text + of_text[2] * self.linear(f"{path}.attn.to_add_out", mixed[:, 2 * n :])  # (B, T, D)

        image_in = layer_norm(image) * (1 + of_image[4]) + of_image[3]
        hidden = gelu(self.image_linear(f"{path}.img_mlp.net.0.proj", image_in, n))  # (B, 2N, 4D)
        image = image + of_image[5] * self.image_linear(f"{path}.img_mlp.net.2", hidden, n)
        text_in = layer_norm(text) * (1 + of_text[4]) + of_text[3]
        hidden = gelu(self.linear(f"{path}.txt_mlp.net.0.proj", text_in))  # (B, T, 4D)
        text = text + of_text[5] * self.linear(f"{path}.txt_mlp.net.2", hidden)
        return image, text

    def linear(self, path, x):
        return x @ self.state[f"{path}.weight"].T + self.state[f"{path}.bias"]

    def image_linear(self, path, x, n):
        """The layer on all 2N image tokens; the adapter on the N condition tokens. (B, 2N, in) -> (B, 2N, out)"""
        delta = self.delta(path, x[:, n:])
        return self.linear(path, x) + torch.cat([torch.zeros_like(delta), delta], dim=1)

    def delta(self, path, x):
        """strength * B A x; zero where no adapter is. (..., in) -> (..., out)"""
        if f"{path}.lora_A.weight" not in self.lora:
            return torch.zeros(*x.shape[:-1], len(self.state[f"{path}.weight"]), dtype=x.dtype)
        down, up = self.lora[f"{path}.lora_A.weight"], self.lora[f"{path}.lora_B.weight"]  # (r, in), (out, r)
        return self.strength * (x @ down.T @ up.T)

    def heads(self, x, norm):
        """(B, tokens, D) -> (B, tokens, h, d), each head normalised where the model has that norm (q and k)."""
        x = x.unflatten(-1, (-1, self.head_dim))
        return rms_norm(x, self.state[f"{norm}.weight"]) if f"{norm}.weight" in self.state else x

    def time_vector(self, t):
        """(B,) -> (B, D)"""
        frequency = torch.exp(-math.log(THETA) * torch.arange(TIME_WAVES, dtype=torch.float32) / TIME_WAVES)
        phase = (1000 * (t.float()[:, None] * frequency)).double()  # (B, 128), rounded to float32
        wave = torch.cat([phase.cos(), phase.sin()], dim=1)  # (B, 256)
        hidden = silu(self.linear("time_text_embed.timestep_embedder.linear_1", wave))
        return self.linear("time_text_embed.timestep_embedder.linear_2", hidden)

    def angles(self, grid, num_text):
        """(S, d/2): rotary angles from (frame, row, column), image positions centred on 0, text beyond the longer side.

        Frame, row and column take 1/8, 7/16 and 7/16 of a head's dimensions, as in the published models.
        """
        height, width = grid
        axes = [self.head_dim // 8, 7 * self.head_dim // 16, 7 * self.head_dim // 16]
        image = [(row - height // 2, column - width // 2) for row in range(height) for column in range(width)]
        start = max(height, width) // 2
        positions = [(0, *place) for place in image] + [(self.cond_frame, *place) for place in image]
        positions += [(start + i, start + i, start + i) for i in range(num_text)]
        parts = []
        for axis, dims in enumerate(axes):
            frequency = THETA ** -(torch.arange(0, dims, 2, dtype=torch.float64) / dims)  # (dims/2,)
            along = torch.tensor([place[axis] for place in positions], dtype=torch.float64)  # (S,)
            parts.append(along[:, None] * frequency)
        return torch.cat(parts, dim=1)


def euler(model, noise, z_lq, steps, prompt, negative=None, cfg=1.0):
    """Algorithm 1: z <- z + v(z, tau_i, z_lq, tau_{i+1}) (tau_{i+1} - tau_i), tau from 1 to 0. (B, C, H, W) float64

    noise (B, C, H, W); z_lq (1 or B, C, H, W); prompt (T, text width). `negative` guides: v_neg + cfg (v - v_neg).
    """
    z, z_lq = noise.double(), z_lq.expand(len(noise), -1, -1, -1)
    taus = [torch.tensor((steps - i) / steps, dtype=torch.float32) for i in range(steps + 1)]
    for here, there in itertools.pairwise(taus):
        v, *away = (
            model.velocity(z, here.expand(len(z)), z_lq, there.expand(len(z)), text.expand(len(z), -1, -1))
            for text in (prompt, negative)
            if text is not None
        )
        if away:
            v = away[0] + cfg * (v - away[0])
        z = z + v * (there.double() - here.double())
    return z


def relative(found, reference):
    """max |found - reference| / max |reference|"""
    return float((found.double() - reference).abs().max() / reference.abs().max())


def to_tokens(latent):
    """(B, C, H, W) -> (B, N, C*2*2): row by row, a token's numbers channel by channel."""
    batch, channels, height, width = latent.shape
    cut = latent.double().reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def from_tokens(tokens, grid):
    """(B, N, C*2*2) -> (B, C, H, W)"""
    cut = tokens.reshape(len(tokens), *grid, -1, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(len(tokens), -1, grid[0] * PATCH, grid[1] * PATCH)


def rotate(x, angles):
    """Dimensions 2i and 2i+1 of (B, S, h, d) as a complex number, turned by angles (S, d/2)."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)  # (B, S, h, d/2)
    return torch.view_as_real(turned).flatten(-2)


def layer_norm(x):
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) * (variance + NORM_EPS).rsqrt()


def rms_norm(x, weight):
    return x * (x.pow(2).mean(dim=-1, keepdim=True) + NORM_EPS).rsqrt() * weight


def silu(x):
    return x * torch.sigmoid(x)


def gelu(x):
    """The tanh form."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
