"""Convolutions by Winograd's minimal filtering: the same numbers as plain ones, whatever the size and the bands."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.tiny import model as tiny
from teasr_core.codec.block_dct import DCT_CHANNELS
from teasr_core.codec.condition_encoder import winograd
from teasr_core.codec.condition_encoder.winograd import FeatureStack, from_phases, to_phases

SIZES = [(4, 4), (9, 7), (6, 22), (17, 12), (3, 30)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def random_features(channels: int, height: int, width: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(channels, height, width, generator=tiny.generator(seed))


def random_conv(inputs: int, outputs: int) -> nn.Conv2d:
    torch.manual_seed(inputs)
    return nn.Conv2d(inputs, outputs, 3, padding=1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_phases_are_the_features_with_zeros_around_them(height, width):
    features = random_features(2, height, width)
    phases = to_phases(features)
    assert torch.equal(from_phases(phases, height, width), features)
    assert phases.count_nonzero() == features.count_nonzero()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("band", [1, 6, 512])
@pytest.mark.parametrize("slope", [1, 0.2])
def test_a_convolution_of_a_stack_is_the_plain_one(monkeypatch, height, width, band, slope):
    monkeypatch.setattr(winograd, "BAND", band)
    below, above = random_features(5, height, width), random_features(3, height, width, seed=4)
    conv = random_conv(8, 6)
    stack = FeatureStack(height, width, 8)
    stack.push(to_phases(below))
    stack.push(to_phases(above))
    phases = stack.convolve(conv, slope)
    found = from_phases(phases, height, width)
    plain = F.conv2d(torch.cat([below, above])[None].double(), conv.weight.double(), conv.bias.double(), padding=1)[0]
    assert torch.allclose(found.double(), F.leaky_relu(plain, slope), atol=1e-5)
    assert torch.equal(to_phases(found), phases)  # so that it can be laid on the stack


def test_a_cleared_stack_holds_the_next_features():
    stack, conv = FeatureStack(8, 8, 4), random_conv(4, 2)
    stack.push(to_phases(random_features(4, 8, 8)))
    stack.clear()
    stack.push(to_phases(random_features(4, 8, 8, seed=5)))
    plain = conv(random_features(4, 8, 8, seed=5)[None])[0]
    assert torch.allclose(from_phases(stack.convolve(conv, 1), 8, 8), plain, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(49, 46), (64, 48)])
def test_the_encoder_is_the_same_either_way(monkeypatch, height, width):
    encoder = tiny.rrdb_encoder()
    z = torch.randn(2, DCT_CHANNELS, height, width, generator=tiny.generator(2))
    used = []
    monkeypatch.setattr(
        encoder, "_body_on_phases", lambda h, run=encoder._body_on_phases: used.append(h.shape) or run(h)
    )
    fast = encoder.picture(z)
    assert len(used) == 1
    monkeypatch.setattr(winograd, "LEAST", 10**6)
    plain = encoder.picture(z)
    assert len(used) == 1
    assert not torch.equal(fast, plain)
    assert torch.allclose(fast, plain, atol=1e-5 * float(plain.abs().max()))


def test_a_picture_of_a_batch_is_that_picture_alone():
    encoder = tiny.rrdb_encoder()
    z = torch.randn(3, DCT_CHANNELS, 48, 48, generator=tiny.generator(6))
    whole = encoder._body_on_phases(encoder.first(z))
    alone = encoder._body_on_phases(encoder.first(z)[1:2])
    assert torch.equal(whole[1:2], alone)


def test_training_half_precision_and_small_pictures_take_plain_convolutions():
    large = torch.zeros(1, 2, 48, 48)
    assert winograd.pays(large)
    assert not winograd.pays(large[..., :20, :20])
    assert not winograd.pays(large.bfloat16())
    assert not winograd.pays(large.double())
    assert not winograd.pays(large.to("meta"))
    with torch.enable_grad():
        assert not winograd.pays(large)
