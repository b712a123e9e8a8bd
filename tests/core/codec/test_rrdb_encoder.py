"""The residual-in-residual dense encoder: Real-ESRGAN's network on the codec's grid."""

import json

import pytest
import torch
from torch.nn import functional as F

from helpers.tiny import model as tiny
from teasr_core.codec.block_dct import DCT_CHANNELS, coefficients_to_image
from teasr_core.codec.condition_encoder import rrdb
from teasr_core.codec.condition_encoder.load import load_condition_encoder
from teasr_core.codec.dct import DctCodec
from teasr_core.errors import ModelFileError
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from teasr_core.weight_files.base_file import read_base


def random_latent(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, DCT_CHANNELS, height, width, generator=tiny.generator(2))


def test_it_is_rrdbnet_written_down():
    """Equation by equation, in float64, as in Real-ESRGAN's code: beta = 0.2, nearest-neighbour upsampling."""
    encoder, z = tiny.rrdb_encoder().double(), random_latent(5, 7).double()
    weights = encoder.state_dict()

    def conv(name, x, padding=1):
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding)

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    first = h = conv("first", z)
    for block in range(encoder.blocks):
        block_in = h
        for dense in range(3):
            dense_in, parts = h, [h]
            for k in range(4):
                parts.append(leaky(conv(f"body.{block}.dense.{dense}.convs.{k}", torch.cat(parts, 1))))
            h = dense_in + 0.2 * conv(f"body.{block}.dense.{dense}.convs.4", torch.cat(parts, 1))
        h = block_in + 0.2 * h
    h = first + conv("trunk", h)
    for name in ("up1", "up2"):
        h = leaky(conv(name, h.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    picture = conv("last", leaky(conv("detail", h)))
    assert torch.allclose(encoder.picture(z), picture, atol=1e-12)
    codec = tiny.codec()
    decoded = coefficients_to_image(encoder(z) * codec.std.double() + codec.mean.double())
    skip = coefficients_to_image(conv("skip", z, padding=2) * codec.std.double()) - 0.5
    assert torch.allclose(decoded, picture + skip, atol=1e-12)


def test_every_weight_learns():
    encoder = tiny.rrdb_encoder().requires_grad_(True)
    encoder(random_latent(6, 6, batch=2)).square().mean().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in encoder.parameters())


def test_tiles_are_the_whole_but_for_their_edges(monkeypatch):
    encoder, z = tiny.rrdb_encoder(blocks=1), random_latent(20, 33)
    whole = encoder.in_tiles(z)
    monkeypatch.setattr(encoder, "tile", 16)
    monkeypatch.setattr(encoder, "overlap", 8)
    tiled = encoder.in_tiles(z)
    assert not torch.equal(tiled, whole)
    assert float((tiled - whole).square().mean() / (whole - z).square().mean()) < 0.02


def test_a_base_file_keeps_it(tmp_path):
    wanted = tiny.rrdb_encoder()
    path = tiny.write_base(tmp_path / "base.safetensors", encoder=wanted)
    base = read_base(path)
    found = base.codec.condition_encoder
    assert found is not None and found.config() == wanted.config()
    image = tiny.picture(24, 40)
    own = DctCodec(base.codec.mean.flatten().tolist(), base.codec.std.flatten().tolist(), wanted)
    assert torch.allclose(base.codec.encode_lq(image), own.encode_lq(image), atol=1e-5)


def test_the_form_of_its_file_is_the_second(tmp_path):
    from safetensors import safe_open

    forms = {}
    for name, encoder in (("none", None), ("residual", tiny.condition_encoder()), ("rrdb", tiny.rrdb_encoder())):
        path = tiny.write_base(tmp_path / f"{name}.safetensors", encoder=encoder)
        with safe_open(path, framework="pt") as file:
            forms[name] = file.metadata()["teasr.format"]
    assert forms == {"none": "1", "residual": "1", "rrdb": "2"}


@pytest.mark.parametrize(
    "change", [{"kind": "unknown"}, {"blocks": 3}, {"width": 0}, {"growth": "many"}, {"blocks": None}]
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, change):
    encoder = tiny.rrdb_encoder()
    config = json.dumps(encoder.config() | change)
    path = tiny.write_base(tmp_path / "base.safetensors", encoder=encoder, **{"teasr.condition_encoder": config})
    with pytest.raises(ModelFileError, match="condition encoder is damaged"):
        read_base(path)


def test_the_config_is_enough_to_build_it():
    wanted = tiny.rrdb_encoder()
    found = load_condition_encoder(json.loads(json.dumps(wanted.config())), wanted.state_dict())
    found.set_statistics(wanted.mean, wanted.std)
    z = random_latent(6, 5)
    assert torch.allclose(found(z), wanted(z), atol=1e-5)


def test_the_layers_after_the_trunk_are_the_same_in_strips(monkeypatch):
    encoder, z = tiny.rrdb_encoder(blocks=1), random_latent(37, 9, batch=2)
    whole = encoder.picture(z)
    heights = []
    monkeypatch.setattr(encoder, "_head", lambda h, head=encoder._head: heights.append(h.shape[2]) or head(h))
    monkeypatch.setattr(rrdb, "HEAD_STRIP", 16 * 9)
    assert torch.equal(encoder.picture(z), whole)
    assert heights == [18, 20, 7]
    monkeypatch.setattr(rrdb, "HEAD_REACH", 1)
    assert not torch.allclose(encoder.picture(z), whole, atol=1e-4)


@pytest.mark.parametrize(("scale", "finer"), [(0.25, 2), (1, 2), (2, 2), (3, 4 / 3), (4, 1), (8, 1)])
def test_sharp_pictures_at_small_factors_are_encoded_on_a_finer_grid(scale, finer):
    """Equation by equation: the picture enlarged by Lanczos, encoded there, and shrunk."""
    encoder, codec = tiny.rrdb_encoder(blocks=1), tiny.codec()
    codec = DctCodec(codec.mean.flatten().tolist(), codec.std.flatten().tolist(), encoder)
    image = noise_picture(24, 48)
    larger = TargetSize(round(12 * finer) * 4, round(6 * finer) * 4)
    there = codec.decode(encoder(codec.encode(resize(image, larger))))
    wanted = codec.encode(resize(there, TargetSize(48, 24))) if finer > 1 else encoder(codec.encode(image))
    assert torch.allclose(codec.encode_lq(image, scale), wanted, atol=1e-4)


def test_the_grid_is_no_finer_than_the_picture():
    """A picture that was enlarged by another program says nothing of its factor, but it is soft."""
    encoder = tiny.rrdb_encoder(blocks=1)
    found = [encoder.finer(resize(noise_picture(side, side), TargetSize(192, 192)), scale=1) for side in (192, 64, 48)]
    assert found[0] == 2 and 1 < found[1] <= 2 and found[2] == 1
    assert encoder.finer(torch.full((1, 3, 64, 64), 0.5), scale=1) == 1


def test_each_picture_of_a_batch_has_its_own_grid():
    encoder, codec = tiny.rrdb_encoder(blocks=1), tiny.codec()
    codec = DctCodec(codec.mean.flatten().tolist(), codec.std.flatten().tolist(), encoder)
    soft, sharp = resize(noise_picture(24, 24), TargetSize(96, 96)), noise_picture(96, 96)
    alone = [codec.encode_lq(one, scale=1) for one in (soft, sharp)]
    assert torch.allclose(codec.encode_lq(torch.cat([soft, sharp]), scale=1), torch.cat(alone), atol=1e-5)
    on_own_grid = codec.encode_lq(torch.cat([soft, sharp]))
    assert torch.allclose(on_own_grid[:1], alone[0], atol=1e-5)
    assert not torch.allclose(on_own_grid[1:], alone[1], atol=1e-2)


def test_tiles_on_a_finer_grid_are_the_whole_but_for_their_edges(monkeypatch):
    encoder, z = tiny.rrdb_encoder(blocks=1), random_latent(20, 33)
    whole = encoder.in_tiles(z, finer=2)
    monkeypatch.setattr(encoder, "tile", 32)
    monkeypatch.setattr(encoder, "overlap", 16)
    sides = []
    monkeypatch.setattr(encoder, "forward", lambda t, run=encoder.forward: sides.append(tuple(t.shape[2:])) or run(t))
    tiled = encoder.in_tiles(z, finer=2)
    assert len(sides) == 8 and all(side <= 32 for sizes in sides for side in sizes)
    assert float((tiled - whole).square().mean() / (whole - z).square().mean()) < 0.02


def test_an_encoder_that_says_nothing_of_grids_keeps_the_result_s():
    assert tiny.condition_encoder(5).finer(noise_picture(64, 64), scale=1) == 1


def noise_picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))
