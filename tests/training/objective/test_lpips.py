"""LPIPS of all three networks: the package's own value, from a local file, and never from a network (R26)."""

import socket
import urllib.request
import warnings

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from training.objective.lpips import Lpips, load_perceptual

pytest.importorskip("lpips", reason="LPIPS needs the package lpips")

SOURCES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def package(network, **options):
    """The package's own metric."""
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        return lpips.LPIPS(net=network, verbose=False, **options).eval()


def torchvision_keys(network):
    """Names and shapes of the features' weights, in torchvision's order."""
    import torchvision

    with torch.device("meta"):
        features = getattr(torchvision.models, SOURCES[network])(weights=None).features
    return {name: value.shape for name, value in features.state_dict().items()}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """backbones(network): (the package's metric with random features, file of those features as torchvision names)."""
    from safetensors.torch import save_file

    folder, made = tmp_path_factory.mktemp("backbones"), {}

    def make(network):
        if network not in made:
            metric, path = package(network, pnet_rand=True), folder / f"{network}.safetensors"
            keys, weights = torchvision_keys(network), list(metric.net.state_dict().values())
            assert [w.shape for w in weights] == list(keys.values())
            save_file(dict(zip(keys, weights, strict=True)), path)
            made[network] = metric, path
        return made[network]

    return make


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Whatever would reach a network raises; torch's cache of downloads is empty."""

    def refuse(*_, **__):
        raise ConnectionError("a download was tried")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    for name in ("load_state_dict_from_url", "download_url_to_file"):
        monkeypatch.setattr(torch.hub, name, refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def pictures(height=65, width=97):
    """Two batches of two in [-1, 1], not square; the second pair is equal."""
    a, b = 2 * torch.rand(2, 2, 3, height, width, generator=tiny.generator(0)) - 1
    b[1] = a[1]
    return a, b


@pytest.mark.parametrize("network", SOURCES)
def test_the_result_is_the_packages_with_the_same_weights_and_nothing_is_downloaded(backbones, offline, network):
    reference, path = backbones(network)
    state = torch.get_rng_state()
    metric = load_perceptual(f"lpips-{network}", path)
    assert metric is not None and torch.equal(torch.get_rng_state(), state)
    a, b = pictures()
    with torch.no_grad():
        found, wanted = metric(a, b), reference(a, b).flatten()
    assert found.shape == (2,) and torch.equal(found, wanted)
    assert float(found[0]) > 1e-3 and float(found[1]) == 0
    with torch.no_grad():
        assert torch.equal(metric(b, a), found)  # a distance


@pytest.mark.parametrize("network", ["squeeze", "alex"])
def test_the_gradient_is_the_packages(backbones, offline, network):
    reference, path = backbones(network)
    metric = Lpips(network, path)
    gradients = []
    for one in (metric, reference):
        a, b = pictures()
        one(a.requires_grad_(), b).sum().backward()
        gradients.append(a.grad)
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().max()) > 0
    assert all(parameter.grad is None for parameter in metric.parameters())


def test_other_features_give_another_figure(backbones, tmp_path):
    """The file is what counts, not the random features that the package starts with."""
    from safetensors.torch import load_file, save_file

    _, path = backbones("alex")
    save_file({name: value * 1.1 for name, value in load_file(path).items()}, tmp_path / "other.safetensors")
    a, b = pictures()
    with torch.no_grad():
        first, other = (Lpips("alex", file)(a, b)[0] for file in (path, tmp_path / "other.safetensors"))
    assert abs(float(other / first) - 1) > 1e-3


def test_the_package_alone_would_have_downloaded(offline):
    """The guard of these tests bites: the package's default fetches the features."""
    with pytest.raises(ConnectionError, match="a download was tried"):
        package("squeeze")


def test_none_is_no_network_and_needs_no_file():
    assert load_perceptual("none", "") is None


@pytest.mark.parametrize("network", SOURCES)
@pytest.mark.parametrize("path", ["", "nowhere/features.safetensors"])
def test_a_missing_file_names_the_option_the_network_and_where_to_get_it(offline, network, path):
    with pytest.raises(InputError) as caught:
        load_perceptual(f"lpips-{network}", path)
    text = str(caught.value)
    assert "perceptual_backbone" in text and path in text and "\n" not in text
    assert f"torchvision's {SOURCES[network]}().features" in text and "docs/training/start.md" in text


def test_the_page_that_the_error_names_says_where_to_get_it():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "training" / "start.md").read_text(encoding="utf-8")
    assert all(name in page for name in (*SOURCES.values(), "perceptual_backbone", ".features.state_dict()"))


@pytest.mark.parametrize(("network", "other"), [("alex", "squeeze"), ("squeeze", "alex")])
def test_the_features_of_another_network_are_refused(backbones, offline, network, other):
    with pytest.raises(InputError, match=rf"perceptual_backbone.*lacks \d+ of the \d+ wanted.*{SOURCES[network]}"):
        Lpips(network, backbones(other)[1])
