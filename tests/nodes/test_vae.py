"""R9: pictures through the host's VAE in tiles, on ComfyUI's own VAE class with a small random Qwen-Image VAE."""

import logging
import math

import pytest
import torch

from helpers.wan_vae import random_vae

F = 8  # what the Qwen VAE shrinks by


@pytest.fixture
def vae(host):
    return random_vae()


@pytest.fixture
def host_vae(host, vae):
    """host_vae(*sides): ours on the VAE, with these sides of tiles in px, else its own choice."""

    def make(*sides):
        made = host.pack("nodes.run.vae").HostVae(vae)
        made.sides_px = sides or made.sides_px
        return made

    return make


def smooth(height, width, channels=3, batch=1, seed=3):
    """Large shapes, as of a photograph, (B, C, H, W) in [0, 1]."""
    noise = torch.rand(batch, channels, 6, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)


def psnr(a, b):
    return -10 * math.log10(float((a - b).square().mean()))


@pytest.fixture
def sides_of(vae):
    """sides_of(): sizes (h, w) in latent pixels of what the decoder got since the last call, and may be told to fail.

    `sides_of.limit`: above this area in latent pixels the decoder runs out of memory.
    """
    seen = []

    def hear(_module, inputs):
        seen.append(tuple(inputs[0].shape[-2:]))
        if inputs[0].shape[-2] * inputs[0].shape[-1] > take.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 17.20 GiB")

    def take():
        found = list(seen)
        seen.clear()
        return found

    take.limit = 10**9
    handle = vae.first_stage_model.decoder.register_forward_pre_hook(hear)
    yield take
    handle.remove()


def test_a_small_picture_is_the_stock_nodes_bit_for_bit(host, vae, host_vae):
    image = smooth(64, 96)
    ours = host_vae()
    latent = ours.encode(image)
    assert latent.shape == (1, 16, 1, 8, 12) and latent.dtype == torch.float32
    stock = host.nodes.VAEEncode().encode(vae, image.movedim(1, -1))[0]["samples"]
    assert torch.equal(latent, stock)
    decoded = ours.decode(latent)
    assert torch.equal(decoded.movedim(1, -1), host.nodes.VAEDecode().decode(vae, {"samples": stock})[0])
    assert ours.tile_px == 0


@pytest.mark.parametrize(("attention", "shift", "quality"), [(0.0, 0.05, 50), (0.25, 0.5, 35)])
@pytest.mark.parametrize("seed", [0, 1])
def test_tiles_keep_mean_colour_and_picture(host, attention, shift, quality, seed):
    """R9: less than half a step of 8-bit colour; what is local hardly notices tiles at all."""

    def made(side):
        ours = host.pack("nodes.run.vae").HostVae(vae)
        ours.sides_px = (side,)
        return ours

    vae, generator = random_vae(seed, attention), torch.Generator().manual_seed(seed)
    latent = torch.nn.functional.interpolate(
        torch.randn(1, 16, 6, 9, generator=generator), size=(32, 48), mode="bicubic"
    )
    whole, tiled = made(1024), made(256)
    expected, found = whole.decode(latent), tiled.decode(latent)
    assert (whole.tile_px, tiled.tile_px) == (0, 8 * 32)
    assert found.shape == expected.shape == (1, 3, 256, 384)
    assert 0 < float((found - expected).mean(dim=(0, 2, 3)).abs().max()) * 255 < shift
    assert psnr(found, expected) > quality
    image = smooth(256, 384)
    a, b = whole.encode(image), tiled.encode(image)
    assert 0 < float((a - b).square().mean().sqrt() / a.std()) < 0.05


def test_a_large_picture_is_cut_on_its_own(host, vae, host_vae, sides_of):
    """A CPU's tiles are 512 px at most; those of a card 1024, as the command line's are."""
    ours = host_vae()
    latent = torch.randn(1, 16, 1, 40, 68, generator=torch.Generator().manual_seed(1))
    ours.decode(latent)
    assert sides_of() == [(40, 42), (40, 42)] and ours.tile_px == 8 * 42
    codec, tiles = host.pack("teasr_core.tiling"), host.pack("nodes.run.vae")
    assert tiles.SIDES_PX[0] == codec.QWEN_TILE_PX


def test_the_estimate_decides_where_memory_is_short(vae, host_vae, caplog):
    ours = host_vae(1024, 512, 256, 128)
    room = {side: vae.memory_used_decode((1, 16, 1, side // F, side // F), vae.vae_dtype) for side in (1024, 512, 128)}

    def side(free, height=2048, width=2048):
        ours.free = free
        return ours._plan(
            height // F,
            width // F,
            F,
            lambda plan: ours._estimate("memory_used_decode", 16, plan.height, plan.width),
        )

    assert side(float("inf")).height * F <= 1024
    assert side(float("inf"), 1024, 1024).count == 1
    with caplog.at_level(logging.INFO):
        assert 256 < side(room[512]).height * F <= 512
        assert "TEASR: the VAE works in" in caplog.text and "px would take" in caplog.text
    assert side(room[512], 1024, 1024).count > 1
    assert side(room[128] / 2).height * F <= 128  # the smallest stays, and may still turn out to fit
    # never more than a tile of the usual size, however much is free
    assert side(1e15).height == side(float("inf")).height


def test_out_of_memory_goes_on_in_smaller_tiles_and_remembers(host_vae, sides_of):
    latent = torch.randn(2, 16, 1, 20, 34, generator=torch.Generator().manual_seed(1))
    explicit = host_vae(128)
    expected = explicit.decode(latent)
    sides_of()
    sides_of.limit = 16 * 16
    ours = host_vae(512, 256, 128)
    found = ours.decode(latent)
    tried = sides_of()
    assert torch.equal(found, expected)
    assert ours.tile_px == explicit.tile_px <= 128
    failed = [size for size in tried if size[0] * size[1] > 16 * 16]
    assert len(failed) == 2  # 512 px (whole) and 256 px, once each: the second picture starts at 128


def test_nothing_small_enough_is_one_sentence_and_the_next_run_works(host, host_vae, sides_of):
    latent = torch.randn(1, 16, 1, 20, 20)
    sides_of.limit = 0
    with pytest.raises(host.pack("teasr_core.errors").InputError, match="memory ran out in the VAE, even for 112"):
        host_vae(512, 256, 128).decode(latent)
    sides_of.limit = 10**9
    assert host_vae().decode(latent).shape == (1, 3, 160, 160)


def test_other_errors_pass(vae, host_vae):
    def fail(_module, _inputs):
        raise RuntimeError("shapes do not match")

    handle = vae.first_stage_model.decoder.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        host_vae().decode(torch.randn(1, 16, 1, 8, 8))
    handle.remove()


def test_interrupt_is_heard_between_tiles(host, vae, host_vae):
    calls = []

    def press_cancel(*_args):
        calls.append(1)
        host.model_management.interrupt_current_processing(len(calls) == 2)

    handle = vae.first_stage_model.decoder.register_forward_hook(press_cancel)
    try:
        with pytest.raises(host.model_management.InterruptProcessingException):
            host_vae(128).decode(torch.randn(1, 16, 1, 20, 34))
    finally:
        handle.remove()
        host.model_management.interrupt_current_processing(False)
    assert len(calls) == 2


@pytest.mark.parametrize("size", [(64, 96), (1100, 1200)])
def test_the_built_in_codec_comes_whole_and_exact(host, builtin, size):
    image = smooth(*size)
    ours = host.pack("nodes.run.vae").picture_vae(builtin.vae)
    latent = ours.encode(image)
    assert torch.equal(latent, builtin.vae.encode(image.movedim(1, -1).contiguous()))
    assert torch.equal(ours.decode(latent).movedim(1, -1), builtin.vae.decode(latent))
    assert ours.tile_px == 0


class Pooling:
    """The least a VAE may be: no device, no estimate, no tiled forms. Every latent pixel stands alone."""

    latent_dim = 2

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), F)

    def decode(self, samples):
        return samples.repeat_interleave(F, 2).repeat_interleave(F, 3).movedim(1, -1)

    def spacial_compression_encode(self):
        return F

    spacial_compression_decode = spacial_compression_encode


def test_another_vae_works_by_its_plain_methods(host):
    vae = Pooling()
    ours = host.pack("nodes.run.vae").HostVae(vae)
    ours.sides_px, ours.free = (256, 128), 1.0
    image = smooth(200, 264, batch=2)
    latent = ours.encode(image)
    assert latent.shape == (2, 3, 1, 25, 33)
    assert 128 < ours.tile_px <= 256  # by size alone: no estimate says that a tile does not fit
    assert torch.allclose(latent[:, :, 0], vae.encode(image.movedim(1, -1)), atol=1e-6)
    assert torch.allclose(ours.decode(latent).movedim(1, -1), vae.decode(latent[:, :, 0]), atol=1e-6)


def test_a_vae_of_another_factor_is_one_sentence(host):
    vae = Pooling()
    vae.spacial_compression_encode = lambda: 2 * F
    with pytest.raises(host.pack("teasr_core.errors").InputError, match=r"latent of \(1, 8, 8\), expected \(1, 4, 4\)"):
        host.pack("nodes.run.vae").HostVae(vae).encode(smooth(64, 64))


def test_condition_and_decode_use_the_tiles(host, builtin, vae, sides_of):
    """The nodes: the condition's latent, and the decoder's picture, phases and tile for the report."""
    image = smooth(96, 528).movedim(1, -1).contiguous()
    values = {"conditioning": builtin.conditioning, "size": {"size": "factor", "scale": 1.0}}
    _, _, latent, resized = host.run("TEASRCondition", image=image, vae=vae, **values)
    notes = latent["teasr_notes"]
    assert 0 < notes.vae_tile_px <= 512 and set(notes.phases) == {"encode"}
    picture, out = host.run("TEASRUpscaleDecode", latent=latent, vae=vae)
    assert picture.shape[1:] == (96, 544, 3) and resized.shape[1:] == (96, 528, 3)
    assert len(sides_of()) == 2
    assert set(out["teasr_notes"].phases) == {"encode", "decode"}
    assert f"528x96, 1 tile, VAE tiles of {notes.vae_tile_px} px" in out["teasr_notes"].report().line()
    assert "decode" not in latent["teasr_notes"].phases  # the input is untouched
