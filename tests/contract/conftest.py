"""The small Qwen-Image of `qwen_on_disk` through every door: ComfyUI's stock loaders and nodes, and the command line's.

What a route returns is compared with `plain_qwen`, in the model's own (normalised) latent space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contract import qwen_on_disk


@pytest.fixture(scope="session")
def shelf(host: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder among ComfyUI's `diffusion_models` and `loras`."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("diffusion_models", "loras"):
        host.folder_paths.add_model_folder_path(kind, str(folder))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def unet_loader(
    host: SimpleNamespace, shelf: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> Callable[..., Any]:
    """unet_loader(name, tensors, weight_dtype): a single file through the core node UNETLoader."""
    import comfy.model_detection as detection

    monkeypatch.setattr(detection, "detect_unet_config", qwen_on_disk.with_small_sizes(detection.detect_unet_config))

    def load(name: str, tensors: qwen_on_disk.Tensors, weight_dtype: str = "default", prefix: str = "") -> Any:
        qwen_on_disk.write_single(shelf / name, tensors, prefix)
        host.folder_paths.filename_list_cache.clear()
        return host.nodes.UNETLoader().load_unet(name, weight_dtype)[0]

    return load


@pytest.fixture
def apply_lora(host: SimpleNamespace, shelf: Path) -> Callable[..., SimpleNamespace]:
    """apply_lora(model, base, seed, lora_strength, ...): TEASRApplyLoRA's `model` and `conditioning`, the `pairs` and
    `prompt` in the file and its `path`."""
    formats, targets = host.pack("teasr_core.weight_files.lora_file"), host.pack("teasr_core.model.branch_lora")

    def apply(model: Any, base: qwen_on_disk.Tensors, seed: int = 0, **inputs: Any) -> SimpleNamespace:
        path = qwen_on_disk.write_lora(shelf / f"teasr_{seed}.safetensors", formats, targets, base, seed)
        host.folder_paths.filename_list_cache.clear()
        patched, conditioning = host.run("TEASRApplyLoRA", model=model, lora_name=path.name, **inputs)
        pairs, prompt = qwen_on_disk.read_lora(path)
        return SimpleNamespace(model=patched, conditioning=conditioning, pairs=pairs, prompt=prompt, path=path)

    return apply


@pytest.fixture
def stock(host: SimpleNamespace, one_thread: None) -> Callable[..., torch.Tensor]:
    """stock(model, prompt, z_lq, noise, steps, negative, cfg): core nodes alone, SamplerCustomAdvanced with euler.

    z_lq (1 or B, C, H, W) is normalised and travels as the reference latent; noise (B, C, H, W). Returns the latent
    (B, C, H, W), normalised.
    """
    nodes = host.nodes_custom_sampler

    def run(
        model: Any, prompt: torch.Tensor, z_lq: torch.Tensor, noise: torch.Tensor, steps: int = 2,
        negative: torch.Tensor | None = None, cfg: float = 1.0,
    ) -> torch.Tensor:  # fmt: skip
        latent_format = model.get_model_object("latent_format")
        references = {"reference_latents": [latent_format.process_out(z_lq[:, :, None])]}
        positive = [[prompt[None], references]]
        if negative is None:
            guider = nodes.BasicGuider.execute(model, positive).args[0]
        else:
            guider = nodes.CFGGuider.execute(model, positive, [[negative[None], references]], cfg).args[0]
        euler = nodes.KSamplerSelect.execute("euler").args[0]
        sigmas = host.run("TEASRStepSelector", steps=steps)[0]
        fixed_noise = SimpleNamespace(seed=0, generate_noise=lambda _latent: noise[:, :, None])
        latent = {"samples": torch.zeros_like(noise[:, :, None])}
        made = nodes.SamplerCustomAdvanced.execute(fixed_noise, guider, euler, sigmas, latent).args[0]["samples"]
        return latent_format.process_in(made)[:, :, 0]

    return run


class Sampler:
    """ours(model, prompt, z_lq, steps, seed, negative, batch): TEASRSampler; latents as in `stock`."""

    def __init__(self, host: SimpleNamespace) -> None:
        self.host = host

    def noise(self, z_lq: torch.Tensor, seed: int) -> torch.Tensor:
        """The one field (1, C, H, W) of a seed: torch's own stream (docs/decisions.md#one-noise-field)."""
        return torch.randn(1, *z_lq.shape[1:], generator=torch.Generator("cpu").manual_seed(seed))

    def __call__(
        self, model: Any, prompt: torch.Tensor, z_lq: torch.Tensor, steps: int, seed: int,
        negative: torch.Tensor | None = None, batch: int = 1,
    ) -> torch.Tensor:  # fmt: skip
        latent_format = model.get_model_object("latent_format")
        references = {"reference_latents": [latent_format.process_out(z_lq[:, :, None])]}
        inputs: dict[str, Any] = {"conditioning": [[prompt[None], references]]}
        if negative is not None:
            inputs["negative"] = [[negative[None], references]]
        sigmas = self.host.run("TEASRStepSelector", steps=steps)[0]
        latent = {"samples": torch.zeros(batch, *z_lq.shape[1:])[:, :, None]}
        made = self.host.run("TEASRSampler", model=model, latent=latent, sigmas=sigmas, seed=seed, **inputs)[0]
        return latent_format.process_in(made["samples"])[:, :, 0]


@pytest.fixture
def ours(host: SimpleNamespace, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """TEASRSampler, which samples every time: its memory of visited latents is off."""
    cache = host.pack("nodes.run.latent_cache").LatentCache(max_bytes=0)
    monkeypatch.setattr(host.pack("nodes.run.sampling_jobs"), "SAMPLED_LATENTS", cache)
    return Sampler(host)
