"""A drawn region: exact outside, soft inside, thin parts included, at any resolution of the mask."""

import pytest
import torch

from teasr_core.errors import InputError
from teasr_core.image.region import REACH_PX, SOFT_PX, Region, blend, decode_in_box, make_region
from teasr_core.image.target_size import TargetSize

PICTURE, RESULT = TargetSize(40, 30), TargetSize(160, 120)


def drawn(rows, columns, height=30, width=40, value=1.0):
    mask = torch.zeros(1, 1, height, width)
    mask[..., slice(*rows), slice(*columns)] = value
    return mask


def brute_depth(inside):
    """City-block distance to the nearest pixel outside, pixel by pixel."""
    out = (~inside).nonzero()
    found = torch.zeros(inside.shape)
    for y, x in inside.nonzero():
        found[y, x] = (out - torch.stack([y, x])).abs().sum(dim=1).min()
    return found


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_outside_the_mask_the_weight_is_0_and_deep_inside_it_is_1(factor):
    """A mask of the picture's size, of the result's, or of one between them draws the same region."""
    mask = drawn((4, 24), (8, 36)).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    weight = make_region(mask, PICTURE, RESULT).weight
    inside = torch.zeros(120, 160, dtype=torch.bool)
    inside[16:96, 32:144] = True
    assert weight.shape == (1, 1, 120, 160)
    assert not weight[0, 0][~inside].any()
    assert bool((weight[0, 0][inside] > 0).all())
    soft = SOFT_PX + 4  # a pixel of the picture is four of the result
    deep = weight[0, 0, 16 + soft : 96 - soft, 32 + soft : 144 - soft]
    assert torch.allclose(deep, torch.ones_like(deep))
    row = weight[0, 0, 56, 32:88]  # across the left edge
    assert bool((row.diff() >= -1e-6).all())
    assert float(row.diff().max()) < 2.5 / SOFT_PX
    assert float(row[0]) < 2 / SOFT_PX


def test_the_ramp_follows_the_city_block_depth():
    generator = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 30, 40, generator=generator), 9, 1, 4) > 0.5
    size = TargetSize(40, 30)
    weight = make_region(blobs.float(), size, size).weight[0, 0]
    depth = brute_depth(blobs[0, 0])
    # No part is as thick as twice the soft edge here, so that each ramp ends at half of the depth nearby.
    deepest = torch.nn.functional.max_pool2d(depth[None, None], 65, 1, 32)[0, 0]
    assert torch.allclose(weight, ((depth - 0.5) / (deepest / 2).clamp(0.5, SOFT_PX)).clamp(0, 1), atol=1e-5)
    assert bool(weight.any())


@pytest.mark.parametrize("thickness", [1, 2, 3, 8, 40])
def test_a_thin_line_is_restored_in_full(thickness):
    size = TargetSize(100, 100)
    weight = make_region(drawn((20, 20 + thickness), (0, 100), 100, 100), size, size).weight[0, 0]
    assert float(weight[20 : 20 + thickness].max()) == 1
    assert not weight[:20].any() and not weight[20 + thickness :].any()


def test_the_border_of_the_picture_is_no_edge():
    weight = make_region(drawn((0, 30), (0, 20)), PICTURE, RESULT).weight[0, 0]
    assert torch.allclose(weight[:, :48], torch.ones(120, 48))
    assert not weight[:, 80:].any()


def test_a_mask_of_one_value_suits_every_picture():
    ones, zeros = (make_region(torch.full((1, 1, 64, 64), value), PICTURE, RESULT) for value in (1.0, 0.0))
    assert bool((ones.weight == 1).all())
    assert ones.weight.shape == (1, 1, 120, 160)
    assert zeros.is_empty and not ones.is_empty


def test_a_soft_mask_stays_soft_and_the_noise_of_a_jpeg_is_outside():
    size = TargetSize(100, 100)
    weight = make_region(drawn((10, 90), (10, 90), 100, 100, value=0.6), size, size).weight[0, 0]
    assert float(weight.max()) == pytest.approx(0.6)
    noisy = drawn((10, 90), (10, 90), 100, 100) + 0.03 * torch.rand(1, 1, 100, 100)
    assert not make_region(noisy.clamp(max=1), size, size).weight[0, 0, :10].any()


@pytest.mark.parametrize("target", [TargetSize(160, 120), TargetSize(90, 200), TargetSize(20, 15), TargetSize(40, 30)])
def test_outside_stays_0_for_every_size(target):
    """Enlarged, stretched, made smaller, unchanged: judged at the centre of each pixel of the result."""
    mask = drawn((7, 21), (9, 30))
    weight = make_region(mask, PICTURE, target).weight[0, 0]
    y = ((torch.arange(target.height) + 0.5) * 30 / target.height).long()
    x = ((torch.arange(target.width) + 0.5) * 40 / target.width).long()
    inside = mask[0, 0][y][:, x] > 0
    assert not weight[~inside].any()
    assert float(weight.max()) == pytest.approx(1.0)


def test_a_mask_much_finer_than_the_result_is_that_of_twice_its_size():
    picture = TargetSize(48, 40)
    fine, coarse = torch.zeros(1, 1, 4000, 4800), torch.zeros(1, 1, 80, 96)
    fine[..., 1000:3000, 1200:4800], coarse[..., 20:60, 24:96] = 1, 1
    assert torch.equal(make_region(fine, picture, picture).weight, make_region(coarse, picture, picture).weight)


@pytest.mark.parametrize(("height", "width"), [(30, 30), (40, 30), (64, 64), (300, 100)])
def test_a_mask_of_another_picture_is_refused(height, width):
    with pytest.raises(InputError, match=rf"the region is {width} x {height} pixels, the picture 40 x 30"):
        make_region(drawn((0, 5), (0, 5), height, width), PICTURE, RESULT)


def test_the_result_s_aspect_ratio_is_as_good_as_the_picture_s():
    stretched = TargetSize(90, 200)
    for height, width in ((30, 40), (200, 90), (60, 80), (100, 45)):
        assert not make_region(drawn((0, 9), (0, 9), height, width), PICTURE, stretched).is_empty


def test_latent_pixels_under_the_region_are_wanted_and_padding_is_not():
    weight = torch.zeros(1, 1, 30, 41)
    weight[..., 7, 12] = 0.1
    weight[..., 29, 40] = 1
    found = Region(weight).in_latent(8, 12, 4).nonzero().tolist()
    assert found == [[1, 3], [7, 10]]


def test_the_box_holds_the_region_and_what_the_colour_fix_reads():
    weight = torch.zeros(1, 1, 200, 300)
    weight[..., 100:110, 20:30] = 1
    assert Region(weight).box() == (slice(100 - REACH_PX, 110 + REACH_PX), slice(0, 30 + REACH_PX))
    assert Region(torch.zeros(1, 1, 200, 300)).box() == (slice(0, 0), slice(0, 0))


def test_blend_changes_nothing_outside_and_gives_all_inside():
    weight = torch.zeros(1, 1, 90, 110)
    weight[..., 50:60, 40:50] = 1
    weight[..., 60, 40:50] = 0.5
    resized, restored = torch.rand(1, 3, 90, 110), torch.rand(1, 3, 90, 110)
    region = Region(weight)
    before = resized.clone()
    out = blend(resized, restored[(..., *region.box())], region)
    inside = weight.expand_as(out) > 0
    assert torch.equal(resized, before)
    assert torch.equal(out[~inside], resized[~inside])
    assert torch.equal(out[..., 50:60, 40:50], restored[..., 50:60, 40:50])
    assert torch.allclose(out[..., 60, 40:50], (resized + restored)[..., 60, 40:50] / 2)


@pytest.mark.parametrize("place", [(0, 0), (101, 120), (199, 239), (90, 0)])
def test_only_the_box_is_decoded_and_it_lies_where_it_belongs(place):
    weight = torch.zeros(1, 1, 200, 240)
    weight[..., place[0], place[1]] = 1
    region = Region(weight)
    latent = torch.rand(1, 3, 1, 52, 64)  # padded
    seen = []

    def decode(part):
        seen.append(part.shape[-2:].numel())
        return part[:, :, 0].repeat_interleave(4, 2).repeat_interleave(4, 3)

    image = decode_in_box(decode, latent, region, 4)
    whole = decode(latent)
    box = (..., *region.box())
    assert image.shape == whole.shape
    assert torch.equal(image[box], whole[box])
    assert seen[0] < seen[1]
