"""SetLatentNoiseMask on TEASRCondition's latent: outside the mask stays the resized picture."""

import pytest
import torch


@pytest.fixture
def picture():
    return torch.rand(2, 24, 32, 3, generator=torch.Generator().manual_seed(6))


def left_half(height, width):
    """1 (restore) on the left half of a picture, (1, 1, H, W) as SetLatentNoiseMask gives it."""
    mask = torch.zeros(1, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


def sampled(host, builtin, made, **latent):
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    inputs = {"model": builtin.model, "conditioning": made.conditioning, "latent": made.latent | latent}
    return host.run("TEASRSampler", **inputs, sigmas=sigmas, seed=7)[0]["samples"]


def decoded(builtin, samples):
    return builtin.vae.decode(samples)


def test_outside_the_mask_is_the_resized_picture(host, builtin, condition, picture):
    made = condition(picture)  # 48 x 64: no padding
    free = decoded(builtin, sampled(host, builtin, made))
    found = decoded(builtin, sampled(host, builtin, made, noise_mask=left_half(48, 64)))
    assert found.shape == made.resized.shape == (2, 48, 64, 3)
    assert torch.allclose(found[:, :, 36:], made.resized[:, :, 36:], atol=1e-4)
    assert (found[:, :, :28] - made.resized[:, :, :28]).abs().mean() > 0.05  # restored
    assert (free[:, :, 36:] - made.resized[:, :, 36:]).abs().mean() > 0.05  # as the whole is without a mask


def test_the_stock_sampler_does_the_same(host, builtin, condition, picture, stock_sample):
    made = condition(picture)
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    mask = left_half(48, 64)
    theirs = stock_sample(builtin.model, made.conditioning, made.latent | {"noise_mask": mask}, sigmas, seed=7)
    assert torch.allclose(decoded(builtin, theirs)[:, :, 36:], made.resized[:, :, 36:], atol=1e-4)
    assert torch.allclose(sampled(host, builtin, made, noise_mask=mask), theirs, atol=1e-4)


@pytest.mark.parametrize("resolution", [(50, 70), (25, 35), (200, 280)])
def test_a_mask_is_drawn_for_the_picture_without_its_padding(host, builtin, condition, resolution):
    """A picture of 70 x 50 is padded to 80 x 64: its left half ends at 35 px, not at 40."""
    made = condition(torch.rand(1, 25, 35, 3, generator=torch.Generator().manual_seed(6)))
    assert made.latent["samples"].shape[-2:] == (16, 20)
    found = decoded(builtin, sampled(host, builtin, made, noise_mask=left_half(*resolution)))[:, :50, :70]
    assert torch.allclose(found[:, :, 40:], made.resized[:, :, 40:], atol=1e-4)
    assert (found[:, :, :30] - made.resized[:, :, :30]).abs().mean() > 0.05


def test_the_picture_in_the_latent_changes_no_pixel_without_a_mask(
    host, builtin, condition, picture, sample, stock_sample
):
    """Sampling starts from noise alone: an empty latent, as the first release's, gives the same bits."""
    made = condition(picture)
    empty = made.latent | {"samples": torch.zeros_like(made.latent["samples"])}
    with_picture = sample(builtin.model, made.conditioning, made.latent, seed=3)
    assert made.latent["samples"].abs().max() > 0.1
    assert torch.equal(with_picture, sample(builtin.model, made.conditioning, empty, seed=3))
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    stock = [stock_sample(builtin.model, made.conditioning, latent, sigmas) for latent in (made.latent, empty)]
    assert torch.equal(*stock)


def test_a_mask_that_is_not_a_number_is_named(host, builtin, condition, picture):
    mask = left_half(48, 64)
    mask[..., 5, 5] = float("nan")
    with pytest.raises(host.pack("teasr_core.errors").InputError, match="the noise_mask that is wired in holds NaN"):
        sampled(host, builtin, condition(picture), noise_mask=mask)
