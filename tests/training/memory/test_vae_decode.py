"""The checkpointed decode equals diffusers' own, gradient included, and holds less."""

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from helpers.live_bytes import LiveBytes
from helpers.tiny import model as tiny
from training.memory.vae_decode import decode_checkpointed


def vae(seed: int = 0) -> AutoencoderKLQwenImage:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoencoderKLQwenImage(base_dim=8, z_dim=16)
    model = model.double().eval().requires_grad_(False)
    model.decoder.conv_out.weight.mul_(0.1)  # within [-1, 1], where diffusers does not clamp
    return model


def latent(batch: int = 2, height: int = 4, width: int = 6) -> torch.Tensor:
    z = torch.randn(batch, 16, height, width, generator=tiny.generator(1), dtype=torch.float64)
    return z.requires_grad_()


def reference(model, z: torch.Tensor) -> torch.Tensor:
    return model.decode(z.unsqueeze(2), return_dict=False)[0].squeeze(2)


def test_output_and_gradient_equal_the_plain_decode():
    model = vae()
    found_z, wanted_z = latent(), latent()
    found, wanted = decode_checkpointed(model, found_z), reference(model, wanted_z)
    assert found.shape == (2, 3, 32, 48)
    assert float(wanted.detach().abs().max()) < 1
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert float(wanted_z.grad.abs().max()) > 0
    assert torch.equal(found_z.grad, wanted_z.grad)


def test_without_a_gradient_too():
    model = vae()
    with torch.no_grad():
        assert torch.equal(decode_checkpointed(model, latent()), reference(model, latent()))


def test_beyond_the_range_it_is_not_clamped():
    model = vae()
    model.decoder.conv_out.bias.add_(2.0)
    assert float(decode_checkpointed(model, latent()).min()) > 1
    assert float(reference(model, latent()).max()) == 1


def test_it_holds_about_half():
    model = vae()

    def peak(decode) -> int:
        z = latent(batch=1, height=8, width=8)
        with LiveBytes() as live:
            decode(model, z).square().mean().backward()
        return live.peak

    assert peak(decode_checkpointed) < 0.55 * peak(reference)


def test_nothing_is_left_on_the_model():
    model = vae()
    decode_checkpointed(model, latent())
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == []
    with pytest.raises(RuntimeError):
        decode_checkpointed(model, torch.zeros(1, 7, 4, 4, dtype=torch.float64))
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == []
