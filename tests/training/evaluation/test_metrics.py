"""The metrics against closed forms, a second implementation, and the order they must put known faults in."""

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from teasr_core.errors import InputError
from teasr_core.image.luma import psnr_y, to_full_y, to_studio_y
from training.evaluation.metrics.niqe import fit_aggd, mscn, niqe, niqe_features
from training.evaluation.metrics.pictures import flat_gradient, gmsd, gradient_map, mean_gradient, ssim_y

REPOSITORY = Path(__file__).resolve().parents[3]


def shared_file(name):
    """A file of the shared data folder, or skip."""
    folder = Path(os.environ.get("TEASR_SHARED", REPOSITORY.parent / "shared"))
    found = [path for path in (folder / "data" / name, folder / name) if path.is_file()]
    if not found:
        pytest.skip(f"{name} is not in {folder} (set TEASR_SHARED to the folder of the shared data)")
    return found[0]


def textured(height, width, seed=0):
    """(H, W, 3) uint8: coloured noise with structure at several sizes."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), sigma) for sigma in (1, 3, 9)]
    picture = sum(layer / layer.std() for layer in layers)
    return np.clip(128 + 25 * picture, 0, 255).astype(np.uint8)


def noisy(picture, sigma, seed=1):
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def blurred(picture, sigma):
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def test_luma_ends_and_types():
    ends = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    assert np.allclose(to_studio_y(ends), [[16, 235, 16 + 65.481]])
    assert np.allclose(to_full_y(ends), [[0, 255, 0.298936 * 255]])
    assert np.allclose(to_studio_y(ends), to_studio_y(ends.astype(np.float32) / 255), atol=1e-4)
    with pytest.raises(InputError, match="int64"):
        to_studio_y(ends.astype(np.int64))
    with pytest.raises(InputError, match=r"\(1, 3\)"):
        to_studio_y(ends[..., 0])


def test_psnr_has_its_closed_form():
    a = np.full((9, 14, 3), 100, np.uint8)
    error = 10 * 219 / 255  # ten 8-bit levels of grey in studio range
    assert psnr_y(a, a + np.uint8(10)) == pytest.approx(20 * math.log10(255 / error))
    assert psnr_y(a, a) == math.inf
    with pytest.raises(InputError, match="equal sizes"):
        psnr_y(a, a[:-1])


def test_ssim_agrees_with_scikit_image():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    a = textured(61, 84)
    for b in (noisy(a, 12), blurred(a, 1.5), 255 - a):
        wanted = structural_similarity(
            to_studio_y(a),
            to_studio_y(b),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        assert ssim_y(a, b) == pytest.approx(wanted, abs=1e-10)
    assert ssim_y(a, a) == pytest.approx(1)
    with pytest.raises(InputError, match="11x11"):
        ssim_y(a[:10], a[:10])


def test_gmsd_is_zero_for_equal_pictures_and_grows_with_blur():
    a = textured(63, 80)
    values = [gmsd(a, a)] + [gmsd(a, blurred(a, sigma)) for sigma in (0.7, 1.2, 2.0)]
    assert values[0] == 0 and values == sorted(values) and values[1] > 0.001
    assert gmsd(a, blurred(a, 1.2)) == pytest.approx(gmsd(blurred(a, 1.2), a))


def test_gmsd_of_a_step_follows_its_definition():
    step = np.zeros((24, 24, 3), np.uint8)
    step[:, 12:] = 255
    black = np.zeros_like(step)
    # Halved, the step lies between columns 5 and 6 of 12. Its Prewitt gradient is 255 on both; beside the zeros that
    # are outside, the last column has 255 too, the corners and the first and last rows what their taps leave.
    half = np.zeros((14, 14))
    half[1:13, 7:13] = 255.0
    along = sum(half[1 + i : 13 + i, 0:12] - half[1 + i : 13 + i, 2:14] for i in (-1, 0, 1)) / 3
    across = sum(half[0:12, 1 + i : 13 + i] - half[2:14, 1 + i : 13 + i] for i in (-1, 0, 1)) / 3
    similarity = 170 / (along**2 + across**2 + 170)
    assert gmsd(step, black) == pytest.approx(similarity.std(ddof=1), rel=1e-6)


def test_gradients_of_a_ramp():
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (40, 1, 3))
    assert gradient_map(ramp).shape == (39, 99)
    assert mean_gradient(ramp) == pytest.approx(2 * 219 / 255)
    assert mean_gradient(ramp.transpose(1, 0, 2)) == pytest.approx(2 * 219 / 255)


def test_flat_gradient_looks_only_where_the_original_is_flat():
    hq = textured(161, 161)
    hq[:32, :] = 90  # two rows of blocks of ten: 20 % of the picture is flat
    assert flat_gradient(hq, hq) == pytest.approx(0, abs=1e-12)
    noise_in_texture, noise_in_flat = hq.copy(), hq.copy()
    noise_in_texture[40:] = noisy(hq[40:], 20)
    noise_in_flat[:32] = noisy(hq[:32], 20)
    assert flat_gradient(noise_in_texture, hq) == pytest.approx(0, abs=1e-12)
    assert flat_gradient(noise_in_flat, hq) > 10
    with pytest.raises(InputError, match="block"):
        flat_gradient(hq[:16], hq[:16])


def test_the_aggd_fit_finds_known_distributions():
    rng = np.random.default_rng(0)
    normal = rng.normal(0, 0.7, 200_000)
    assert fit_aggd(normal) == pytest.approx((2, 0.7 * math.sqrt(2), 0.7 * math.sqrt(2)), rel=0.03)
    assert fit_aggd(rng.laplace(0, 0.5, 200_000)) == pytest.approx((1, 0.5, 0.5), rel=0.03)
    # Two half normals, weighted so that the density is continuous at zero.
    is_left = rng.random(200_000) < 1 / 3
    skewed = np.abs(normal / 0.7) * np.where(is_left, -0.5, 1.0)
    assert fit_aggd(skewed) == pytest.approx((2, 0.5 * math.sqrt(2), math.sqrt(2)), rel=0.03)
    assert np.isnan(fit_aggd(np.zeros(9))).all()


def test_mscn_removes_gain_and_offset():
    window = cv2.getGaussianKernel(7, 7 / 6) @ cv2.getGaussianKernel(7, 7 / 6).T
    noise = np.random.default_rng(0).normal(0, 400, (64, 80))  # far above the 1 of the denominator
    assert np.allclose(mscn(noise, window), mscn(2 * noise + 300, window), atol=0.01)


@pytest.fixture(scope="module")
def niqe_model(tmp_path_factory):
    """A pristine model of the test's own textures, in the published file's layout."""
    window = cv2.getGaussianKernel(7, 7 / 6) @ cv2.getGaussianKernel(7, 7 / 6).T
    features = np.concatenate([niqe_features(textured(288, 288, seed), window) for seed in range(10, 16)])
    path = tmp_path_factory.mktemp("niqe") / "pristine.npz"
    mean = features.mean(axis=0, keepdims=True)
    np.savez(path, mu_pris_param=mean, cov_pris_param=np.cov(features, rowvar=False), gaussian_window=window)
    return path


def test_niqe_rises_with_noise_and_with_blur(niqe_model):
    clean = textured(200, 300)  # also cuts what is beyond the last whole block
    values = [niqe(noisy(clean, sigma), niqe_model) for sigma in (0, 5, 15)]
    assert all(math.isfinite(value) for value in values) and values == sorted(values)
    assert niqe(blurred(clean, 1.5), niqe_model) > 1.5 * values[0]


def test_niqe_leaves_out_constant_blocks_and_needs_two(niqe_model):
    picture = textured(192, 288)
    picture[:96, :96] = 40
    assert math.isfinite(niqe(picture, niqe_model))
    for small in (picture[:96, :191], picture[:90], np.full((200, 200, 3), 9, np.uint8)):
        with pytest.raises(InputError, match="NIQE"):
            niqe(small, niqe_model)


def test_niqe_refuses_another_file(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "keys.npz", a=np.zeros(3))
    np.savez(tmp_path / "shape.npz", mu_pris_param=np.zeros(9), cov_pris_param=np.eye(9), gaussian_window=np.eye(7))
    for name in ("none.npz", "text.npz", "keys.npz", "shape.npz"):
        with pytest.raises(InputError, match="mu_pris_param"):
            niqe(textured(200, 200), tmp_path / name)


def test_niqe_with_the_published_model():
    model = shared_file("niqe_pris_params.npz")
    clean = textured(200, 300)
    assert 1 < niqe(clean, model) < 40
    assert niqe(noisy(clean, 40), model) > niqe(noisy(clean, 15), model)


def to_batch(*pictures):
    return torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def random_backbone(tmp_path_factory):
    pytest.importorskip("lpips", reason="LPIPS needs the package lpips")
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    path = tmp_path_factory.mktemp("lpips") / "features.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(squeezenet1_1(weights=None).features.state_dict(), path)
    return path


def test_lpips_takes_its_weights_from_the_file_and_stays_frozen(random_backbone):
    from safetensors.torch import load_file

    from training.objective.lpips import LpipsSqueeze

    state = torch.get_rng_state()
    metric = LpipsSqueeze(random_backbone)
    assert torch.equal(state, torch.get_rng_state())
    held = {name.split(".", 1)[1]: tensor for name, tensor in metric.metric.net.state_dict().items()}
    assert all(torch.equal(held[name], tensor) for name, tensor in load_file(random_backbone).items())
    assert not any(parameter.requires_grad for parameter in metric.parameters())
    metric.train()
    assert not any(module.training for module in metric.modules())


def test_lpips_is_differentiable_on_odd_sizes(random_backbone):
    from training.objective.lpips import LpipsSqueeze

    metric = LpipsSqueeze(random_backbone)
    hq = to_batch(textured(65, 97, 0), textured(65, 97, 1))
    lq = to_batch(textured(65, 97, 2), textured(65, 97, 1)).requires_grad_()
    distance = metric(lq, hq)
    assert distance.shape == (2,) and distance[0] > 0 and distance[1] == 0
    distance.sum().backward()
    assert torch.isfinite(lq.grad).all() and lq.grad[0].abs().max() > 0


def test_lpips_names_the_option_when_the_file_is_missing_or_another(tmp_path, random_backbone):
    from safetensors.torch import load_file, save_file

    from training.objective.lpips import LpipsSqueeze

    (tmp_path / "text.safetensors").write_text("no tensors")
    fewer = load_file(random_backbone)
    fewer.pop("0.bias")
    save_file(fewer, tmp_path / "fewer.safetensors")
    for name in ("none.safetensors", "text.safetensors", "fewer.safetensors"):
        with pytest.raises(InputError, match=r"perceptual_backbone.*squeezenet"):
            LpipsSqueeze(tmp_path / name)


def test_lpips_with_the_trained_backbone_orders_faults():
    backbone = shared_file("squeezenet1_1_features.safetensors")
    pytest.importorskip("lpips", reason="LPIPS needs the package lpips")
    from training.objective.lpips import LpipsSqueeze

    metric, clean = LpipsSqueeze(backbone), textured(96, 80)
    faults = [clean, noisy(clean, 4), noisy(clean, 12), noisy(clean, 40)]
    distances = [float(metric(to_batch(fault), to_batch(clean))) for fault in faults]
    assert distances[0] == 0 and distances == sorted(distances) and distances[-1] > 0.1
