"""LPIPS as a loss and as a figure, with the backbone read from a local file.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (package `lpips`,
whose calibrated layer weights v0.1 are used). "LPIPS-squeeze", "LPIPS-alex" and "LPIPS-vgg" do not compare.
"""

import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from teasr_core.errors import InputError

# network -> torchvision's model whose `.features` hold the same weights
_SOURCES = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}


def load_perceptual(name: str, backbone_path: str | Path) -> "Lpips | None":
    """The loss that a config names: "none", "lpips-squeeze", "lpips-alex" or "lpips-vgg". InputError as `Lpips`."""
    return None if name == "none" else Lpips(name.removeprefix("lpips-"), backbone_path)


class Lpips(torch.nn.Module):
    """LPIPS of picture batches. Frozen, always in eval mode, differentiable in both arguments.

    network: "squeeze", "alex" or "vgg". backbone_path: .safetensors with the keys of torchvision's
    `squeezenet1_1().features`, `alexnet().features` or `vgg16().features` ("0.weight", "3.squeeze.weight"...).
    Raises InputError, naming the option `perceptual_backbone`, for a file that is missing or of another kind.
    The global random state of torch is left as it was.
    """

    def __init__(self, network: str, backbone_path: str | Path) -> None:
        super().__init__()
        import lpips  # wanted only where this loss or figure is

        source = _SOURCES[network]
        wanted = f"{source} features trained on ImageNet (.safetensors with torchvision's {source}().features keys)"
        tensors = _read_backbone(backbone_path, wanted)
        # The package builds a random backbone first, which would move the global random state of a seeded run.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's deprecation of an argument the package passes
            self.metric = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        _load_backbone(self.metric.net, tensors, backbone_path, wanted)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Lpips":
        """Stays in eval mode: its dropout would make the loss noisy and the figure random."""
        return super().train(False)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distances of two (B, 3, H, W) RGB batches in [-1, 1]: (B,), 0 for equal pictures. Sides of 32 px or more."""
        return self.metric(a, b).flatten()  # (B,)


class LpipsSqueeze(Lpips):
    """LPIPS-squeeze, the LPIPS that the evaluation reports."""

    def __init__(self, backbone_path: str | Path) -> None:
        super().__init__("squeeze", backbone_path)


def _read_backbone(path: str | Path, wanted: str) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise InputError(f"perceptual_backbone: no file at {path}, expected {wanted}; set it to that file's path, "
                         "docs/training/start.md says where to get it")  # fmt: skip
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"perceptual_backbone: {path} cannot be read ({error}), expected {wanted}; set it to that file's path"
        ) from None


def _load_backbone(net: torch.nn.Module, tensors: dict[str, torch.Tensor], path: str | Path, wanted: str) -> None:
    """Fill the package's slices; `slice3.6.expand1x1.weight` there is `6.expand1x1.weight` in torchvision's names."""
    own = net.state_dict()
    source = {name: name.split(".", 1)[1] for name in own}
    wrong = [name for name in own if source[name] not in tensors or tensors[source[name]].shape != own[name].shape]
    if wrong or len(tensors) != len(own):
        raise InputError(
            f"perceptual_backbone: {path} has {len(tensors)} tensors and lacks {len(wrong)} of the {len(own)} wanted, "
            f"expected {wanted}; set it to that file's path"
        )
    net.load_state_dict({name: tensors[source[name]] for name in own})
