"""Every block format of GGUF gives the numbers of the package `gguf`, bit for bit."""

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")

from helpers import gguf_files  # noqa: E402
from teasr_core.weight_files import packed  # noqa: E402
from teasr_core.weight_files.gguf_blocks import BLOCK_FORMATS, GgufPacking  # noqa: E402


def unpacked(data: np.ndarray, form: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return GgufPacking(form, shape, data.nbytes).unpack((torch.from_numpy(data),), dtype)


@pytest.mark.parametrize("form", BLOCK_FORMATS)
def test_sizes_are_the_packages(form):
    found = BLOCK_FORMATS[form]
    assert (found.weights, found.num_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]]


@pytest.mark.parametrize("form", BLOCK_FORMATS)
def test_any_bytes_mean_the_same(form):
    """Random bytes: every code, every small scale, and scales that are infinite or no number."""
    weights, size = BLOCK_FORMATS[form].weights, BLOCK_FORMATS[form].num_bytes
    data = np.random.default_rng(1).integers(0, 256, (301, 3 * size), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        wanted = gguf_files.unpack(data, form)
    found = unpacked(data, form, (301, 3 * weights))
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert bool(torch.isfinite(wanted).float().mean() > 0.8)
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num()) and torch.equal(found.isnan(), wanted.isnan())


@pytest.mark.parametrize("form", gguf_files.WRITABLE)
def test_what_the_package_rounded_is_the_weight(form):
    weight = torch.randn(33, 96, generator=torch.Generator().manual_seed(0))
    found = unpacked(gguf_files.pack(weight, form), form, (33, 96))
    assert 1e-3 < float((found - weight).abs().max()) < (0.03 if form == "Q8_0" else 0.6)


@pytest.mark.parametrize("form", ["Q8_0", "Q6_K"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_the_rounded_float32(form, dtype):
    data = gguf_files.pack(torch.randn(7, 512, generator=torch.Generator().manual_seed(0)), form)
    assert torch.equal(unpacked(data, form, (7, 512), dtype), unpacked(data, form, (7, 512)).to(dtype))


@pytest.mark.parametrize("form", ["Q5_1", "Q4_K"])
def test_pieces_do_not_show(monkeypatch, form):
    """Of a weight that is unpacked in many pieces, the last one shorter."""
    data = gguf_files.pack(torch.randn(13, 768, generator=torch.Generator().manual_seed(0)), form)
    whole = unpacked(data, form, (13, 768))
    monkeypatch.setattr(packed, "CPU_CHUNK", 1024)
    assert torch.equal(unpacked(data, form, (13, 768)), whole)
