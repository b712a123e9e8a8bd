"""Hosts with --fp16-intermediates: half precision between all nodes, in and out, and pictures that stay the same."""

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt


@pytest.fixture
def half(host, monkeypatch):
    """half(): from now on the host keeps results in float16."""
    if not hasattr(host.model_management, "intermediate_dtype"):
        pytest.skip("this ComfyUI has no --fp16-intermediates")
    return lambda: monkeypatch.setattr(host.model_management.args, "fp16_intermediates", True)


def level(first, second):
    """The largest difference in 8-bit levels."""
    return float((first.float() - second.float()).abs().max() * 255)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"strength": 0.0},
        {"step_mode": "auto"},
        {"color_fix": "lab", "tile_px": 32, "overlap_px": 16},
        {"grain": 1.0, "mask": ["in", 1], "source": {"hole": True}.items()},
        {"region": ["in", 1], "source": {"hole": True}.items()},
    ],
)
def test_upscale_gives_half_precision_and_the_same_picture(executor, half, inputs):
    full = executor()(upscale_prompt(**inputs))
    half()
    got = executor()(upscale_prompt(**inputs))  # another executor, which has cached nothing
    assert got.image.dtype == got.mask.dtype == torch.float16
    assert got.image.shape == full.image.shape
    assert level(got.image, full.image) < 3


def test_the_single_nodes_take_and_give_half_precision(host, builtin, condition, sample, photo, half):
    full = condition(photo)
    decoded = host.nodes.VAEDecode().decode(
        builtin.vae, {"samples": sample(builtin.model, full.conditioning, full.latent)}
    )
    expected = host.run("TEASRColorFix", image=decoded[0], reference=full.resized)[0]
    half()
    made = condition(photo.half())
    assert made.latent["samples"].dtype == made.resized.dtype == torch.float16
    samples = sample(builtin.model, made.conditioning, made.latent)
    assert samples.dtype == torch.float16
    pixels = host.nodes.VAEDecode().decode(builtin.vae, {"samples": samples})[0]
    assert pixels.dtype == torch.float16
    found = host.run("TEASRColorFix", image=pixels, reference=made.resized, grain=0.0)[0]
    assert found.dtype == torch.float16
    assert level(found, expected) < 3


def test_the_stock_sampler_takes_our_half_latent(builtin, condition, photo, stock_sample, host, half):
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    full = condition(photo)
    expected = stock_sample(builtin.model, full.conditioning, full.latent, sigmas)
    half()
    made = condition(photo.half())
    found = stock_sample(builtin.model, made.conditioning, made.latent, sigmas)
    assert (found.float() - expected).abs().max() < 0.05


def test_the_stock_vae_nodes_give_half_precision(host, builtin, half):
    half()
    image = torch.rand(2, 16, 24, 3)
    latent = host.nodes.VAEEncode().encode(builtin.vae, image.half())[0]
    assert latent["samples"].dtype == builtin.vae.vae_output_dtype() == torch.float16
    decoded = host.nodes.VAEDecode().decode(builtin.vae, latent)[0]
    assert decoded.dtype == torch.float16
    assert level(decoded, image) < 1


def test_a_noise_mask_in_half_precision_keeps_the_picture_outside(host, builtin, condition, sample, half):
    half()
    made = condition(torch.rand(1, 24, 32, 3).half())
    mask = torch.zeros(1, 1, 48, 64).half()
    mask[..., :32] = 1
    samples = sample(builtin.model, made.conditioning, made.latent | {"noise_mask": mask})
    found = builtin.vae.decode(samples)
    assert level(found[:, :, 36:], made.resized[:, :, 36:]) < 1.5


def test_half_precision_pictures_on_a_host_of_float32(host, condition, photo):
    """A custom node may give half precision anywhere; what comes out is the host's float32."""
    made, full = condition(photo.half()), condition(photo)
    assert made.resized.dtype == made.latent["samples"].dtype == torch.float32
    assert level(made.resized, full.resized) < 1
    out = host.run("TEASRColorFix", image=photo.half(), reference=photo.half())[0]
    assert out.dtype == torch.float32


def test_nan_in_half_precision_is_named(host, condition, photo):
    broken = photo.half()
    broken[0, 3, 3] = float("nan")
    with pytest.raises(host.pack("teasr_core.errors").InputError, match="holds NaN"):
        condition(broken)
