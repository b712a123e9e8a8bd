"""Packed forms of a frozen weight: their error, their bytes, and that unpacking means the same everywhere."""

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.errors import ModelFileError
from training.memory.quantise import nf4_levels, pack, packed_bytes, unpack

SHAPES = [(256, 128), (130, 70), (3, 5), (384, 64)]
# Dettmers et al. 2023, appendix E, to four places
PUBLISHED_NF4 = [
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
    0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
]  # fmt: skip


def weight(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=tiny.generator(seed)).to(torch.bfloat16)


def round_trip(w: torch.Tensor, precision: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return unpack(pack(w, precision), precision, (w.shape[0], w.shape[1]), dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "nf4"])
def test_shape_dtype_and_bytes(shape, precision):
    w = weight(shape)
    assert sum(tensor.numel() * tensor.element_size() for tensor in pack(w, precision)) == packed_bytes(
        shape, precision
    )
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        unpacked = round_trip(w, precision, dtype)
        assert unpacked.shape == shape and unpacked.dtype == dtype


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "nf4"])
def test_a_packed_weight_is_the_same_in_every_dtype(shape, precision):
    packed = pack(weight(shape), precision)
    low, high = (unpack(packed, precision, shape, dtype) for dtype in (torch.bfloat16, torch.float64))
    assert torch.equal(low.double(), high)


def test_bf16_keeps_the_tensor_itself():
    w = weight((8, 4))
    assert unpack(pack(w, "bf16"), "bf16", (8, 4), torch.bfloat16).data_ptr() == w.data_ptr()


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_is_within_half_a_step(shape):
    """Three bits of mantissa: a relative error of at most 1/16, or half the smallest step of the tile near zero."""
    w = weight(shape).double()
    error = (round_trip(w, "fp8") - w).abs()
    smallest = w.abs().max() / 448 * 2 * 2**-9
    assert bool((error <= torch.maximum(w.abs() / 16, smallest)).all())


def test_fp8_tiles_do_not_disturb_each_other():
    """A tile of tiny numbers beside one of huge ones: each has its own scale."""
    w = torch.cat([weight((128, 128)).double() * 1e-6, weight((128, 128), seed=1).double() * 1e6], dim=1)
    relative = (round_trip(w, "fp8") - w)[:, :128].norm() / w[:, :128].norm()
    assert float(relative) < 0.04


@pytest.mark.parametrize("largest", [448.0, 448.0 * (1 + 2**-7), 2.0**-20, 1e-30, 3e38])
def test_fp8_never_overflows(largest):
    w = torch.full((4, 4), largest, dtype=torch.float32)
    found = round_trip(w, "fp8", torch.float32)
    assert bool(torch.isfinite(found).all())
    assert float((found / w - 1).abs().max()) <= 1 / 16


@pytest.mark.parametrize("precision", ["fp8", "nf4"])
def test_zeros_stay_zeros_and_packing_again_changes_nothing(precision):
    assert not bool(round_trip(torch.zeros(70, 130), precision).any())
    once = round_trip(weight((130, 70)), precision)
    assert torch.equal(round_trip(once, precision), once)


def test_nf4_levels_are_the_published_ones():
    levels = nf4_levels()
    assert torch.allclose(levels, torch.tensor(PUBLISHED_NF4, dtype=torch.float64), atol=5e-5)
    assert levels[7] == 0 and levels[0] == -1 and levels[15] == 1


def test_nf4_takes_the_nearest_level():
    w = weight((6, 64)).double()
    largest = w.abs().amax(dim=1, keepdim=True)
    levels = nf4_levels().to(torch.bfloat16).double() * largest[:, :, None]  # (6, 1, 16)
    best = (w[:, :, None] - levels).abs().amin(dim=2)
    error = (round_trip(w, "nf4") - w).abs()
    assert bool((error <= best + 2**-8 * largest).all())  # the product is rounded to bf16


@pytest.mark.parametrize("precision", ["fp8", "nf4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_weight_is_refused(precision, bad):
    w = weight((4, 4))
    w[1, 2] = bad
    with pytest.raises(ModelFileError, match="NaN or infinity"):
        pack(w, precision)
