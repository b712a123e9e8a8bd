"""The model in teasr_core/assets restores photographs it was not trained on: those in scikit-image's wheel."""

import math

import numpy as np
import pytest
import torch

from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import load_restorer
from teasr_core.sampling.schedule import manual_plan
from teasr_core.weight_files.base_file import ASSETS
from training.degradation.degrade import LIGHT, degrade

SIDE = 256
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def centre_crop(photo: np.ndarray) -> np.ndarray:
    y, x = (photo.shape[0] - SIDE) // 2, (photo.shape[1] - SIDE) // 2
    return photo[y : y + SIDE, x : x + SIDE, :3].astype(np.float32) / 255


def as_image(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def edge_strength(image: torch.Tensor, original: torch.Tensor) -> float:
    """Mean difference of neighbours where the original's is in its strongest tenth: noise in flat parts is no edge."""
    strength, wanted = (x.diff(dim=3).abs().mean(dim=1) for x in (image, original))  # (1, H, W - 1)
    return float(strength[wanted >= wanted.flatten().quantile(0.9)].mean())


def test_the_files_keep_to_the_budget_of_the_repository():
    size = sum(path.stat().st_size for path in ASSETS.glob("*.safetensors"))
    assert 0 < size <= 48e6  # docs/decisions.md#built-in-files


def test_shipped_quality():
    """One step's edges are far sharper than Lanczos's, at no price in fidelity on average.

    Measured: edges 1.8 to 4.2 times as strong, 0.02 dB nearer to the original; -1.3 to 1.8 dB picture by picture.
    """
    data = pytest.importorskip("skimage.data")
    restorer = load_restorer("fp32")
    size = TargetSize(SIDE, SIDE)
    gains = []
    for name in PHOTOGRAPHS:
        hq = centre_crop(getattr(data, name)())
        for seed in (0, 1):
            lq = as_image(degrade(hq, LIGHT, 4, np.random.default_rng([seed, 0])))
            lanczos, original = resize(lq, size), as_image(hq)
            restored = restorer.restore(lq, RestoreRequest(RestoreOptions(size), manual_plan(1))).image
            gains.append(10 * math.log10((lanczos - original).square().mean() / (restored - original).square().mean()))
            sharper = edge_strength(restored, original) / edge_strength(lanczos, original)
            assert sharper > 1.5, f"{name} was blurred: its edges are {sharper:.2f} times as strong"
    assert np.mean(gains) > -0.3, f"gains over Lanczos in dB: {np.round(gains, 2)}"
