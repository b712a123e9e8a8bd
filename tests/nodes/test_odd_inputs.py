"""What people wire by mistake or by habit: it works as they expect, or one sentence says what to do."""

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt


@pytest.fixture
def errors(host):
    return host.pack("teasr_core.errors")


@pytest.fixture
def pair(condition, photo, builtin):
    """TEASRCondition's outputs for two different pictures, with a negative."""
    return condition(torch.cat([photo, 1 - photo]), negative=builtin.conditioning)


def color_fixed(host, image, reference):
    return host.run("TEASRColorFix", image=image, reference=reference)[0]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda image: 255 * image, "on average"),
        (lambda image: (255 * image).to(torch.uint8), "holds whole numbers"),
        (lambda image: 1e6 * image, "on average"),
    ],
)
def test_a_picture_of_0_to_255_is_named_instead_of_made_white(errors, host, condition, photo, change, found):
    with pytest.raises(errors.InputError, match=rf"image .*{found}.*from 0 to 1"):
        condition(change(photo))
    with pytest.raises(errors.InputError, match=rf"reference .*{found}.*from 0 to 1"):
        color_fixed(host, photo, change(photo))


def test_a_few_values_outside_are_clipped(condition, photo):
    """A filter overshoots, a highlight of an HDR picture is far above 1."""
    bright = photo.clone()
    bright[:, 3:5, 3:5], bright[:, 9, 9] = 20.0, -0.2
    size = {"size": "factor", "scale": 1.0}
    assert torch.equal(condition(bright, size=size).resized, bright.clamp(0, 1))


def test_grey_pictures_and_empty_batches_at_the_color_fix(errors, host, photo):
    grey = photo[..., :1]
    expected = color_fixed(host, grey.expand(-1, -1, -1, 3), photo)
    assert torch.equal(color_fixed(host, grey, photo), expected)
    with pytest.raises(errors.InputError, match=r"image has shape \(0, 17, 23, 3\)"):
        color_fixed(host, photo[:0], photo)


@pytest.mark.parametrize("which", ["mask", "region"])
def test_a_mask_with_a_channel_is_that_mask_without(executor, add_node, photo, which):
    masks = {}
    mask = torch.zeros(1, 17, 23)
    mask[:, :, :12] = 1
    add_node("TestMask", ("MASK",), {"key": ("INT", {})}, lambda key: (masks[key],))
    go = executor()

    def run(key):
        prompt = upscale_prompt(**{which: ["m", 0]})
        prompt["m"] = {"class_type": "TestMask", "inputs": {"key": key}}
        return go(prompt)

    masks |= {0: mask, 1: mask[None], 2: mask[0], 3: mask.expand(2, 2, 17, 23)}
    plain = run(0)
    for key in (1, 2):
        found = run(key)
        assert torch.equal(found.image, plain.image) and torch.equal(found.mask, plain.mask)
    assert run(3) is None
    assert f"{which} has shape (2, 2, 17, 23): expected a MASK" in go.errors[0]


def test_numbers_are_checked_where_no_model_runs(executor):
    """Wired numbers do not pass the widget's limits."""
    for inputs in ({"strength": -1.0}, {"strength": 0.0, "color_strength": 3.0}, {"strength": 0.0, "color_fix": "no"}):
        go = executor()
        assert go(upscale_prompt(**inputs)) is None
        assert "expected" in go.errors[0]


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 4.0])
def test_a_seed_that_torch_does_not_take(errors, builtin, pair, sample, seed):
    with pytest.raises(errors.InputError, match=r"seed is .*expected a whole number from 0 to 18446744073709551615"):
        sample(builtin.model, pair.conditioning, pair.latent, seed=seed)


def test_a_negative_of_other_pictures(errors, builtin, condition, photo, pair, sample):
    """The second picture would be guided away from the first."""
    one = condition(photo, negative=builtin.conditioning)
    with pytest.raises(errors.InputError, match=r"the negative has 1 images, the conditioning 2"):
        sample(builtin.model, pair.conditioning, pair.latent, negative=one.negative)
    with pytest.raises(errors.InputError, match=r"the negative has 2 images, the conditioning 1"):
        sample(builtin.model, one.conditioning, one.latent, negative=pair.negative)


def test_too_few_noise_masks_are_repeated_as_the_stock_sampler_does(builtin, condition, photo, sample):
    made = condition(torch.cat([photo, 1 - photo, photo.flip(2)]))
    masks = torch.zeros(2, 1, 34, 46)
    masks[0, ..., :20], masks[1, ..., 20:] = 1, 1
    found = sample(builtin.model, made.conditioning, made.latent | {"noise_mask": masks})
    three = masks[[0, 1, 0]]
    assert torch.equal(found, sample(builtin.model, made.conditioning, made.latent | {"noise_mask": three}))


def test_another_models_schedule_or_none(errors, builtin, condition, photo, stock_sample):
    """KarrasScheduler begins at 14.6; SplitSigmas at step 0 leaves one time, which ComfyUI makes NaN of."""
    made = condition(photo)
    with pytest.raises(errors.InputError, match=r"begin at 14.61: expected times that fall from 1"):
        stock_sample(builtin.model, made.conditioning, made.latent, torch.tensor([14.61, 1.0, 0.0]))
    with pytest.raises(errors.InputError, match=r"sigmas has 1 entries: expected two or more"):
        stock_sample(builtin.model, made.conditioning, made.latent, torch.tensor([1.0]))


@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_easy_cache_is_named_once_it_skips_the_network(errors, builtin, condition, photo, sample, threshold):
    """It keeps one state, whatever the tile, and would give one tile's change to another."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    made = condition(photo)
    model = EasyCacheNode.execute(builtin.model, threshold, 0.0, 1.0, False).args[0]
    if threshold:
        with pytest.raises(errors.InputError, match=r"network of this MODEL did not run.*EasyCache.*remove that node"):
            sample(model, made.conditioning, made.latent, steps=8)
    else:
        found = sample(model, made.conditioning, made.latent, steps=8)
        assert torch.equal(found, sample(builtin.model, made.conditioning, made.latent, steps=8))


def test_an_area_is_named(errors, host, builtin, condition, photo, sample):
    made = condition(photo)
    part = host.nodes.ConditioningSetArea().append(made.conditioning, 16, 16, 0, 0, 1.0)[0]
    with pytest.raises(errors.InputError, match=r"limited to an area .*remove that node"):
        sample(builtin.model, part, made.latent)


@pytest.mark.parametrize(
    ("node", "inputs", "found"),
    [
        ("ModelSamplingSD3", {"shift": 3.0}, "times up to 1000"),
        ("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": False}, "noise that is not a flow's"),
        ("ModelSamplingAuraFlow", {"shift": 3.0}, ""),
    ],
)
def test_a_model_sampling_node_on_qwen(errors, host, qwen, write_lora, sample, node, inputs, found):
    """Qwen-Image's own node only bends stock schedules; the others would give the network times that it never saw."""
    import comfy_extras.nodes_model_advanced as stock

    model, conditioning = host.run("TEASRApplyLoRA", model=qwen, lora_name=write_lora(qwen, "sampled.safetensors"))
    latent = {"samples": torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(1))}
    conditioning = host.pack("nodes.model.conditioning").with_lq(conditioning, latent["samples"])
    node = getattr(stock, node)
    patched = getattr(node(), node.FUNCTION)(model, **inputs)[0]
    if found:
        with pytest.raises(errors.InputError, match=rf"a ModelSampling node gives this MODEL {found}"):
            sample(patched, conditioning, latent)
    else:
        assert torch.equal(sample(patched, conditioning, latent), sample(model, conditioning, latent))
