"""The DCT codec: exact, orthonormal, DC first, and squared errors that are pixel errors."""

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.codec.block_dct import DCT_CHANNELS, coefficients_to_image, dct_matrix, image_to_coefficients
from teasr_core.codec.dct import DctCodec

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def image(batch=2, height=20, width=28, dtype=torch.float32):
    return torch.rand(batch, 3, height, width, generator=tiny.generator(0), dtype=dtype)


def plain_codec() -> DctCodec:
    return DctCodec([0.0] * DCT_CHANNELS, [1.0] * DCT_CHANNELS)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_round_trips(dtype):
    pixels = image(dtype=dtype)
    coefficients = image_to_coefficients(pixels)
    assert coefficients.shape == (2, 48, 5, 7)
    assert coefficients.dtype == dtype
    assert float((coefficients_to_image(coefficients) - pixels).abs().max()) <= TOLERANCE[dtype]
    codec = tiny.codec()
    assert float((codec.decode(codec.encode(pixels)) - pixels).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("side", [1, 2])
def test_a_smaller_image_is_the_mean_of_its_pixels(side):
    pixels = image(dtype=torch.float64)
    small = coefficients_to_image(image_to_coefficients(pixels), side)
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(pixels, 4 // side), rtol=0, atol=1e-12)


def test_the_matrix_is_orthonormal_dct_ii():
    matrix = dct_matrix()
    assert float((matrix @ matrix.T - torch.eye(4).double()).abs().max()) <= 1e-15
    scipy_fft = pytest.importorskip("scipy.fft")
    signal = torch.rand(4, dtype=torch.float64)
    wanted = torch.from_numpy(scipy_fft.dct(signal.numpy(), type=2, norm="ortho"))
    assert torch.allclose(matrix @ signal, wanted, rtol=0, atol=1e-14)


def test_channels_are_colour_then_row_then_column_frequency():
    scipy_fft = pytest.importorskip("scipy.fft")
    pixels = image(dtype=torch.float64)
    coefficients = image_to_coefficients(pixels)
    block = 2 * pixels[1, 2, 8:12, 16:20].numpy() - 1
    wanted = torch.from_numpy(scipy_fft.dctn(block, norm="ortho")).flatten()
    assert torch.allclose(coefficients[1, 32:48, 2, 4], wanted, rtol=0, atol=1e-13)


def test_energy_is_kept():
    pixels = image(dtype=torch.float64)
    energy = (2 * pixels - 1).square().sum()
    assert float(image_to_coefficients(pixels).square().sum()) == pytest.approx(float(energy), rel=1e-13)


def test_dc_is_four_times_the_mean_and_a_flat_block_has_nothing_else():
    pixels = image(dtype=torch.float64)
    coefficients = image_to_coefficients(pixels).reshape(2, 3, 16, 5, 7)
    means = (2 * pixels - 1).reshape(2, 3, 5, 4, 7, 4).mean(dim=(3, 5))
    assert torch.allclose(coefficients[:, :, 0], 4 * means, rtol=0, atol=1e-13)
    flat = image_to_coefficients(torch.full((1, 3, 8, 8), 0.3, dtype=torch.float64)).reshape(3, 16, 4)
    assert float(flat[:, 1:].abs().max()) <= 1e-15


def test_a_latent_is_the_normalised_coefficients():
    codec, pixels = tiny.codec(), image()
    coefficients = image_to_coefficients(pixels)
    latent = codec.encode(pixels)
    assert torch.allclose(latent * codec.std + codec.mean, coefficients, rtol=0, atol=1e-6)
    assert torch.allclose(codec.decode(latent), coefficients_to_image(coefficients), rtol=0, atol=1e-6)
    assert torch.equal(plain_codec().encode(pixels), coefficients)


def test_shapes_and_dtypes_follow_the_input():
    codec = tiny.codec()
    assert codec.encode(image(2, 12, 40)).shape == (2, codec.channels, 3, 10)
    assert codec.decode(torch.zeros(2, 48, 3, 10)).shape == (2, 3, 12, 40)
    assert codec.downscale == 4
    assert codec.encode(image(dtype=torch.float64)).dtype == torch.float64


def test_pixel_weights_make_latent_errors_pixel_errors():
    """mean(weight * latent error**2) = constant * mean(pixel error**2), whatever the error."""
    codec = tiny.codec()
    a, b = image(dtype=torch.float64), torch.rand(2, 3, 20, 28, dtype=torch.float64, generator=tiny.generator(1))
    weight = codec.pixel_weights.double()
    assert weight.shape == (1, 48, 1, 1)
    assert float(weight.mean()) == pytest.approx(1, rel=1e-6)
    latent_error = (weight * (codec.encode(a) - codec.encode(b)) ** 2).mean()
    pixel_error = ((2 * a - 1) - (2 * b - 1)).square().mean()
    constant = 1 / (codec.std.double() ** 2).mean()
    assert float(latent_error) == pytest.approx(float(constant * pixel_error), rel=1e-6)  # std is float32
    unweighted = (codec.encode(a) - codec.encode(b)).square().mean()  # bite: without the weights it is not so
    assert abs(float(unweighted / (constant * pixel_error)) - 1) > 0.1


def test_statistics_of_another_length_are_our_own_bug():
    with pytest.raises(AssertionError):
        DctCodec([0.0] * 47, [1.0] * 47)
