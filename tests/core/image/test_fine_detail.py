import math

import pytest
import torch

from teasr_core.image.fine_detail import fine_detail
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize


def natural(side: int) -> torch.Tensor:
    """A picture whose gradient is as strong at all frequencies: noise of power 1 / frequency^2, in [0.1, 0.9]."""
    noise = torch.randn(side, side, generator=torch.Generator().manual_seed(1))
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    amplitude = 1 / torch.hypot(rows, columns).clamp(min=1 / side)
    grey = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(side, side))
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    return (0.1 + 0.8 * grey).expand(1, 3, side, side).contiguous()


def enlarged(picture: torch.Tensor, factor: float, resample: str = "lanczos") -> torch.Tensor:
    sides = (round(side * factor) for side in reversed(picture.shape[2:]))
    return resize(picture, TargetSize(*sides), resample)


@pytest.mark.parametrize("resample", ["lanczos", "bicubic"])
def test_what_was_enlarged_has_less(resample):
    picture = natural(256)
    found = [fine_detail(enlarged(picture, factor, resample)) for factor in (1, 2, 3, 4, 8)]
    assert 0.3 < found[0] < 3 and found[1] > 0.25
    assert found[1] > found[2] > 0.02 > found[3] > found[4]


def test_a_sine_wave_counts_by_its_frequency():
    """Fine at 0.4 of the highest frequency, coarse at 0.1; beyond half of the highest it counts as neither."""
    x = torch.arange(256.0)

    def wave(share: float) -> torch.Tensor:
        return (0.5 + 0.2 * torch.sin(math.pi * share * x)).expand(1, 3, 256, 256)

    fine, coarse = fine_detail(wave(0.4) / 2 + wave(0.1) / 2), fine_detail(wave(0.1))
    assert fine == pytest.approx((0.4 / 0.1) ** 2 * 6 / 4, rel=0.05)  # means over six and four frequencies
    assert coarse < 1e-3
    assert fine_detail(wave(0.8) / 2 + wave(0.1) / 2) < 1e-3
    assert fine_detail((wave(0.4) / 2 + wave(0.1) / 2).transpose(2, 3)) == pytest.approx(fine)


def test_rounding_to_8_bits_is_not_detail():
    """A dim, soft picture that comes from an 8-bit file."""
    soft = enlarged(natural(64), 4) * 0.1
    rounded = (soft * 255).round() / 255
    assert fine_detail(soft) < 0.02 and fine_detail(rounded) < 0.05
    assert fine_detail((soft * 30).round() / 30) > 0.05  # coarser steps are edges that can be seen


def test_flat_small_and_odd_pictures():
    assert fine_detail(torch.full((1, 3, 100, 90), 0.3)) == 0
    assert fine_detail(torch.full((1, 3, 1, 1), 0.3)) == 0
    assert fine_detail(natural(256)[:, :, :20, :33]) > 0.2
    assert fine_detail(torch.rand(2, 3, 64, 700, generator=torch.Generator().manual_seed(2))) > 1


def test_lines_of_a_large_picture_are_a_sample():
    picture = natural(2048)
    sampled, all_lines = fine_detail(picture), fine_detail(picture[:, :, :512])
    assert sampled == pytest.approx(all_lines, rel=0.25)
