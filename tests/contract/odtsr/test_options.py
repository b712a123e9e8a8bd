"""An imported ODTSR together with a region, a noise mask, grain, transparency, several steps and fidelity."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed in this environment: pip install diffusers")
from helpers.tiny import odtsr as tiny

FIDELITIES = (0.0, 0.5, 1.0)
STEPS = (1, 3, 30)


def corner(side=96):
    """A MASK (1, side, side) whose corner of 20 px is white; of the four tiles only the first holds a pixel of it."""
    mask = torch.zeros(1, side, side)
    mask[:, :20, :20] = 1
    return mask


@pytest.fixture
def sample(host, graph):
    """sample(made, steps, ...): TEASRSampler's samples for the outputs of TEASRCondition."""

    def run(made, steps=1, fidelity=0.0, **latent):
        sigmas = host.run("TEASRStepSelector", steps=steps, model=graph.model)[0]
        wires = {"model": graph.model, "conditioning": made[0], "latent": made[2] | latent, "sigmas": sigmas}
        return host.run("TEASRSampler", seed=tiny.SEED, fidelity=fidelity, **wires)[0]["samples"]

    return run


def lq_of(made):
    """The LQ latent (1, C, 1, h, w) without noise, as the conditioning holds it."""
    return made[0][0][1]["reference_latents"][0]


# A region


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("steps", STEPS)
def test_the_latent_outside_a_region_is_the_picture_without_noise(host, condition, sample, steps, fidelity):
    """Fidelity below 1 mixes noise into the condition, and the tiles that are left out must not end there."""
    made = condition("four tiles")
    latent = host.run(
        "TEASRUpscaleRegion", latent=made[2], region=corner(), image=tiny.image("four tiles"), resized=made[3]
    )[0]
    found, lq = sample(made, steps, fidelity, **latent), lq_of(made)
    assert tiny.difference(found[..., 8:, :], lq[..., 8:, :]) <= 1e-6
    assert tiny.difference(found[..., :, 8:], lq[..., :, 8:]) <= 1e-6
    assert tiny.difference(found[..., :3, :3], lq[..., :3, :3]) > 0.1
    if steps == 1:
        assert torch.equal(found[..., :3, :3], sample(made, steps, fidelity)[..., :3, :3])


def test_an_empty_region_leaves_the_latent_of_the_picture(host, condition, sample):
    """The latent that sampling would start from is the second encoder's, another picture to the decoder."""
    made, black = condition("four tiles"), torch.zeros(1, 96, 96)
    latent = host.run(
        "TEASRUpscaleRegion", latent=made[2], region=black, image=tiny.image("four tiles"), resized=made[3]
    )[0]
    assert torch.equal(sample(made, **latent), lq_of(made))
    assert tiny.difference(made[2]["samples"], lq_of(made)) > 0.1


@pytest.mark.parametrize("inputs", [
    {"fidelity": 0.5}, {"fidelity": 1.0, "steps": 3, "color_fix": "lab"}, {"fidelity": 0.5, "color_fix": "wavelet"},
    {"fidelity": 0.5, "step_mode": "auto", "tolerance": 10.0}, {"grain": 1.0, "fidelity": 0.5, "steps": 3},
])  # fmt: skip
def test_a_region_changes_no_pixel_outside(restored, inputs):
    image = tiny.image("four tiles")
    found = restored(image, corner(), **inputs)
    assert "1 tile," in found.report
    assert torch.equal(found.image[:, 20:], image[:, 20:]) and torch.equal(found.image[:, :, 20:], image[:, :, 20:])
    assert (found.image - image)[:, :16, :16].abs().max() > 0.05


# Transparency and grain


@pytest.mark.parametrize("region", [None, corner()], ids=["whole", "region"])
def test_four_channels_and_grain_change_nothing_of_the_rest(restored, region):
    image = tiny.image("four tiles")
    alpha = torch.ones(1, 96, 96, 1)
    alpha[:, 60:80, 60:80] = 0.5
    inputs = {"fidelity": 0.5, "steps": 2}
    plain, rgba = restored(image, region, **inputs), restored(torch.cat([image, alpha], dim=-1), region, **inputs)
    assert rgba.image.shape == (1, 96, 96, 4) and torch.allclose(rgba.image[..., 3:], alpha, atol=1e-6)
    opaque = (slice(None), slice(0, 30), slice(0, 30))  # far from where colours are bled under the alpha
    assert torch.allclose(rgba.image[opaque][..., :3], plain.image[opaque], atol=0.02)
    assert torch.isfinite(rgba.image).all()
    grained = restored(torch.cat([image, alpha], dim=-1), region, grain=1.0, **inputs)
    assert (
        torch.equal(grained.image[..., 3], rgba.image[..., 3])
        and grained.report.split(",")[:3] == (rgba.report.split(",")[:3])
    )


# SetLatentNoiseMask


def left_half(height=96, width=96):
    mask = torch.zeros(1, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("tiles", tiny.SIDES)
def test_outside_a_noise_mask_is_the_picture(condition, sample, tiles, steps, fidelity):
    """And not what the decoder makes of the second encoder's latent."""
    made = condition(tiles)
    side = tiny.SIDES[tiles] // 8
    found = sample(made, steps, fidelity, noise_mask=left_half(8 * side, 8 * side))
    kept, restored = (..., slice(side // 2 + 1, None)), (..., slice(0, side // 2 - 1))
    assert tiny.difference(found[kept], lq_of(made)[kept]) <= 1e-6
    assert tiny.difference(made[2]["samples"][kept], lq_of(made)[kept]) > 0.1
    assert tiny.difference(found[restored], lq_of(made)[restored]) > 0.1
    if steps == 1:  # every pixel starts where it starts without a mask
        assert tiny.difference(found[restored], sample(made, steps, fidelity)[restored]) <= 1e-5


def test_the_stock_sampler_keeps_the_same_picture(host, graph, condition, sample):
    nodes = host.nodes_custom_sampler
    made = condition("one tile")
    latent = made[2] | {"noise_mask": left_half(64, 64)}
    sigmas = host.run("TEASRStepSelector", steps=2, model=graph.model)[0]
    noise, euler = nodes.RandomNoise.execute(tiny.SEED).args[0], nodes.KSamplerSelect.execute("euler").args[0]
    guider = nodes.BasicGuider.execute(graph.model, made[0]).args[0]
    stock = nodes.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent).args[0]["samples"]
    assert tiny.difference(stock[..., 5:], lq_of(made)[..., 5:]) <= 1e-6
    assert tiny.difference(stock, sample(made, 2, noise_mask=left_half(64, 64))) <= 1e-6


def test_a_white_noise_mask_is_none(condition, sample):
    made = condition("four tiles")
    masked = sample(made, 3, 0.5, noise_mask=torch.ones(1, 1, 96, 96))
    assert tiny.difference(masked, sample(made, 3, 0.5)) <= 1e-5


def test_a_masked_batch_equals_each_alone(host, graph, sample):
    images = torch.cat([tiny.image("one tile"), tiny.image("one tile").flip(1)])
    wires = {"vae": graph.vae, "conditioning": graph.conditioning, "model": graph.model}
    size, mask = {"size": "factor", "scale": 1.0}, left_half(64, 64)
    together = sample(host.run("TEASRCondition", image=images, size=size, **wires), 2, 0.5, noise_mask=mask)
    for k in range(2):
        alone = host.run("TEASRCondition", image=images[k : k + 1], size=size, **wires)
        assert torch.equal(together[k : k + 1], sample(alone, 2, 0.5, noise_mask=mask))


# Several steps


def test_compared_steps_are_those_of_the_single_runs(condition, host, graph, restored):
    """TEASRUpscale at 1 and 3 steps differs, and each is finite: no step asks for a time above the start."""
    image = tiny.image("four tiles")
    one, three = (restored(image, steps=steps, fidelity=0.5) for steps in (1, 3))
    assert "3 steps" in three.report and not torch.allclose(one.image, three.image, atol=1e-3)
