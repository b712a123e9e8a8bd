"""Tiny models with random weights, real classes: a built-in base, a LoRA for it, a stock Qwen-Image MODEL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.comfy.upscale_run import add_node, executor, upscaled  # noqa: F401, fixtures

TEXT_WIDTH = 24
LAYERS = 2


@pytest.fixture(autouse=True)
def _quiet_threads() -> Iterator[None]:
    """One thread and no gradients: the models are tiny, and the host runs nodes in inference mode."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_remembered(host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run samples; tests/nodes/test_latent_cache.py is about the cache."""
    cache = host.pack("nodes.run.latent_cache").LatentCache(max_bytes=0)
    monkeypatch.setattr(host.pack("nodes.run.sampling_jobs"), "SAMPLED_LATENTS", cache)


def random_tensors(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Weights of about unit gain, norms around 1, so that every part of the network matters."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            tensors[key] = noise * shape[1] ** -0.5
        else:
            tensors[key] = 0.1 * noise + (1.0 if key.endswith("weight") else 0.0)
    return tensors


@pytest.fixture(scope="session")
def architecture(host: SimpleNamespace) -> Any:
    return host.pack("teasr_core.model.architecture").QwenArchitecture(
        latent_channels=48, num_layers=LAYERS, num_heads=2, head_dim=16, rope_axes=(4, 6, 6), text_width=TEXT_WIDTH
    )


@pytest.fixture(scope="session")
def assets(host: SimpleNamespace, architecture: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a random built-in base, which the pack takes for its own assets."""
    folder = tmp_path_factory.mktemp("assets")
    builtin, codec = host.pack("teasr_core.weight_files.base_file"), host.pack("teasr_core.codec.dct")
    transformer = host.pack("nodes.model.builtin_model")
    config = host.supported_models.QwenImage(transformer.unet_config(architecture))
    config.set_inference_dtype(torch.float32, None)
    shapes = {k: v.shape for k, v in config.get_model({}, device="cpu").diffusion_model.state_dict().items()}
    tensors = random_tensors(shapes, seed=0)
    generator = torch.Generator().manual_seed(1)
    tensors["teasr.prompt_embeds"] = torch.randn(3, TEXT_WIDTH, generator=generator)
    mean = (0.1 * torch.randn(48, generator=generator)).tolist()
    std = (0.5 + torch.rand(48, generator=generator)).tolist()
    metadata = builtin.base_metadata(architecture, "lq_residual", True, codec.DctCodec(mean, std), {})
    save_file(tensors, folder / builtin.BASE_NAME, metadata=metadata)
    before, builtin.ASSETS = builtin.ASSETS, folder
    yield folder
    builtin.ASSETS = before


@pytest.fixture
def builtin(host: SimpleNamespace, assets: Path) -> SimpleNamespace:
    """TEASRLoadBuiltin's outputs on the random base, in fp32."""
    model, vae, conditioning = host.run("TEASRLoadBuiltin", dtype="fp32")
    return SimpleNamespace(model=model, vae=vae, conditioning=conditioning)


@pytest.fixture(scope="session")
def loras(host: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder among ComfyUI's `loras`."""
    folder = tmp_path_factory.mktemp("loras")
    host.folder_paths.add_model_folder_path("loras", str(folder))
    return folder


@pytest.fixture
def write_lora(host: SimpleNamespace, loras: Path) -> Callable[..., str]:
    """write_lora(model, name, seed): a random TEASR LoRA for a MODEL; returns its name for TEASRApplyLoRA."""
    files, branch = host.pack("teasr_core.weight_files.lora_file"), host.pack("teasr_core.model.branch_lora")
    probe, traits = host.pack("nodes.model.qwen_probe"), host.pack("nodes.model.builtin_model")

    def write(model: Any, name: str, seed: int = 0, use_prompt: bool = True, **changes: str) -> str:
        architecture = probe.probe_architecture(model)
        shapes: dict[str, torch.Size] = {}
        for path in branch.target_paths(architecture.num_layers):
            out_features, in_features = files._linear_shape(path, architecture.width)
            shapes[f"{path}.lora_A.weight"] = torch.Size((4, in_features))
            shapes[f"{path}.lora_B.weight"] = torch.Size((out_features, 4))
        metadata = files.lora_metadata(
            prediction=traits.base_traits(model).prediction, rank=4, targets=branch.BLOCK_TARGETS, base="tiny",
            base_fingerprint=files.fingerprint(probe.fingerprint_tensors(model)), step=1, config={},
        )  # fmt: skip
        prompt = torch.randn(2, architecture.text_width, generator=torch.Generator().manual_seed(seed + 1))
        tensors = files.lora_tensors(random_tensors(shapes, seed), prompt if use_prompt else None)
        save_file(tensors, loras / name, metadata=metadata | changes)
        host.folder_paths.filename_list_cache.clear()
        return name

    return write


@pytest.fixture
def qwen(host: SimpleNamespace) -> Any:
    """A stock Qwen-Image MODEL (velocity, 16 channels) at a tiny width, without TEASR."""
    config = host.supported_models.QwenImage(
        {"image_model": "qwen_image", "num_layers": LAYERS, "num_attention_heads": 2, "attention_head_dim": 16,
         "axes_dims_rope": (4, 6, 6), "joint_attention_dim": TEXT_WIDTH, "in_channels": 64}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    shapes = {key: value.shape for key, value in model.diffusion_model.state_dict().items()}
    model.diffusion_model.load_state_dict(random_tensors(shapes, seed=5))
    return host.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


@pytest.fixture
def photo() -> torch.Tensor:
    """IMAGE (1, 17, 23, 3): odd sides, a ramp with noise."""
    generator = torch.Generator().manual_seed(11)
    ramp = torch.linspace(0, 1, 23).expand(17, 23)[None, :, :, None]
    return (0.7 * ramp + 0.3 * torch.rand(1, 17, 23, 3, generator=generator)).contiguous()


def scale(factor: float) -> dict[str, Any]:
    return {"size": "factor", "scale": factor}


@pytest.fixture
def sample(host: SimpleNamespace) -> Callable[..., torch.Tensor]:
    """sample(model, conditioning, latent, steps=..., seed=..., ...): TEASRSampler's samples."""

    def run(model: Any, conditioning: Any, latent: dict, steps: int = 2, **inputs: Any) -> torch.Tensor:
        sigmas = host.run("TEASRStepSelector", steps=steps)[0]
        return host.run("TEASRSampler", model=model, conditioning=conditioning, latent=latent, sigmas=sigmas, **inputs)[
            0
        ]["samples"]

    return run


@pytest.fixture
def stock_sample(host: SimpleNamespace) -> Callable[..., torch.Tensor]:
    """stock_sample(model, conditioning, latent, sigmas, seed): SamplerCustomAdvanced's samples, with euler."""
    stock = host.nodes_custom_sampler

    def run(model: Any, conditioning: Any, latent: dict, sigmas: torch.Tensor, seed: int = 7) -> torch.Tensor:
        guider = stock.BasicGuider.execute(model, conditioning).args[0]
        noise, euler = stock.RandomNoise.execute(seed).args[0], stock.KSamplerSelect.execute("euler").args[0]
        return stock.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent).args[0]["samples"]

    return run


@pytest.fixture
def condition(host: SimpleNamespace, builtin: SimpleNamespace) -> Callable[..., SimpleNamespace]:
    """condition(image, factor): TEASRCondition on the built-in VAE and prompt."""

    def run(image: torch.Tensor, factor: float = 2.0, **inputs: Any) -> SimpleNamespace:
        values = {"vae": builtin.vae, "conditioning": builtin.conditioning, "size": scale(factor)} | inputs
        conditioning, negative, latent, resized = host.run("TEASRCondition", image=image, **values)
        return SimpleNamespace(conditioning=conditioning, negative=negative, latent=latent, resized=resized)

    return run
