"""The condition encoder: shapes, its tiles, its place in codec, restoration and base file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from teasr_core.codec.block_dct import DCT_CHANNELS
from teasr_core.codec.condition_encoder.load import load_condition_encoder
from teasr_core.codec.condition_encoder.residual import ResidualEncoder
from teasr_core.codec.dct import DctCodec
from teasr_core.codec.protocol import Codec
from teasr_core.errors import ModelFileError
from teasr_core.image.target_size import TargetSize
from teasr_core.report import SamplingRecord
from teasr_core.restore import RestoreOptions, restore
from teasr_core.weight_files.base_file import ENCODER_KEY, ENCODER_PREFIX, read_base
from training.objective.losses import weighted_mse


def codec(seed: int = 5) -> DctCodec:
    plain = tiny.codec()
    return DctCodec(plain.mean.flatten().tolist(), plain.std.flatten().tolist(), tiny.condition_encoder(seed))


def test_untrained_it_changes_nothing():
    z = tiny.latents()[1]
    assert torch.equal(ResidualEncoder(DCT_CHANNELS, 8, 2)(z), z)


def test_it_is_the_residual_network_written_down():
    encoder, z = tiny.condition_encoder(), tiny.latents()[1]
    conv = torch.nn.functional.conv2d
    weights = encoder.state_dict()

    def layer(name, x):
        return conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    x = layer("head", z)
    for k in range(encoder.blocks):
        x = x + layer(f"body.{k}.conv2", layer(f"body.{k}.conv1", x).clamp_min(0))
    assert torch.allclose(encoder(z), z + layer("tail", x), atol=1e-5)
    assert float((encoder(z) - z).abs().max()) > 0.05


def test_it_can_learn_to_repair():
    """A fixed blur of the coefficients is undone better than by nothing: the gradient reaches every weight."""
    z = torch.randn(4, DCT_CHANNELS, 12, 12, generator=tiny.generator(0))
    blurred = torch.nn.functional.avg_pool2d(z, 3, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ResidualEncoder(DCT_CHANNELS, 16, 2)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    before = float(weighted_mse(blurred, z, torch.ones(1)))
    for _ in range(60):
        loss = weighted_mse(encoder(blurred), z, torch.ones(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(float(p.grad.abs().max()) > 0 for p in encoder.parameters())
    assert float(loss.detach()) < 0.8 * before


@pytest.mark.parametrize("shape", [(20, 33), (12, 40), (16, 16)])
def test_tiles_are_the_whole_but_for_their_edges(monkeypatch, shape):
    encoder = tiny.condition_encoder()  # 2 blocks see 6 latent pixels away
    z = torch.randn(1, DCT_CHANNELS, *shape, generator=tiny.generator(1))
    whole = encoder.in_tiles(z)
    assert torch.allclose(whole, encoder(z), atol=1e-5)
    monkeypatch.setattr(encoder, "tile", 16)
    monkeypatch.setattr(encoder, "overlap", 8)
    tiled = encoder.in_tiles(z)
    assert tiled.shape == z.shape
    change = (whole - z).square().mean()
    assert float((tiled - whole).square().mean() / change) < 0.02
    if max(shape) > 16:
        assert not torch.equal(tiled, whole)  # it was tiled


def test_the_condition_is_encoded_and_the_photograph_is_not():
    with_encoder, image = codec(), tiny.picture(32, 48)
    plain = tiny.codec().encode(image)
    assert torch.equal(with_encoder.encode(image), plain)
    assert torch.allclose(with_encoder.encode_lq(image), tiny.condition_encoder(5)(plain), atol=1e-5)
    assert torch.equal(tiny.codec().encode_lq(image), plain)


def test_a_codec_without_its_own_way_shows_every_image_alike():
    class Plain(Codec):
        channels, downscale = 3, 1

        def encode(self, image):
            return 2 * image - 1

        def decode(self, latent):
            return (latent + 1) / 2

    image = tiny.picture(8, 8)
    assert torch.equal(Plain().encode_lq(image), 2 * image - 1)


def test_restoring_samples_from_the_encoded_condition():
    seen = []

    def sampler(z_lq):
        seen.append(z_lq)
        return z_lq, SamplingRecord()

    image, with_encoder = tiny.picture(32, 32), codec()
    restored = restore(image, with_encoder, sampler, RestoreOptions(TargetSize(32, 32), color_fix="off"), 16).image
    assert torch.equal(seen[0], with_encoder.encode_lq(image))
    assert torch.allclose(restored, with_encoder.decode(seen[0]).clamp(0, 1), atol=1e-6)


# Base files


@pytest.fixture
def path(tmp_path):
    return tiny.write_base(tmp_path / "base.safetensors", encoder=tiny.condition_encoder())


def test_round_trip(path):
    found = read_base(path)
    assert not any(key.startswith(ENCODER_PREFIX) for key in found.tensors)
    encoder, wanted, z = found.codec.condition_encoder, tiny.condition_encoder(), tiny.latents()[1]
    assert encoder.config() == wanted.config()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert torch.allclose(encoder(z), wanted(z), atol=1e-5)


def test_a_base_without_one_reads_as_before(tmp_path):
    assert read_base(tiny.write_base(tmp_path / "base.safetensors")).codec.condition_encoder is None


def test_bf16_weights_are_computed_in_float32(tmp_path):
    path = tiny.write_base(tmp_path / "base.safetensors", dtype=torch.bfloat16, encoder=tiny.condition_encoder())
    encoder, z = read_base(path).codec.condition_encoder, tiny.latents()[1]
    assert encoder(z).dtype == torch.float32
    assert float((encoder(z) - tiny.condition_encoder()(z)).abs().max()) < 0.05


@pytest.mark.parametrize("broken", ["no config", "no tensors", "missing tensor", "another width", "no number", "huge"])
def test_damage_is_one_line_that_names_the_file(path, broken):
    tensors = load_file(path)
    metadata = read_metadata(path)
    config = json.loads(metadata[ENCODER_KEY])
    if broken == "no config":
        del metadata[ENCODER_KEY]
    elif broken == "no tensors":
        tensors = {key: value for key, value in tensors.items() if not key.startswith(ENCODER_PREFIX)}
    elif broken == "missing tensor":
        del tensors[f"{ENCODER_PREFIX}body.1.conv2.bias"]
    else:
        config["width"] = {"another width": 9, "no number": "wide", "huge": 10**9}[broken]
        metadata[ENCODER_KEY] = json.dumps(config)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ModelFileError) as caught:
        read_base(path)
    message = str(caught.value)
    assert path.name in message
    assert "condition encoder" in message
    assert "\n" not in message


def read_metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_reading_leaves_the_global_random_state_alone(path):
    state = torch.get_rng_state()
    read_base(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_config_is_enough_to_build_it():
    wanted = tiny.condition_encoder()
    found = load_condition_encoder(json.loads(json.dumps(wanted.config())), wanted.state_dict())
    z = tiny.latents()[1]
    assert torch.allclose(found(z), wanted(z), atol=1e-6)
