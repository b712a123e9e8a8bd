"""IMAGE, MASK, VAE and LATENT at ComfyUI's sockets: exact sizes, exact codec, nothing modified."""

import numpy as np
import pytest
import torch


def factor(value):
    return {"size": "factor", "scale": value}


def test_codec_round_trip_through_the_stock_vae_nodes(host, builtin):
    image = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(1))
    latent = host.nodes.VAEEncode().encode(builtin.vae, image)[0]
    assert latent["samples"].shape == (2, 48, 1, 4, 6)
    assert torch.allclose(host.nodes.VAEDecode().decode(builtin.vae, latent)[0], image, atol=1e-6)
    tiled = host.nodes.VAEEncodeTiled().encode(builtin.vae, image, 512, 64)[0]
    assert torch.equal(tiled["samples"], latent["samples"])
    decoded = host.nodes.VAEDecodeTiled().decode(builtin.vae, tiled, 512)[0]
    assert torch.allclose(decoded, image, atol=1e-6)
    assert (
        host.nodes.VAEEncodeForInpaint().encode(builtin.vae, image, torch.ones(2, 16, 24))[0]["samples"].shape[1] == 48
    )


def test_vae_crops_odd_sides_around_the_centre_and_drops_alpha(builtin):
    image = torch.rand(1, 18, 23, 4)
    expected = builtin.vae.encode(image[:, 1:17, 1:21, :3])
    assert torch.equal(builtin.vae.encode(image), expected)


def test_vae_refuses_another_models_latent(host, builtin):
    with pytest.raises(host.pack("teasr_core.errors").InputError, match="48 channels"):
        builtin.vae.decode(torch.zeros(1, 16, 1, 4, 4))


@pytest.fixture(params=["residual", "rrdb"])
def encoder(host, builtin, request):
    """A random condition encoder of each kind in the built-in VAE, for one test."""
    kinds = {"residual": {"width": 8, "blocks": 2}, "rrdb": {"kind": "rrdb", "blocks": 1, "width": 8, "growth": 4}}
    encoder = host.pack("teasr_core.codec.condition_encoder.load").make_condition_encoder(kinds[request.param])
    encoder.set_statistics(builtin.vae.codec.mean, builtin.vae.codec.std)
    generator = torch.Generator().manual_seed(3)
    for parameter in encoder.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    builtin.vae.codec.condition_encoder = encoder.requires_grad_(False)
    return encoder


@pytest.mark.parametrize("side", [64, 80])
def test_condition_goes_through_the_encoder_and_the_vae_does_not(host, builtin, encoder, monkeypatch, side):
    """TEASRCondition gives what the command line samples from, in tiles too; stock VAE nodes stay exact."""
    codec = builtin.vae.codec
    monkeypatch.setattr(encoder, "tile", 16)
    monkeypatch.setattr(encoder, "overlap", 4)
    image = torch.rand(1, side, side, 3)
    conditioning, *_ = host.run(
        "TEASRCondition", image=image, vae=builtin.vae, conditioning=builtin.conditioning, size=factor(1.0)
    )
    found = builtin.model.model.process_latent_in(conditioning[0][1]["reference_latents"][0])[:, :, 0]
    pixels = image.movedim(-1, 1)
    assert torch.allclose(found, codec.encode_lq(pixels, scale=1.0), atol=1e-4)
    assert (found - codec.encode(pixels)).abs().max() > 0.05
    assert torch.allclose(builtin.vae.decode(builtin.vae.encode(image)), image, atol=1e-5)


def test_latent_format_normalises_once(host, builtin, assets):
    """Raw coefficients outside, (x - mean) / std inside."""
    codec = host.pack("teasr_core.weight_files.base_file").shipped_base().codec
    image = torch.rand(1, 3, 16, 16)
    raw = builtin.vae.encode(image.movedim(1, -1))
    inside = builtin.model.model.process_latent_in(raw)
    assert torch.allclose(inside[:, :, 0], codec.encode(image), atol=1e-6)
    assert torch.allclose(builtin.model.model.process_latent_out(inside), raw, atol=1e-6)


@pytest.mark.parametrize(("pixels", "side"), [((48, 64), 4), ((600, 1024), 2), ((2048, 2060), 1)])
def test_a_preview_is_the_decoded_picture_no_larger_than_it_is_shown(host, builtin, pixels, side):
    image = torch.rand(2, *pixels, 3)
    latent = builtin.model.model.process_latent_in(builtin.vae.encode(image))
    latent_preview = host.pack("nodes.run.progress").latent_preview
    fmt = builtin.model.get_model_object("latent_format")
    previewer = latent_preview.Latent2RGBPreviewer(
        fmt.latent_rgb_factors, fmt.latent_rgb_factors_bias, fmt.latent_rgb_factors_reshape
    )
    shown = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latent))) / 255
    wanted = torch.nn.functional.avg_pool2d(image[:1].movedim(-1, 1), 4 // side)[0].movedim(0, -1)
    assert shown.shape == wanted.shape and (shown - wanted).abs().max() <= 1.5 / 255


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (factor(2.0), (46, 34)),
        (factor(1.0), (23, 17)),
        (factor(0.5), (12, 9)),
        ({"size": "shortest", "px": 40}, (54, 40)),
        ({"size": "longest", "px": 40}, (40, 30)),
        ({"size": "exact", "width": 31, "height": 50}, (31, 50)),
        ({"size": "megapixels", "mp": 0.01}, (119, 88)),
    ],
)
def test_every_size_mode_is_exact_from_end_to_end(host, builtin, condition, sample, photo, size, expected):
    made = condition(photo, size=size)
    width, height = expected
    assert made.resized.shape == (1, height, width, 3)
    assert all(side % 4 == 0 for side in made.latent["samples"].shape[-2:])
    decoded = host.nodes.VAEDecode().decode(
        builtin.vae, {"samples": sample(builtin.model, made.conditioning, made.latent)}
    )
    out = host.run("TEASRColorFix", image=decoded[0], reference=made.resized)[0]
    assert out.shape == (1, height, width, 3)
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1


def test_max_megapixels_caps(condition, photo):
    assert condition(photo, factor=8.0, max_megapixels=0.01).resized.shape[1:3].numel() <= 0.01 * 1024**2


def test_condition_is_the_cores_conditioning_image(host, builtin, condition, photo):
    """The same resize and padding as the command line, encoded: 16 px multiples."""
    made = condition(photo)
    size = host.pack("teasr_core.image.resize").TargetSize(46, 34)
    resized, padded = host.pack("teasr_core.restore").conditioning_image(photo.movedim(-1, 1), size, 16)
    assert torch.equal(made.resized, resized.movedim(1, -1))
    codec = host.pack("teasr_core.codec.block_dct")
    coefficients = codec.image_to_coefficients(padded)
    assert torch.equal(made.latent["samples"][:, :, 0], coefficients)
    assert torch.allclose(made.conditioning[0][1]["reference_latents"][0][:, :, 0], coefficients, atol=1e-5)
    assert padded.shape[-2:] == (48, 48)


def test_a_video_vae_gets_one_image_at_a_time(host):
    """Qwen's VAE takes a batch for frames and would merge four of them into one."""

    seen = []

    class VideoVae:
        def spacial_compression_encode(self):
            return 8

        def encode(self, pixels):
            seen.append(tuple(pixels.shape))
            return torch.zeros(1, 16, 1, pixels.shape[1] // 8, pixels.shape[2] // 8)

    conditioning = [[torch.zeros(1, 2, 8), {}]]
    made = host.run(
        "TEASRCondition", image=torch.rand(3, 20, 30, 3), vae=VideoVae(), conditioning=conditioning, size=factor(2.0)
    )
    assert seen == [(1, 64, 64, 3)] * 3  # 60 x 40 padded to multiples of 32
    assert made[0][0][1]["reference_latents"][0].shape == (3, 16, 1, 8, 8)
    assert made[2]["batch_index"] == [0, 0, 0]


def test_color_fix_crops_also_when_off(host, photo):
    padded = torch.rand(1, 32, 32, 3)
    out = host.run("TEASRColorFix", image=padded, reference=photo, color_fix="off")[0]
    assert torch.equal(out, padded[:, :17, :23])


@pytest.mark.parametrize("method", ["wavelet", "adain", "lab"])
def test_color_fix_is_the_cores(host, method):
    image, reference = torch.rand(2, 20, 30, 3), torch.rand(2, 20, 30, 3) * 0.5
    before = image.clone()
    out = host.run("TEASRColorFix", image=image, reference=reference, color_fix=method, color_strength=0.7)[0]
    expected = host.pack("teasr_core.image.color_fix").fix_color(
        image.movedim(-1, 1), reference.movedim(-1, 1), method, 0.7
    )
    assert torch.allclose(out, expected.movedim(1, -1), atol=1e-6)  # another memory layout rounds otherwise
    assert torch.equal(image, before)


def test_grey_and_rgba_images_are_taken(condition, host):
    grey = torch.rand(1, 16, 16, 1)
    assert torch.equal(condition(grey, 1.0).resized, grey.expand(-1, -1, -1, 3))
    rgba = torch.rand(1, 16, 16, 4)
    rgba[..., 3] = 1.0
    assert torch.equal(condition(rgba, 1.0).resized, rgba[..., :3])


def test_colour_is_bled_under_transparency_before_the_resize(host):
    """R22: black under alpha 0 must not be dragged into the visible edge."""
    image = torch.zeros(1, 16, 16, 3)
    image[:, :, :8] = 0.9  # visible half; the other half is black and transparent
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1.0
    resized, out_mask, opaque = host.run("TEASRUpscaleInput", image=image, mask=mask, size=factor(4.0))
    assert resized.min() >= 0.9 - 1e-5
    assert opaque.shape == image.shape and opaque.min() >= 0.9 - 1e-5
    assert out_mask.shape == (1, 64, 64)
    assert out_mask[:, :, :20].max() == 0
    assert out_mask[:, :, -20:].min() == 1


def test_an_empty_mask_of_any_size_means_opaque(host, photo):
    """LoadImage gives 64 x 64 zeros for an image without alpha."""
    resized, out_mask, opaque = host.run(
        "TEASRUpscaleInput", image=photo, mask=torch.zeros(1, 64, 64), size=factor(2.0)
    )
    assert torch.equal(opaque, photo)
    assert torch.equal(resized, host.run("TEASRUpscaleInput", image=photo, size=factor(2.0))[0])
    assert out_mask.shape == (1, 34, 46)
    assert not out_mask.any()
