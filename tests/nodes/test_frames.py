"""R32, R21: the frames of a clip share one noise field, so that a still picture stays still; each is as if alone."""

import itertools

import pytest
import torch

SETTINGS = [
    {"steps": 1},
    {"steps": 3, "seed": 2**63 + 5},
    {"steps": 2, "tile_px": 32, "overlap_px": 16},
    {"steps": 2, "fidelity": 0.5},
]


@pytest.fixture
def restored(builtin, condition, sample):
    """restored(image, **settings): TEASRSampler's latents (B, 48, 1, h, w) of a batch."""

    def run(image, **settings):
        made = condition(image)
        return sample(builtin.model, made.conditioning, made.latent, **settings)

    return run


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_identical_frames_stay_identical(restored, photo, settings):
    frames = restored(photo.repeat(3, 1, 1, 1), **settings)
    assert len(frames) == 3
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(frames))
    assert torch.equal(frames[:1], restored(photo, **settings))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_frame_of_a_clip_is_as_it_would_be_alone(restored, photo, settings):
    clip = torch.cat([photo, photo.flip(2), 1 - photo])
    frames = restored(clip, **settings)
    for k in range(3):
        assert torch.equal(frames[k : k + 1], restored(clip[k : k + 1], **settings)), k
    assert not torch.equal(frames[0], frames[1])


def test_a_change_in_one_frame_leaves_the_others_alone(restored, photo):
    clip = photo.repeat(3, 1, 1, 1)
    before = restored(clip)
    clip[1] = 1 - clip[1]
    after = restored(clip)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


def test_noise_of_a_frames_own_would_show(restored, photo):
    """Bite: the same picture with another seed is another picture, so equal frames had equal noise."""
    assert not torch.equal(restored(photo, steps=2, seed=1), restored(photo, steps=2, seed=2))
