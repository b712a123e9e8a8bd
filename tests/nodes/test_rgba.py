"""An IMAGE with four channels comes back with four; `mask` stays what it was."""

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt


@pytest.fixture
def rgba(photo):
    """The small photo with a hole, a soft edge and opaque elsewhere."""
    alpha = torch.ones(1, 17, 23, 1)
    alpha[:, 4:9, 4:9] = 0
    alpha[:, 9, 4:9] = 0.5
    return torch.cat([photo, alpha], dim=-1)


@pytest.mark.parametrize("inputs", [{}, {"strength": 0.0}, {"strength": 0.5, "color_fix": "lab"}])
def test_four_channels_in_four_out(upscaled, rgba, inputs):
    got = upscaled(rgba, **inputs)
    assert got.image.shape == (1, 34, 46, 4)
    assert got.mask.shape == (1, 34, 46)
    assert torch.allclose(got.image[..., 3], 1 - got.mask, atol=1e-6)
    assert got.image[0, 11:16, 11:16, 3].max() < 0.1
    assert (got.image[0, -8:, :, 3] == 1).all()


def test_the_colours_are_those_of_the_rgb_picture_with_its_mask(upscaled, rgba, executor):
    """The same picture as LoadImage gives it, colours and mask apart, has the same colours."""
    apart = executor()(upscale_prompt(source={"hole": True}.items(), mask=["in", 1]))
    whole = rgba.clone()
    whole[:, 9, 4:9, 3] = 1  # that source's hole has hard edges
    got = upscaled(whole)
    assert apart.image.shape[-1] == 3
    assert torch.equal(got.image[..., :3], apart.image)
    assert torch.equal(got.mask, apart.mask)


def test_an_opaque_fourth_channel_stays_opaque_and_changes_no_colour(upscaled, photo):
    opaque = torch.cat([photo, torch.ones(1, 17, 23, 1)], dim=-1)
    got = upscaled(opaque)
    assert (got.image[..., 3] == 1).all()
    assert not got.mask.any()
    assert torch.equal(got.image[..., :3], upscaled(photo).image)


def test_a_batch_of_four_channels_equals_each_alone(upscaled, rgba):
    batch = torch.cat([rgba, rgba.flip(2), rgba.flip(1)])
    together = upscaled(batch)
    assert together.image.shape == (3, 34, 46, 4)
    for k in range(3):
        assert torch.equal(together.image[k : k + 1], upscaled(batch[k : k + 1].clone()).image)


def test_grey_and_three_channels_stay_three(upscaled, photo):
    assert upscaled(photo).image.shape[-1] == upscaled(photo[..., :1].contiguous()).image.shape[-1] == 3


def test_the_color_fix_keeps_the_fourth_channel_of_the_picture(host, photo):
    padded = torch.rand(2, 32, 32, 4)
    out = host.run("TEASRColorFix", image=padded, reference=photo, color_fix="off")[0]
    assert torch.equal(out, padded[:, :17, :23])
    fixed = host.run("TEASRColorFix", image=padded, reference=photo)[0]
    assert torch.equal(fixed[..., 3], padded[:, :17, :23, 3])
    assert torch.equal(fixed[..., :3], host.run("TEASRColorFix", image=padded[..., :3], reference=photo)[0])


def test_compared_steps_have_four_channels_too(executor, add_node, rgba):
    """The results; the labelled sheet is a picture on white."""
    seen = []

    def keep(sheet, image):
        seen.append((sheet, image))
        return {"ui": {}}

    add_node("TestPair", (), {"sheet": ("IMAGE",), "image": ("IMAGE",)}, keep)
    add_node("TestRgba", ("IMAGE",), {}, lambda: (rgba,))
    compare = {"image": ["in", 0], "size": "factor", "size.scale": 2.0, "steps_list": "1,2"}
    executor()(
        {
            "in": {"class_type": "TestRgba", "inputs": {}},
            "up": {"class_type": "TEASRCompareSteps", "inputs": compare},
            "out": {"class_type": "TestPair", "inputs": {"sheet": ["up", 0], "image": ["up", 1]}},
        }
    )
    [(sheet, images)] = seen
    assert sheet.shape[-1] == 3
    assert images.shape == (2, 34, 46, 4)
    assert images[0, 11:16, 11:16, 3].max() < 0.1
