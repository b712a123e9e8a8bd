"""TEASRUpscale's `region`: outside it the plain resize to the bit, and no tile outside it reaches the model."""

import importlib
import json

import numpy as np
import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt

TILES = {"tile_px": 32, "overlap_px": 16}  # four tiles of 46 x 34 px


@pytest.fixture
def forwards(host, monkeypatch):
    """The shapes of the latents that the transformer was called with."""
    transformer = importlib.import_module("comfy.ldm.qwen_image.model").QwenImageTransformer2DModel
    forward, seen = transformer.forward, []

    def counted(self, x, *args, **kwargs):
        seen.append(tuple(x.shape))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(transformer, "forward", counted)
    return seen


@pytest.fixture
def run(executor):
    """run(region, **inputs): TEASRUpscale on the small photo, with a mask (H, W) of numbers as region."""
    go = executor("CLASSIC")

    def call(region=None, **inputs):
        prompt = upscale_prompt(**inputs)
        if region is not None:
            prompt["mask"] = {"class_type": "TestMask", "inputs": {"rows": json.dumps(np.asarray(region).tolist())}}
            prompt["up"]["inputs"]["region"] = ["mask", 0]
        result = go(prompt)
        call.ran, call.errors, call.results = go.ran, go.errors, go.results
        return result

    return call


@pytest.fixture(autouse=True)
def _mask_node(add_node):
    """A MASK of rows in JSON; a batch where they are nested once more."""

    def make(rows):
        mask = torch.tensor(json.loads(rows), dtype=torch.float32)
        return (mask if mask.ndim == 3 else mask[None],)

    add_node("TestMask", ("MASK",), {"rows": ("STRING", {})}, make)


def corner(height=17, width=23):
    mask = np.zeros((height, width))
    mask[: height // 3, : width // 4] = 1
    return mask


@pytest.mark.parametrize("color_fix", ["off", "wavelet", "lab"])
def test_outside_is_the_plain_resize_and_only_tiles_inside_are_computed(run, forwards, color_fix):
    options = {"steps": 2, "color_fix": color_fix, **TILES}
    resized = run(strength=0.0, color_fix=color_fix).image
    forwards.clear()
    whole = run(**options)
    assert len(forwards) == 4 * 2
    forwards.clear()
    part = run(corner(), **options)
    assert len(forwards) == 1 * 2
    assert "1 tile, 2 steps" in part.report
    assert torch.equal(part.image[:, 10:], resized[:, 10:])
    assert torch.equal(part.image[:, :, 10:], resized[:, :, 10:])
    assert not torch.equal(part.image[:, :10, :10], resized[:, :10, :10])
    assert not torch.equal(whole.image[:, 10:], resized[:, 10:])
    assert torch.equal(part.mask, whole.mask)


def test_a_region_in_every_tile_computes_all_of_them(run, forwards):
    mask = np.zeros((17, 23))
    mask[2, 2] = mask[2, 20] = mask[15, 2] = mask[15, 20] = 1
    run(mask, steps=1, **TILES)
    assert len(forwards) == 4


@pytest.mark.parametrize("step_mode", ["manual", "auto"])
def test_a_black_region_runs_no_model_and_a_white_one_changes_nothing(run, forwards, step_mode):
    inputs = {"step_mode": step_mode, **TILES}
    resized = run(strength=0.0).image
    forwards.clear()
    black = run(np.zeros((64, 64)), **inputs)
    assert torch.equal(black.image, resized)
    assert black.report.endswith("the region is empty: nothing was restored")
    assert forwards == []
    assert torch.allclose(run(np.ones((5, 7)), **inputs).image, run(**inputs).image, atol=1e-6)


def test_auto_steps_look_at_the_region(run, forwards):
    got = run(corner(), step_mode="auto", tolerance=10.0, **TILES)
    assert "auto: 1 step" in got.report
    assert len(forwards) == 3 + 1  # three calls choose, on one tile


def test_a_batch_with_a_region_for_each_equals_each_alone(run):
    masks = np.stack([corner(), corner()[::-1], np.zeros((17, 23))])
    together = run(masks, source={"count": 3}.items(), color_fix="lab", **TILES).image
    for k in range(3):
        alone = run(masks[k], source={"count": 1, "first": k}.items(), color_fix="lab", **TILES).image
        assert torch.equal(together[k : k + 1], alone), k


def test_one_region_serves_a_whole_batch(run):
    resized = run(source={"count": 2}.items(), strength=0.0).image
    part = run(corner(), source={"count": 2}.items(), **TILES).image
    assert torch.equal(part[:, 10:], resized[:, 10:])
    assert all(not torch.equal(part[k, :10, :10], resized[k, :10, :10]) for k in range(2))


def test_moving_the_region_encodes_nothing_again(run):
    run(corner(), builtin=False, **TILES)
    first = set(run.ran)
    run(corner()[::-1], builtin=False, **TILES)
    assert {"TEASRLoadBuiltin", "TEASRCondition"} <= first
    assert not {"TEASRLoadBuiltin", "TEASRCondition", "TEASRUpscaleInput"} & set(run.ran)


def test_the_result_is_the_whole_restoration_by_the_weight_of_the_region(run, host):
    region = host.pack("teasr_core.image.region")
    sizes = host.pack("teasr_core.image.target_size").TargetSize
    mask = corner()
    weight = region.make_region(torch.tensor(mask)[None, None].float(), sizes(23, 17), sizes(46, 34)).weight
    resized, whole = run(strength=0.0).image, run(steps=1, color_fix="off", **TILES).image
    part = run(mask, steps=1, color_fix="off", **TILES).image
    assert torch.allclose(part, torch.lerp(resized, whole, weight.movedim(1, -1)), atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.eye(20), "the region is 20 x 20 pixels, the picture 23 x 17"),
        (np.stack([corner(), corner()]), "region has shape (2, 17, 23), there are 1 images"),
        (np.where(corner() > 0, np.nan, 0), "the region that is wired in holds NaN"),
    ],
)
def test_a_region_that_does_not_fit_is_one_sentence(run, mask, expected):
    assert run(mask) is None
    assert expected in run.errors[0]
