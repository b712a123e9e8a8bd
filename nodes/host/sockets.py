"""Checks of what arrives at a node's sockets: a wire may carry None, text, or a picture that is not a number.

Each error names the input, says what was found and expected, and what to wire instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...teasr_core.errors import InputError


def check_tensor(value: Any, name: str, kind: str) -> torch.Tensor:
    """`value` if it is a tensor. `kind` is the socket's type with its article, for example "an IMAGE"."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name} is {described(value)}: expected {kind}, so wire one into `{name}`")
    return value


def check_finite(value: torch.Tensor, name: str) -> torch.Tensor:
    """`value` (B, ...) if it holds neither NaN nor infinity. Images are looked at one by one to save memory."""
    if not all(bool(torch.isfinite(part).all()) for part in value.split(1)):
        raise InputError(
            f"the {name} that is wired in holds NaN or infinity: expected finite numbers, so look for the fault in the "
            f"nodes before `{name}`"
        )
    return value


def check_model(model: Any) -> ModelPatcher:
    if not isinstance(model, ModelPatcher):
        raise InputError(
            f"model is {described(model)}: expected a MODEL, so wire TEASRLoadBuiltin's, or a Qwen-Image loader's "
            "through TEASRApplyLoRA"
        )
    return model


def check_vae(vae: Any) -> Any:
    if not hasattr(vae, "spacial_compression_encode") and not hasattr(vae, "spacial_compression_decode"):
        raise InputError(
            f"vae is {described(vae)}: expected a VAE, so wire TEASRLoadBuiltin's, or VAELoader's with Qwen-Image's VAE"
        )
    return vae


def check_conditioning(conditioning: Any, name: str = "conditioning") -> list[list[Any]]:
    if not isinstance(conditioning, list) or not conditioning:
        raise InputError(
            f"{name} is {described(conditioning)}: expected a CONDITIONING, so wire TEASRLoadBuiltin's, "
            "TEASRApplyLoRA's or a text encoder's"
        )
    return conditioning


def check_latent(latent: Any) -> Mapping[str, Any]:
    if not isinstance(latent, Mapping) or not isinstance(latent.get("samples"), torch.Tensor):
        raise InputError(f"latent is {described(latent)}: expected a LATENT, so wire TEASRCondition's")
    return latent


def check_sigmas(sigmas: Any) -> torch.Tensor:
    """`sigmas` (N+1,) if they are N >= 1 steps whose times are finite and do not rise."""
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1:
        found = f"shaped {tuple(sigmas.shape)}" if isinstance(sigmas, torch.Tensor) else described(sigmas)
        raise InputError(f"sigmas is {found}: expected a list of two or more times, so wire TEASRStepSelector's")
    if len(sigmas) < 2:
        raise InputError(f"sigmas has {len(sigmas)} entries: expected two or more, so wire TEASRStepSelector's")
    check_finite(sigmas, "sigmas")
    if bool((sigmas[1:] > sigmas[:-1]).any()):
        times = ", ".join(f"{time:.3g}" for time in sigmas[:4].tolist())
        raise InputError(
            f"the sigmas rise ({times}{', ...' if len(sigmas) > 4 else ''}): expected times that fall from 1 (noise) "
            "to 0 (the picture), so wire TEASRStepSelector's, and no FlipSigmas behind it"
        )
    return sigmas


def check_seed(seed: Any) -> int:
    """`seed` if torch takes it: 64 bits, with or without a sign."""
    if not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**64:
        raise InputError(f"seed is {seed!r}: expected a whole number from 0 to {2**64 - 1}, so wire an INT into `seed`")
    return int(seed)


def described(value: Any) -> str:
    """What was found, for an error: `empty (None)`, `the text 'abc'`, `a dict`."""
    if value is None:
        return "empty (None)"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"a {type(value).__name__}"
