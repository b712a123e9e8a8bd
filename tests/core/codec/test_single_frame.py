"""For one picture the video VAE is a 2-D network: the same result as diffusers' own, proved in float64."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.codec.qwen_vae import QwenVaeCodec
from teasr_core.codec.single_frame import keep_first_frame
from teasr_core.weight_files.qwen_vae_file import load_qwen_vae

ROUNDING = 1e-12


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    return tiny_qwen.vae().double()


@pytest.fixture(scope="module")
def picture_vae(vae) -> nn.Module:
    made = copy.deepcopy(vae)
    keep_first_frame(made)
    return made


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_encode_decode_and_the_gradient_of_decode_are_the_same(vae, picture_vae):
    image = tiny.picture(40, 24, 2).double()
    full, flat = QwenVaeCodec(vae), QwenVaeCodec(picture_vae)
    with torch.no_grad():
        pixels = 2 * image[:, :, None] - 1
        assert difference(picture_vae.encoder(pixels), vae.encoder(pixels)) <= ROUNDING
    latent = torch.randn(2, 16, 5, 3, generator=tiny.generator(3), dtype=torch.float64)
    gradients, results = [], []
    for codec in (full, flat):
        leaf = latent.clone().requires_grad_()
        raw = codec.vae.decoder(codec.vae.post_quant_conv(leaf[:, :, None]))
        raw.square().mean().backward()
        gradients.append(leaf.grad)
        results.append(raw.detach())
    assert difference(results[1], results[0]) <= ROUNDING
    assert difference(gradients[1], gradients[0]) <= ROUNDING
    assert difference(flat.encode(image), full.encode(image)) <= 1e-6  # the codec gives float32


def test_diffusers_own_encode_and_decode_still_run(vae, picture_vae):
    """They keep caches between frames, of which a single picture fills none."""
    latent = torch.randn(1, 16, 1, 4, 6, generator=tiny.generator(4), dtype=torch.float64)
    with torch.no_grad():
        assert difference(picture_vae.decode(latent).sample, vae.decode(latent).sample) <= ROUNDING


def test_two_thirds_of_the_kernels_go(vae, picture_vae):
    for (name, before), (_, after) in zip(vae.named_modules(), picture_vae.named_modules(), strict=True):
        if isinstance(before, nn.Conv3d) and "time_conv" not in name:
            assert after.weight.shape == (*before.weight.shape[:2], 1, *before.weight.shape[3:])
            assert after.weight.untyped_storage().nbytes() == after.weight.nbytes  # the rest is freed
    sizes = [sum(p.numel() for p in model.parameters()) for model in (vae, picture_vae)]
    assert 0.3 < sizes[1] / sizes[0] < 0.6


def test_another_slice_of_the_kernel_gives_another_picture(vae, picture_vae):
    """The check above bites: the slice that looks into the past is a wrong one."""
    wrong = copy.deepcopy(picture_vae)
    wrong.decoder.conv_in.weight = nn.Parameter(vae.decoder.conv_in.weight[:, :, :1].clone())
    latent = torch.randn(1, 16, 1, 4, 6, generator=tiny.generator(5), dtype=torch.float64)
    with torch.no_grad():
        assert difference(wrong.decoder(latent), vae.decoder(latent)) > 1e-3


def test_a_loaded_vae_is_one_for_pictures(tmp_path, vae):
    save_file({name: tensor.float() for name, tensor in vae.state_dict().items()}, tmp_path / "vae.safetensors")
    codec = load_qwen_vae(tmp_path / "vae.safetensors", torch.float64)
    latent = torch.randn(1, 16, 4, 6, generator=tiny.generator(6))
    assert codec.vae.decoder.conv_in.kernel_size == (1, 3, 3)
    assert difference(codec.decode(latent), QwenVaeCodec(vae).decode(latent)) <= 1e-5
