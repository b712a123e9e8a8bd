"""An rrdb encoder that starts from the weights of an RRDBNet, written here as BasicSR's module writes them."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from helpers.tiny import model as tiny
from teasr_core.codec.condition_encoder.residual import ResidualEncoder
from teasr_core.codec.condition_encoder.rrdb import RrdbEncoder
from teasr_core.codec.dct import DctCodec
from teasr_core.errors import ConfigError, InputError, ModelFileError
from training.pretrain.blend import blend_encoder
from training.pretrain.rrdbnet import copy_rrdbnet

FEATURES, GROWTH, BLOCKS = 8, 4, 2


class RrdbNet(nn.Module):
    """RRDBNet for x4 with BasicSR's names of the layers."""

    def __init__(self, blocks: int = BLOCKS, colours: int = 3) -> None:
        super().__init__()
        conv = nn.Conv2d
        self.conv_first = conv(colours, FEATURES, 3, 1, 1)
        self.body = nn.ModuleList()
        for _ in range(blocks):
            block = nn.Module()
            for k in (1, 2, 3):
                dense = nn.Module()
                for i in range(5):
                    out = GROWTH if i < 4 else FEATURES
                    setattr(dense, f"conv{i + 1}", conv(FEATURES + i * GROWTH, out, 3, 1, 1))
                setattr(block, f"rdb{k}", dense)
            self.body.append(block)
        for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
            setattr(self, name, conv(FEATURES, FEATURES, 3, 1, 1))
        self.conv_last = conv(FEATURES, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """outside: (1, 3, 1, 1), the colour beyond the picture's edge; the published network sees black there."""
        canvas = outside.expand(1, 3, x.shape[2] + 2, x.shape[3] + 2).clone()
        canvas[:, :, 1:-1, 1:-1] = x
        first = h = F.conv2d(canvas, self.conv_first.weight, self.conv_first.bias)
        for block in self.body:
            block_in = h
            for dense in (block.rdb1, block.rdb2, block.rdb3):
                parts = [h]
                for conv in (dense.conv1, dense.conv2, dense.conv3, dense.conv4):
                    parts.append(F.leaky_relu(conv(torch.cat(parts, 1)), 0.2))
                h = h + 0.2 * dense.conv5(torch.cat(parts, 1))
            h = block_in + 0.2 * h
        h = first + self.conv_body(h)
        for up in (self.conv_up1, self.conv_up2):
            h = F.leaky_relu(up(F.interpolate(h, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(h), 0.2))


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RrdbNet().eval().requires_grad_(False)


@pytest.fixture
def encoder():
    encoder = RrdbEncoder(BLOCKS, FEATURES, GROWTH)
    encoder.set_statistics(tiny.codec().mean, tiny.codec().std)
    return encoder.eval().requires_grad_(False)


def save(network, path, form):
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({form: network.state_dict()} if form else network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "form"), [("net.pth", "params_ema"), ("net.pth", "params"), ("net.pth", ""), ("net.safetensors", "")]
)
def test_at_x4_it_begins_as_that_network(tmp_path, network, encoder, name, form):
    """A picture that is constant in each block of 4 px has only DC coefficients: the low-quality pixels themselves."""
    copy_rrdbnet(encoder, save(network, tmp_path / name, form))
    low = torch.rand(1, 3, 6, 9, generator=tiny.generator(1))
    codec = DctCodec(tiny.codec().mean.flatten().tolist(), tiny.codec().std.flatten().tolist(), encoder)
    found = codec.decode(codec.encode_lq(low.repeat_interleave(4, 2).repeat_interleave(4, 3)))
    mean_colour = codec.mean[:, [0, 16, 32]] / 8 + 0.5
    assert torch.allclose(found, network(low, mean_colour), atol=1e-4)
    assert float((found - low.repeat_interleave(4, 2).repeat_interleave(4, 3)).abs().max()) > 0.01


def test_another_number_of_blocks_is_refused(tmp_path, encoder):
    path = save(RrdbNet(blocks=3), tmp_path / "three.pth", "params_ema")
    with pytest.raises(
        ConfigError, match=r"three.pth: it is no RRDBNet of 2 blocks .*body\.2.*set model.encoder_block"
    ):
        copy_rrdbnet(encoder, path)


def test_a_network_for_another_factor_is_refused(tmp_path, encoder):
    """Real-ESRGAN's x2 network reads 12 channels of unshuffled pixels."""
    with pytest.raises(ConfigError, match="12 input channels"):
        copy_rrdbnet(encoder, save(RrdbNet(colours=12), tmp_path / "x2.pth", "params_ema"))


def test_another_width_is_refused_and_nothing_is_changed(tmp_path, network):
    encoder = RrdbEncoder(BLOCKS, 16, 8)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ConfigError, match=r"set model\.encoder_width"):
        copy_rrdbnet(encoder, save(network, tmp_path / "net.pth", ""))
    assert sum(not torch.equal(before[key], value) for key, value in encoder.state_dict().items()) == 0


@pytest.mark.parametrize("kind", ["missing", "text", "list", "wrong"])
def test_a_file_that_is_none_is_refused(tmp_path, encoder, kind):
    path = tmp_path / "file.pth"
    if kind == "text":
        path.write_text("no weights")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "wrong":
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises((ModelFileError, ConfigError), match=r"model\.encoder_start is .*file\.pth"):
        copy_rrdbnet(encoder, path)


def test_another_kind_of_encoder_is_refused(tmp_path, network):
    path = save(network, tmp_path / "net.pth", "")
    for other in (None, ResidualEncoder(48, 8, 2)):
        with pytest.raises(ConfigError, match="encoder_kind = 'rrdb'"):
            copy_rrdbnet(other, path)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_blend_is_the_mean_of_the_weights(tmp_path, network, encoder, share):
    """What the network lacks stays the encoder's own: the channels beside the blocks' means, and the skip."""
    path = save(network, tmp_path / "net.pth", "params_ema")
    for index, weight in enumerate(encoder.parameters()):
        weight.copy_(torch.randn(weight.shape, generator=tiny.generator(index)))
    own = {key: value.clone() for key, value in encoder.state_dict().items()}
    started = copy.deepcopy(encoder)
    copy_rrdbnet(started, path)
    theirs = started.state_dict()
    theirs["skip.weight"] = own["skip.weight"]
    details = [channel for channel in range(48) if channel not in (0, 16, 32)]
    theirs["first.weight"][:, details] = own["first.weight"][:, details]
    blend_encoder(encoder, str(path), share)
    for key, value in encoder.state_dict().items():
        assert torch.allclose(value, share * theirs[key] + (1 - share) * own[key], atol=1e-6), key


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(tmp_path, network, encoder, share):
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        blend_encoder(encoder, str(save(network, tmp_path / "net.pth", "")), share)
