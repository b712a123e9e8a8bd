"""The velocity on diffusers' `QwenImageTransformer2DModel`: standalone inference and training.

Its forward is neither copied nor rewritten. Three hooks, scoped to one call, make it TEASR:
    time_text_embed   gets [t_cur, t_tar] in float32 where diffusers passes [t, 0] in the model's dtype (DTC),
    pos_embed         condition tokens get the noise tokens' rotary positions,
    target Linears    the branch LoRA's delta on condition tokens,
    MLPs              the activation that the LoRA's recipe asks for, where it is not the model's own.
ComfyUI's side of the same mechanism is `nodes/model/dual_branch.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from . import flow
from .activation import sigmoid_gelu_overrides
from .architecture import QwenArchitecture
from .branch_lora import BranchLora, branch_overrides, forward_overrides
from .recipe import Recipe
from .timesteps import dual_times
from .tokens import patchify, token_grid, unpatchify

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel


def build_transformer(architecture: QwenArchitecture) -> QwenImageTransformer2DModel:
    """A transformer of this size with diffusers' default initialisation, in float32 on the CPU."""
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=architecture.patch_size,
        in_channels=architecture.token_channels,
        out_channels=architecture.latent_channels,
        num_layers=architecture.num_layers,
        attention_head_dim=architecture.head_dim,
        num_attention_heads=architecture.num_heads,
        joint_attention_dim=architecture.text_width,
        axes_dims_rope=architecture.rope_axes,
        zero_cond_t=True,  # doubled timestep: the modulation is split by token group
    )


class QwenVelocity:
    """Average velocity of a Qwen-Image transformer with two token branches. A `velocity.Velocity`.

    Args:
        transformer: diffusers model built with zero_cond_t=True; any dtype and device.
        prompt_embeds: (T, text_width), the null or empty-prompt embedding.
        prediction: what the network returns, see `flow`.
        lora, lora_strength: branch adapter on the same device; strength 0 skips it exactly.
        use_dtc: False for the ablation with one fused time.
        recipe: how the adapter is meant to be run.
    """

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        prompt_embeds: torch.Tensor,
        prediction: str,
        lora: BranchLora | None = None,
        lora_strength: float = 1.0,
        use_dtc: bool = True,
        recipe: Recipe | None = None,
    ) -> None:
        assert prediction in ("velocity", "lq_residual"), prediction
        assert transformer.config["zero_cond_t"], "the transformer must be built with zero_cond_t=True"
        self.transformer = transformer
        self.prompt_embeds = prompt_embeds
        self.prediction = prediction
        self.lora = lora
        self.lora_strength = lora_strength
        self.use_dtc = use_dtc
        self.recipe = recipe or Recipe()
        self.patch_size: int = transformer.config["patch_size"]
        self._attached_noise: int | None = None  # noise tokens of the calls inside `lora_attached`

    def __call__(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        output = self.network_output(z_t, t_cur, z_lq, t_tar)  # (B, C, H, W)
        return flow.velocity_from_output(self.prediction, output, z_t, z_lq, t_cur)

    def clean(self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
        """The clean estimate z_t - t_cur v (B, C, H, W); for `lq_residual` without a division."""
        output = self.network_output(z_t, t_cur, z_lq, t_tar)
        return flow.clean_from_output(self.prediction, output, z_t, z_lq, t_cur)

    def network_output(
        self, z_t: torch.Tensor, t_cur: torch.Tensor, z_lq: torch.Tensor, t_tar: torch.Tensor
    ) -> torch.Tensor:
        """The transformer's output on the noise tokens, (B, C, H, W) in z_t's dtype, times the recipe's scale."""
        model = self.transformer
        batch, _, height, width = z_t.shape
        h, w = token_grid(height, width, self.patch_size)
        num_noise = h * w
        tokens = torch.cat([patchify(z_t, self.patch_size), patchify(z_lq, self.patch_size)], dim=1)  # (B, 2N, C*p*p)
        prompt = self.prompt_embeds.to(z_t.device, model.dtype).expand(batch, -1, -1)  # (B, T, text_width)
        times = dual_times(t_cur, t_tar, self.use_dtc, self.recipe.condition_time)  # (2B,)
        with forward_overrides(self._overrides(times, num_noise)):
            output = model(
                hidden_states=tokens.to(model.dtype),
                encoder_hidden_states=prompt,
                timestep=t_cur,
                img_shapes=[[(1, h, w), (1, h, w)]] * batch,
                return_dict=False,
            )[0]  # (B, 2N, C*p*p)
        made = unpatchify(output[:, :num_noise], (h, w), self.patch_size).to(z_t.dtype)
        return made if self.recipe.velocity_scale == 1 else made * self.recipe.velocity_scale

    @contextmanager
    def lora_attached(self, height: int, width: int) -> Iterator[None]:
        """Keep the LoRA attached between calls on latents of this size, for the backward passes inside.

        A call attaches and removes it by itself; gradient checkpointing runs blocks again when the call is over, and
        would run them without.
        """
        assert self._attached_noise is None, "lora_attached does not nest"
        h, w = token_grid(height, width, self.patch_size)
        with forward_overrides(self._lora_overrides(h * w)):
            self._attached_noise = h * w
            try:
                yield
            finally:
                self._attached_noise = None

    def _lora_overrides(self, num_noise: int) -> list[tuple[torch.nn.Module, Any]]:
        activation = sigmoid_gelu_overrides(self.transformer) if self.recipe.gelu == "sigmoid" else []
        if self.lora is None:
            return activation
        return activation + branch_overrides(self.transformer, self.lora, self.lora_strength, num_noise)

    def _overrides(self, times: torch.Tensor, num_noise: int) -> list[tuple[torch.nn.Module, Any]]:
        model = self.transformer
        embed_times: Any = model.time_text_embed.forward
        embed_positions: Any = model.pos_embed.forward  # diffusers annotates less than it accepts

        def time_forward(_timestep: torch.Tensor, hidden_states: torch.Tensor, *args: Any) -> torch.Tensor:
            return embed_times(times, hidden_states, *args)  # (2B, D)

        def position_forward(img_shapes: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            noise_shape = img_shapes[0][:1]
            noise_rope, text_rope = embed_positions([noise_shape], **kwargs)  # (N, head_dim/2), (T, head_dim/2)
            return torch.cat([noise_rope, noise_rope]), text_rope  # docs/decisions.md#shared-positions

        overrides: list[tuple[torch.nn.Module, Any]] = [
            (model.time_text_embed, time_forward),
            (model.pos_embed, position_forward),
        ]
        if self._attached_noise is None:
            return overrides + self._lora_overrides(num_noise)
        assert self._attached_noise == num_noise, f"attached for {self._attached_noise} tokens, called with {num_noise}"
        return overrides
