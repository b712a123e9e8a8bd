"""`grain` on TEASRUpscale and TEASRColorFix: measured in the input, seeded, 0 by default."""

import pytest
import torch

SIGMA = 0.05


@pytest.fixture
def noisy():
    """IMAGE (1, 80, 96, 3): a soft ramp with white noise of SIGMA."""
    generator = torch.Generator().manual_seed(2)
    ramp = torch.linspace(0.35, 0.6, 96).expand(80, 96)[None, :, :, None]
    return (ramp + SIGMA * torch.randn(1, 80, 96, 3, generator=generator)).clamp(0.01, 0.99)


@pytest.fixture
def smooth():
    """What a model makes of it: the ramp alone."""
    return torch.linspace(0.35, 0.6, 96).expand(1, 80, 96)[..., None].expand(-1, -1, -1, 3).contiguous()


@pytest.fixture
def run(upscaled, noisy):
    """run(image=noisy, **inputs): the picture that one step of TEASRUpscale makes, its colours left alone."""
    return lambda image=noisy, **inputs: upscaled(image, **{"steps": 1, "color_fix": "off"} | inputs).image


def test_the_color_fix_gives_the_references_grain_back(host, noisy, smooth):
    fix = {"image": smooth, "reference": noisy, "color_fix": "off"}
    bare, half, full, again, other = (
        host.run("TEASRColorFix", **fix, **more)[0]
        for more in (
            {},
            {"grain": 0.5},
            {"grain": 1.0},
            {"grain": 1.0, "grain_seed": 0},
            {"grain": 1.0, "grain_seed": 1},
        )
    )
    assert torch.equal(bare, smooth)
    assert float((full - smooth).std()) == pytest.approx(SIGMA, rel=0.1)
    assert float((half - smooth).std()) == pytest.approx(SIGMA / 2, rel=0.1)
    assert torch.equal(full, again)
    assert not torch.equal(full, other)
    channels = (full - smooth).flatten(0, 2).T
    assert float((torch.corrcoef(channels) - torch.eye(3)).abs().max()) < 0.1  # the noise was independent


def test_the_color_fix_finds_the_grain_of_an_enlarged_reference(host, noisy, smooth):
    """In a graph of single nodes the reference is TEASRCondition's resized picture."""
    core = host.pack("teasr_core.image.resize")
    reference = core.resize(noisy.movedim(-1, 1).contiguous(), core.TargetSize(384, 320)).movedim(1, -1)
    large = smooth.repeat_interleave(4, 1).repeat_interleave(4, 2)
    full = host.run("TEASRColorFix", image=large, reference=reference, color_fix="off", grain=1.0)[0]
    assert float((full - large).std()) == pytest.approx(SIGMA, rel=0.2)


def test_a_clean_reference_gives_none(host, smooth):
    detailed = torch.rand(1, 80, 96, 3)
    assert torch.equal(
        host.run("TEASRColorFix", image=detailed, reference=smooth, color_fix="off", grain=1.0)[0], detailed
    )


def test_upscale_gives_the_inputs_grain_and_0_changes_no_bit(run, smooth):
    """fidelity 1 starts from no noise, so that another seed is another grain and nothing else."""
    bare, zero, full, half, other = (
        run(fidelity=1.0, **more)
        for more in ({}, {"grain": 0.0}, {"grain": 1.0}, {"grain": 0.5}, {"grain": 1.0, "seed": 8})
    )
    assert torch.equal(bare, zero)
    inside = (bare > 0.2) & (bare < 0.8)
    added = float((full - bare)[inside].std())
    assert 0.2 * SIGMA < added < 1.2 * SIGMA
    assert float((half - bare)[inside].std()) == pytest.approx(added / 2, rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack([(full - bare)[inside], (other - bare)[inside]]))[0, 1])) < 0.05
    assert torch.equal(run(image=smooth, grain=1.0), run(image=smooth))


def test_upscale_is_the_cores_own_grain(run, host, noisy):
    """The nodes' `grain` is `add_grain` on the picture without it, measured in the picture before its resize."""
    grain = host.pack("teasr_core.image.grain")
    core = host.pack("teasr_core.image.resize")
    planes = noisy.movedim(-1, 1).contiguous()
    resized = core.resize(planes, core.TargetSize(192, 160))
    bare = run(seed=3).movedim(-1, 1)
    expected = grain.add_grain(bare, resized, planes, 0.7, 3)
    assert torch.allclose(run(seed=3, grain=0.7), expected.movedim(1, -1), atol=1e-6)


def test_the_field_is_the_same_in_tiles_and_in_one_piece(run):
    fields = []
    for tiles in ({}, {"tile_px": 64, "overlap_px": 16}):
        fields.append((run(grain=1.0, **tiles) - run(**tiles))[:, 20:140, 20:170].flatten())
    assert float(torch.corrcoef(torch.stack(fields))[0, 1]) > 0.7


def test_a_batch_equals_each_alone(run, noisy, smooth):
    batch = torch.cat([noisy, smooth, noisy.flip(2)])
    together = run(image=batch, grain=1.0)
    for k in range(3):
        assert torch.equal(together[k : k + 1], run(image=batch[k : k + 1].clone(), grain=1.0)), k
