"""What is one flat colour stays it, to the bit; detail and what is near it is not touched; strips are not seen."""

import pytest
import torch

from teasr_core.image import flat_areas
from teasr_core.image.color_fix import fix_color
from teasr_core.image.flat_areas import REACH_PX, SOFT_PX, keep_flat_
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import load_restorer
from teasr_core.sampling.schedule import manual_plan


def restored_of(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def kept(image, reference):
    result = image.clone()
    keep_flat_(result, reference)
    return result


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 3), (17, 16), (40, 23), (64, 100)])
def test_a_flat_reference_is_the_result_at_any_size(size):
    reference = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1).expand(3, *size)
    assert torch.equal(kept(restored_of(*size), reference), reference)


def test_a_photograph_is_not_touched():
    image = restored_of(64, 80)
    assert torch.equal(kept(image, restored_of(64, 80, seed=1)), image)


def test_one_8_bit_step_however_far_enlarged_is_not_flat():
    ramp = torch.linspace(0.5, 0.5 + 1 / 255, 4 * 16).expand(3, 64, 64)
    image = restored_of(64, 64)
    assert torch.equal(kept(image, ramp), image)


def test_the_line_between_flat_and_detail_is_soft():
    """Left half flat, right half noise: detail keeps REACH - SOFT pixels around it, then the flat colour fades in."""
    reference = torch.full((3, 70, 200), 0.25)
    reference[..., 100:] = restored_of(70, 100, seed=2)
    image = torch.ones(3, 70, 200)
    share = (1 - kept(image, reference)) / (1 - 0.25)  # of the reference, where it is flat
    row = share[0, 35, :100]
    near = 100 - (REACH_PX - SOFT_PX)
    assert (share[..., near:100] == 0).all()
    assert torch.equal(row, row.sort(descending=True).values)
    assert float(row[near - 3]) < 0.3 and float(row[: near - 2 * SOFT_PX - 2].min()) > 1 - 1e-6
    assert torch.equal(kept(image, reference)[..., 100:], image[..., 100:])


@pytest.mark.parametrize("strip_px", [1, 70 * 250])
def test_strips_are_not_seen(monkeypatch, strip_px):
    reference = restored_of(430, 70, seed=3)
    reference[:, 60:320, 10:60] = 0.5
    image = restored_of(430, 70)
    whole = kept(image, reference)
    monkeypatch.setattr(flat_areas, "_STRIP_PX", strip_px)
    assert torch.equal(kept(image, reference), whole)
    assert not torch.equal(whole, image)


@pytest.mark.parametrize("method", ["wavelet", "adain", "lab"])
def test_every_colour_fix_keeps_what_is_flat_and_off_does_not(method):
    reference = torch.full((2, 3, 40, 40), 0.5)
    reference[1] = restored_of(40, 40, seed=4)
    image = torch.stack([restored_of(40, 40), restored_of(40, 40, seed=5)])
    found = fix_color(image, reference, method)
    assert torch.equal(found[0], reference[0])
    assert not torch.equal(found[1], reference[1])
    assert torch.equal(fix_color(image, reference, "off"), image)
    half = fix_color(image, reference, method, 0.5)
    assert torch.allclose(half[0], (image[0] + reference[0]) / 2, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_flat_picture_through_the_shipped_model(steps):
    """The model alone leaves specks of 3 to 29 levels on these; the limit is 2."""
    restorer = load_restorer("fp32")
    request = RestoreRequest(RestoreOptions(TargetSize(96, 80)), manual_plan(steps))
    for colour in ((0, 0, 255), (20, 120, 40), (128, 128, 128)):
        flat = torch.tensor(colour).view(1, 3, 1, 1) / 255
        found = restorer.restore(flat.expand(1, 3, 40, 48), request).image
        assert float((found - flat).abs().max()) <= 2 / 255
