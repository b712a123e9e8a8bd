"""The dual-branch forward on ComfyUI's own Qwen-Image transformer.

The command line has the same forward in `teasr_core.model.qwen_velocity`.

ComfyUI already appends `reference_latents` to the image tokens and, with the method `index_timestep_zero`, modulates
them by a second timestep. During each call of the model, and only then, `DualBranch` changes these things:
    time_text_embed   gets [t_cur, t_tar] where ComfyUI passes [t, 0],
    post_input        gives condition tokens the rotary ids of the noise tokens (docs/decisions.md#shared-positions),
    target Linears    add the adapter's delta on condition tokens,
    MLPs              take the activation that the adapter's recipe asks for, where it is not the model's own.
It is an APPLY_MODEL wrapper. So it stands outside a torch.compile graph, each MODEL has one of its own, and modules are
looked up when it is called, which is right for clones and several devices. It leaves nothing on the shared modules,
whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...teasr_core.errors import InputError
from ...teasr_core.model.activation import sigmoid_gelu_overrides
from ...teasr_core.model.branch_lora import BranchLora, branch_overrides, forward_overrides
from ...teasr_core.model.recipe import Recipe
from ...teasr_core.model.timesteps import dual_times
from .run_start import CONDITION_NOISE, ConditionNoise, RunStart
from .tiles import ModelTiles

# Wrappers, callbacks and the adapter are attached to a MODEL under this key.
HOOKS_KEY = "teasr"
# Two transformer options: a target time that overrides the schedule's, and the `ModelTiles` that the model runs in.
TARGET_SIGMA = "teasr_target_sigma"
TILES = "teasr_tiles"

Override = tuple[torch.nn.Module, Callable[..., Any]]


class ResidualSampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
    """Flow time (timestep = sigma) for prediction "lq_residual": the model gives F, and the clean image is F + z_lq.

    `calculate_denoised` returns F and `DualBranch` adds z_lq, so that nothing is divided by t
    (docs/decisions.md#lq-residual).
    """

    def calculate_denoised(
        self, sigma: torch.Tensor, model_output: torch.Tensor, model_input: torch.Tensor
    ) -> torch.Tensor:
        return model_output


@dataclass(frozen=True)
class DualBranch:
    """The APPLY_MODEL wrapper. It holds settings alone; ComfyUI's patcher holds the adapter's weights as a model.

    recipe: how the adapter is meant to be run. start_encoder: the file of the second VAE encoder that it names.
    """

    prediction: str
    use_dtc: bool
    lora_strength: float
    use_adapter: bool
    recipe: Recipe = field(default_factory=Recipe)
    start_encoder: Path | None = None

    def __call__(
        self,
        executor: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None = None,
        c_crossattn: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The denoised latent (B, C, 1, H, W) of x at sigmas t (B,). `executor` is the next wrapper or the model."""
        options = transformer_options or {}
        if self.prediction == "lq_residual" and not isinstance(executor.class_obj.model_sampling, ResidualSampling):
            raise InputError(
                "another ModelSampling node replaced the built-in model's own sampling: it predicts a residual, not a "
                "velocity; remove the ModelSampling node behind TEASRLoadBuiltin"
            )
        z_lq = picture = lq_latent(x, kwargs)  # (B, C, 1, H, W)
        condition_noise: ConditionNoise | None = options.get(CONDITION_NOISE)
        if condition_noise is not None:
            z_lq = condition_noise.mixed(z_lq, len(x))

        def denoise(z_t: torch.Tensor, t_cur: torch.Tensor, lq: torch.Tensor, t_tar: torch.Tensor) -> torch.Tensor:
            conds = kwargs | {"ref_latents": [lq], "ref_latents_method": "index_timestep_zero"}
            with self._hooks(executor.class_obj, z_t, t_cur, t_tar, options):
                denoised = executor(
                    z_t, t_cur, c_concat, c_crossattn, control, with_shared_positions(options), **conds
                )  # (B, C, 1, h, w)
            if self.recipe.velocity_scale != 1:  # denoised = z_t - t v
                denoised = z_t + self.recipe.velocity_scale * (denoised - z_t)
            return denoised + lq.to(denoised) if self.prediction == "lq_residual" else denoised

        tiles: ModelTiles | None = options.get(TILES)
        has_uncut = control is not None or c_concat is not None
        if tiles is None or (tiles.plan.count == 1 and has_uncut):
            return denoise(x, t, z_lq, target_sigma(t, options))
        if has_uncut:
            raise InputError(
                "a ControlNet or concatenated latent cannot be cut into tiles: set tile_px to the image size"
            )
        # Denoised images blend as velocities do, because one is an affine function of the other at fixed z_t and t.
        velocity = tiles.cut(denoise, 2 * executor.class_obj.diffusion_model.patch_size, picture)
        return velocity(x, t, z_lq, target_sigma(t, options))

    def _hooks(
        self, base: Any, z_t: torch.Tensor, t_cur: torch.Tensor, t_tar: torch.Tensor, options: dict[str, Any]
    ) -> AbstractContextManager[None]:
        transformer = base.diffusion_model
        cur, tar = base.model_sampling.timestep(t_cur), base.model_sampling.timestep(t_tar)
        times = dual_times(cur, tar, self.use_dtc, self.recipe.condition_time)  # (2B,)
        overrides: list[Override] = [(transformer.time_text_embed, dual_time_forward(transformer, times))]
        if self.recipe.gelu == "sigmoid":
            overrides += sigmoid_gelu_overrides(transformer)
        if self.use_adapter:
            adapters = base.current_patcher.get_additional_models_with_key(HOOKS_KEY)
            if not adapters:
                raise InputError(
                    "the TEASR adapter is gone from this MODEL: put TEASRApplyLoRA last, before the sampler"
                )
            lora: BranchLora = adapters[0].model
            overrides += branch_overrides(
                transformer, lora, self.lora_strength, num_tokens(z_t, transformer.patch_size)
            )
        return counted_overrides(overrides, is_compiled(transformer, options))


@contextmanager
def counted_overrides(overrides: list[Override], use_compile: bool) -> Iterator[None]:
    """`forward_overrides`, and afterwards an error unless each of them ran once (a compiled graph is not checked).

    A node that fuses layers or swaps a block would bypass a hook silently: the image would only look worse.
    """
    if use_compile:
        with forward_overrides(overrides):
            yield
        return
    hits: list[None] = []

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted_forward(*args: Any, **kwargs: Any) -> Any:
            hits.append(None)
            return forward(*args, **kwargs)

        return counted_forward

    with forward_overrides([(module, counted(forward)) for module, forward in overrides]):
        yield
    if not hits:
        raise InputError(
            "the network of this MODEL did not run: another node answers in its place, as EasyCache does, or replaced "
            "it; expected every step to run it, so remove that node"
        )
    if len(hits) != len(overrides):
        raise InputError(
            f"{len(hits)} of {len(overrides)} TEASR hooks ran: another node replaced or fused layers of this MODEL; "
            "remove it, or put TEASRApplyLoRA behind it"
        )


def attach(model: ModelPatcher, branch: DualBranch, adapter: ModelPatcher | None) -> ModelPatcher:
    """A clone of MODEL with the dual-branch forward. It replaces a TEASR adapter on it and leaves `model` as it is."""
    patched = model.clone()
    for kind, wrapper in ((WrappersMP.APPLY_MODEL, branch), (WrappersMP.OUTER_SAMPLE, RunStart(branch.recipe))):
        patched.remove_wrappers_with_key(kind, HOOKS_KEY)
        patched.add_wrapper_with_key(kind, HOOKS_KEY, wrapper)
    patched.remove_callbacks_with_key(CallbacksMP.ON_CLONE, HOOKS_KEY)
    patched.remove_additional_models(HOOKS_KEY)
    if adapter is not None:
        patched.set_additional_models(HOOKS_KEY, [adapter])
        demote_adapter(model, patched)
        patched.add_callback_with_key(CallbacksMP.ON_CLONE, HOOKS_KEY, demote_adapter)
    return patched


def attached_branch(model: ModelPatcher) -> DualBranch:
    """The settings on a MODEL. InputError if there are none because the MODEL never went through a TEASR node."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, HOOKS_KEY)
    if not wrappers:
        raise InputError("this MODEL has no TEASR hooks: put TEASRApplyLoRA between your loader and this node")
    return wrappers[0]


def recipe_of(model: Any) -> Recipe:
    """The recipe of what is wired as MODEL, or TEASR's own where it has no TEASR hooks."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, HOOKS_KEY) if isinstance(model, ModelPatcher) else []
    return wrappers[0].recipe if wrappers else Recipe()


def demote_adapter(_model: ModelPatcher, clone: ModelPatcher) -> None:
    """ON_CLONE: give a clone without dynamic VRAM an adapter without it. ComfyUI's own clone loses that flag."""
    if not clone.is_dynamic():
        adapters = clone.get_additional_models_with_key(HOOKS_KEY)
        clone.set_additional_models(HOOKS_KEY, [adapter.clone(disable_dynamic=True) for adapter in adapters])


def lq_latent(x: torch.Tensor, conds: dict[str, Any]) -> torch.Tensor:
    """The one LQ latent (B, C, 1, H, W) among the model's conditions. InputError if none fits x."""
    latents = conds.get("ref_latents") or []
    if len(latents) != 1:
        found = "no LQ latent" if not latents else f"{len(latents)} reference latents"
        raise InputError(
            f"{found} in the conditioning (a wired `negative` needs it too): expected one, so put TEASRCondition "
            "between the conditioning and the sampler, and no other node that sets reference latents"
        )
    if latents[0].shape[1:] != x.shape[1:] or x.shape[2] != 1:
        raise InputError(
            f"the LQ latent is {tuple(latents[0].shape[1:])}, the sampled latent {tuple(x.shape[1:])}: expected the "
            "same channels, one frame and the same size, so wire TEASRCondition's `latent` into the sampler"
        )
    return latents[0]


def target_sigma(t: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Target sigmas (B,) of a model call at sigmas t (B,): the largest of the schedule strictly below t.

    For euler that is the next step's sigma, and for samplers that evaluate between steps it is never above t. The
    option TARGET_SIGMA overrides it and may be negative (Eq. 7). Only tensor operations are used, so that nothing waits
    for the device.
    """
    if options.get(TARGET_SIGMA) is not None:
        return torch.as_tensor(options[TARGET_SIGMA], dtype=t.dtype, device=t.device).expand(t.shape)
    if options.get("sample_sigmas") is None:
        raise InputError("the sampler names no schedule (sample_sigmas): use TEASRSampler or a stock sampler node")
    sigmas = options["sample_sigmas"].to(t)[None]  # (1, N+1)
    below = torch.where(sigmas < t[:, None], sigmas, -torch.inf).amax(dim=1)  # (B,)
    return torch.where(below.isinf(), t, below)


def num_tokens(latent: torch.Tensor, patch_size: int) -> int:
    """The number of tokens of a latent (B, C, 1, H, W). ComfyUI pads an odd side."""
    return -(-latent.shape[-2] // patch_size) * -(-latent.shape[-1] // patch_size)


def dual_time_forward(transformer: Any, times: torch.Tensor) -> Callable[..., torch.Tensor]:
    """`time_text_embed.forward` of ComfyUI's transformer with `times` (2B,) float32 in place of ComfyUI's times."""
    embed = transformer.time_text_embed.forward

    def forward(_timestep: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return embed(times, *args, **kwargs)  # (2B, D)

    return forward


def with_shared_positions(options: dict[str, Any]) -> dict[str, Any]:
    """The transformer options of one call, with `share_positions` as the last post_input patch."""
    patches = options.get("patches", {})
    return options | {"patches": patches | {"post_input": [*patches.get("post_input", []), share_positions]}}


def share_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    """post_input patch: the condition tokens' half of img_ids (B, 2N, 3) becomes a copy of the noise tokens' half."""
    noise_ids = inputs["img_ids"].chunk(2, dim=1)[0]  # (B, N, 3)
    return inputs | {"img_ids": torch.cat([noise_ids, noise_ids], dim=1)}


def is_compiled(transformer: torch.nn.Module, options: dict[str, Any]) -> bool:
    """Whether torch.compile sits anywhere on the transformer. In a compiled graph the hooks cannot be counted."""
    if "torch.compile" in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
        return True
    modules = [transformer, *getattr(transformer, "transformer_blocks", [])]
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)
