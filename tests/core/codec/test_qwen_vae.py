"""The Qwen-Image VAE as a codec: diffusers' own numbers, both layouts on disk, tiles without a shift of colour (R9)."""

import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.codec.qwen_vae import LATENT_MEAN, LATENT_STD, QwenVaeCodec
from teasr_core.errors import ModelFileError
from teasr_core.tiling import convert_in_tiles, plan_codec_tiles, plan_tiles
from teasr_core.weight_files.qwen_vae_file import load_qwen_vae

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def codec() -> QwenVaeCodec:
    return QwenVaeCodec(tiny_qwen.vae())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.safetensors"


def picture(height=48, width=64, batch=2):
    return tiny.picture(height, width, batch)


def latent(height=5, width=8, batch=2):
    return torch.randn(batch, 16, height, width, generator=tiny.generator(7))


# Against diffusers


def test_encode_is_the_normalised_mode_of_the_posterior(codec):
    image = picture()
    found = codec.encode(image)
    mode = codec.vae.encode(2 * image[:, :, None] - 1).latent_dist.mode()[:, :, 0]
    wanted = (mode - torch.tensor(LATENT_MEAN).view(1, 16, 1, 1)) / torch.tensor(LATENT_STD).view(1, 16, 1, 1)
    assert found.shape == (2, 16, 6, 8) and found.dtype == torch.float32
    assert tiny_qwen.difference(found, wanted) <= TOLERANCE
    assert (codec.channels, codec.downscale) == (16, 8)


def test_decode_is_its_inverse_normalisation(codec):
    z = latent()
    found = codec.decode(z)
    raw = z * torch.tensor(LATENT_STD).view(1, 16, 1, 1) + torch.tensor(LATENT_MEAN).view(1, 16, 1, 1)
    wanted = (codec.vae.decode(raw[:, :, None]).sample[:, :, 0] + 1) / 2
    assert found.shape == (2, 3, 40, 64) and found.dtype == torch.float32
    assert tiny_qwen.difference(found.clamp(0, 1), wanted) <= TOLERANCE


def test_decode_is_not_clamped_and_lets_gradients_through():
    """diffusers clamps to [-1, 1]: a loss in pixels would see no gradient there."""
    vae = tiny_qwen.vae()
    vae.decoder.conv_out.weight.mul_(100)
    z = latent(2, 2).requires_grad_()
    image = QwenVaeCodec(vae).decode(z)
    outside = (image < 0) | (image > 1)
    assert outside.any()
    image[outside].sum().backward()
    assert torch.isfinite(z.grad).all() and float(z.grad.abs().max()) > 0


def test_an_image_alone_equals_itself_in_a_batch(codec):
    z = latent(batch=3)
    assert torch.allclose(codec.decode(z)[1:2], codec.decode(z[1:2]), atol=1e-6)


def test_bf16_comes_back_as_float32():
    half = QwenVaeCodec(tiny_qwen.vae().to(torch.bfloat16))
    full = QwenVaeCodec(tiny_qwen.vae())
    assert half.encode(picture()).dtype == half.decode(latent()).dtype == torch.float32
    assert 0 < float((half.decode(latent()) - full.decode(latent())).abs().mean()) < 0.01


# On disk


def test_both_layouts_are_the_same_vae(tmp_path, path, codec):
    root = tiny_qwen.write_vae(tmp_path / "model")
    places = [root, root / "vae", root / "vae" / "diffusion_pytorch_model.safetensors", tiny_qwen.write_comfy_vae(path)]
    for place in places:
        found = load_qwen_vae(place)
        assert torch.equal(found.decode(latent()), codec.decode(latent()))
        assert torch.equal(found.encode(picture()), codec.encode(picture()))
        assert not any(parameter.requires_grad for parameter in found.vae.parameters())


def test_a_single_file_has_other_names(path):
    """The guard on the test above: the layouts differ in every name."""
    assert not set(load_file(tiny_qwen.write_comfy_vae(path))) & set(tiny_qwen.vae().state_dict())


def test_the_dtype_asked_for(path):
    codec = load_qwen_vae(tiny_qwen.write_comfy_vae(path), torch.bfloat16)
    assert {parameter.dtype for parameter in codec.vae.parameters()} == {torch.bfloat16}


def drop(tensors):
    del tensors["decoder.upsamples.3.resample.1.bias"]


def extra(tensors):
    tensors["decoder.upsamples.99.gamma"] = torch.ones(1)


def reshaped(tensors):
    tensors["encoder.conv1.bias"] = torch.ones(5)


def without_head(tensors):
    del tensors["decoder.head.0.gamma"]


@pytest.mark.parametrize("change", [drop, extra, reshaped, without_head])
def test_a_vae_that_is_not_whole_is_refused(path, change):
    tensors = load_file(tiny_qwen.write_comfy_vae(path))
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"mine\.safetensors") as caught:
        load_qwen_vae(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [tiny_qwen.write_single, tiny_qwen.write_lora])
def test_another_file_is_refused(path, write):
    with pytest.raises(ModelFileError, match="expected a Qwen-Image VAE"):
        load_qwen_vae(write(path))


# Tiles


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 40), (17, 30), (9, 20)])
def test_tiles_of_an_exact_map_are_exact(height, width):
    """A map that looks at one latent pixel alone must not notice tiles at all, in either direction."""
    source = latent(height, width)
    plan = plan_codec_tiles(height, width, 16, 4)
    up = convert_in_tiles(lambda z: z.repeat_interleave(8, 2).repeat_interleave(8, 3), source, plan, 1, 8)
    assert torch.allclose(up, source.repeat_interleave(8, 2).repeat_interleave(8, 3), atol=1e-6)
    down = convert_in_tiles(lambda x: x[:, :, ::8, ::8], up, plan, 8, 1)
    assert torch.allclose(down, source, atol=1e-6)


def test_tiles_are_no_larger_than_their_number_needs():
    """1200 x 3000 px in tiles of 1024 at most: 2 x 4 of 664 x 848, not of 1024 x 1024."""
    plan = plan_codec_tiles(150, 375, 128, 16)
    assert (len(plan.rows), len(plan.columns)) == (2, 4) and (plan.height, plan.width) == (84, 106)
    assert plan.rows[-1] + plan.height == 150 and plan.columns[-1] + plan.width == 375
    assert all(b - a <= plan.width - 16 for a, b in itertools.pairwise(plan.columns))
    assert plan_codec_tiles(128, 90, 128, 16) == plan_tiles(128, 90, 128, 16, 2)  # one tile


def shift_of_colour(vae, tile_px, overlap_px) -> float:
    """Largest change of a channel's mean through two tiles, in steps of 8-bit colour."""
    untiled, tiled = QwenVaeCodec(vae), QwenVaeCodec(vae, tile_px, overlap_px)
    z = torch.nn.functional.interpolate(latent(8, 12, 1), size=(32, 48), mode="bicubic")  # (1, 16, 32, 48)
    assert plan_tiles(32, 48, tiled.tile, tiled.overlap, 2).count == 2
    return float((tiled.decode(z) - untiled.decode(z)).mean(dim=(0, 2, 3)).abs().max()) * 255


def test_tiles_keep_the_mean_colour(codec):
    """R9, on the real class with random weights."""
    assert 0 < shift_of_colour(codec.vae, 256, 128) < 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_local_hardly_notices_tiles(seed):
    """Without the one attention layer, which sees a whole tile."""
    vae = tiny_qwen.vae(seed)
    for parameter in vae.decoder.mid_block.attentions[0].proj.parameters():
        parameter.zero_()
    assert shift_of_colour(vae, 256, 128) < 0.01


def test_a_tile_that_counts_to_its_edge_would_be_noticed(monkeypatch):
    """The guard on the test above: the plain linear blend of `tiling`."""
    from teasr_core import tiling as codec_tiles
    from teasr_core.tiling import blend_window

    def plain(tile, offset, offsets, size):
        return blend_window(tile * size, offset * size, tuple(value * size for value in offsets))

    monkeypatch.setattr(codec_tiles, "ramp", plain)
    vae = tiny_qwen.vae(0)
    for parameter in vae.decoder.mid_block.attentions[0].proj.parameters():
        parameter.zero_()
    assert shift_of_colour(vae, 256, 128) > 0.05


def test_encoding_in_tiles_gives_nearly_the_same_latent(codec):
    image = torch.nn.functional.interpolate(picture(12, 16, 1), size=(128, 192), mode="bicubic").clamp(0, 1)
    whole, tiled = codec.encode(image), QwenVaeCodec(codec.vae, 128, 64).encode(image)
    assert 0 < float((tiled - whole).abs().mean() / whole.std()) < 0.02


def test_an_image_of_one_tile_is_not_tiled(codec):
    assert torch.equal(QwenVaeCodec(codec.vae, 64, 16).decode(latent(8, 8)), codec.decode(latent(8, 8)))


def test_tiles_bound_what_is_decoded_at_once(codec):
    seen = []
    tiled = QwenVaeCodec(codec.vae, 64, 16)
    hook = codec.vae.decoder.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    try:
        tiled.decode(latent(12, 20))
    finally:
        hook.remove()
    assert len(seen) == 2 * 3 and set(seen) == {(8, 8)}
