"""Training crops: item i is a function of (seed, i), LQ and HQ lie on each other, bad photographs are passed over."""

import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from teasr_core.errors import InputError
from training.config.shared import DataConfig
from training.data.dataset import CropDataset, batches
from training.data.photographs import PhotoCache, list_source
from training.data.sources import MARGIN_PX, open_sources

CROP = 32


def photo(height=150, width=170, seed=0):
    """(H, W, 3) uint8 with structure at several sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cell, gain in ((4, 40), (12, 60), (40, 60)):
        grid = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(layer, dtype=float) / 255 - 0.5) * gain
    return np.clip(total + 128, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for index in range(3):
        Image.fromarray(photo(seed=index)).save(root / f"{index}.png")
    return root


def config(folder, **changes):
    return DataConfig(**({"folders": (str(folder),), "cache_mb": 50} | changes))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Reproducible


def test_an_item_depends_on_seed_and_index_alone(folder):
    first = CropDataset(config(folder), CROP, seed=3)
    wanted = [first[i] for i in (0, 5, 2**40)]
    other = CropDataset(config(folder, cache_mb=0), CROP, seed=3)
    for _ in range(2):
        other[1]
    torch.manual_seed(1)
    np.random.seed(1)
    assert all(same(item, other[i]) for item, i in zip(wanted, (0, 5, 2**40), strict=True))
    assert not same(wanted[0], wanted[1])
    assert not same(wanted[0], CropDataset(config(folder), CROP, seed=4)[0])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_a_later_start_give_the_same_batches(folder, workers):
    whole = list(batches(config(folder), CROP, 3, 7, first_sample=0, count=4, workers=0))
    later = list(batches(config(folder), CROP, 3, 7, first_sample=6, count=2, workers=workers))
    assert len(whole) == 4
    assert len(later) == 2
    assert all(same(a, b) for a, b in zip(whole[2:], later, strict=True))


def test_the_global_random_states_are_untouched(folder):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    CropDataset(config(folder), CROP, seed=0)[0]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


# Contents


@pytest.mark.parametrize("crop", [16, 48])
def test_crops_have_the_asked_size_and_range(folder, crop):
    dataset = CropDataset(config(folder), crop, seed=0)
    for index in range(4):
        for image in dataset[index]:
            assert image.shape == (3, crop, crop)
            assert image.dtype == torch.float32
            assert image.is_contiguous()
            assert 0 <= float(image.min()) < float(image.max()) <= 1
    lq, hq = next(batches(config(folder), crop, 5, 0, 0, 1, 0))
    assert lq.shape == hq.shape == (5, 3, crop, crop)


@pytest.mark.parametrize("scale", ["1", "2", "4"])
def test_lq_lies_on_hq(folder, scale):
    """The best whole shift of every crop is none, and the mean sub-pixel shift is about 0."""
    registration = pytest.importorskip("skimage.registration")
    dataset = CropDataset(config(folder, scales={scale: 1.0}), 64, seed=0)

    def shift(lq, hq):
        grey = (image.mean(dim=0).numpy() for image in (hq, lq))
        return registration.phase_cross_correlation(*grey, upsample_factor=20, normalization=None)[0]

    pairs = [dataset[index] for index in range(16)]
    shifts = np.array([shift(lq, hq) for lq, hq in pairs])
    assert np.abs(np.median(shifts, axis=0)).max() <= 0.1
    assert np.abs(shifts.mean(axis=0)).max() <= 0.25
    rolled = np.array([shift(lq.roll(1, dims=2), hq) for lq, hq in pairs])  # the check sees a shift of one pixel
    assert abs(np.median(rolled, axis=0)[1]) > 0.7


def test_lq_is_worse_than_hq_but_the_same_picture(folder):
    dataset = CropDataset(config(folder), 64, seed=0)
    for index in range(6):
        lq, hq = dataset[index]
        assert float((lq - hq).abs().mean()) > 1e-3
        assert np.corrcoef(lq.flatten(), hq.flatten())[0, 1] > 0.5


def test_offsets_fall_at_every_phase_of_the_token_grid(tmp_path):
    """A photo that holds its own column number: crops begin anywhere modulo 8."""
    ramp = np.broadcast_to(np.arange(CROP + 2 * MARGIN_PX + 8, dtype=np.uint8)[None, :, None], (72, 72, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    dataset = CropDataset(config(tmp_path, min_zoom=1.0), CROP, seed=0)
    phases = set()
    for index in range(80):
        hq = (dataset[index][1][0] * 255).round()
        phases.add(int(hq.min()) % 8)
    assert phases == set(range(8))


def test_colours_are_rgb(tmp_path):
    red = np.zeros((80, 80, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "red.png")
    _, hq = CropDataset(config(tmp_path), CROP, seed=0)[0]
    assert hq.mean(dim=(1, 2)).tolist() == pytest.approx([200 / 255, 0, 0], abs=1e-6)


# Photographs that cannot be used


def test_unreadable_and_small_photographs_are_passed_over(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.fromarray(photo(40, 300)).save(tmp_path / "small.png")
    white = np.full((80, 80, 3), 255, np.uint8)
    Image.fromarray(white).save(tmp_path / "good.png")
    dataset = CropDataset(config(tmp_path), CROP, seed=0)
    assert [path.name for path in dataset.photos.paths] == ["good.png"]
    assert all(float(dataset[index][1].min()) == 1 for index in range(12))


def test_nothing_usable_is_an_error(tmp_path):
    Image.fromarray(photo(40, 300)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match=r"at least 64 px a side among 1 .*small\.png"):
        CropDataset(config(tmp_path), CROP, seed=0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_photographs_damaged_further_on_end_the_batches_with_one_line(tmp_path, workers):
    """And end the data processes, which would keep the command alive."""
    for index in range(2):
        path = tmp_path / f"{index}.jpg"
        Image.fromarray(photo(seed=index)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"^64 draws gave no readable photograph .*: check data\.folders") as caught:
        list(batches(config(tmp_path), CROP, 2, 0, first_sample=0, count=3, workers=workers))
    assert multiprocessing.active_children() == []  # while `caught` holds the frames
    assert "\n" not in str(caught.value)


def test_folders(tmp_path, folder):
    with pytest.raises(InputError, match=r"data\.folders is empty"):
        open_sources(DataConfig(), CROP)
    with pytest.raises(InputError, match="no such folder"):
        list_source(str(tmp_path / "none"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="no image in it"):
        list_source(str(tmp_path))
    (tmp_path / "B.JPG").write_bytes(b"")
    assert [path.name for path in list_source(str(tmp_path))] == ["B.JPG"]
    both = CropDataset(config(folder, folders=(str(folder), str(folder))), CROP, seed=0)
    assert [path.name for path in both.photos.paths] == ["0.png", "1.png", "2.png"] * 2


def test_the_cache_is_bounded_and_transparent(folder):
    paths = list_source(str(folder))
    cache = PhotoCache(paths, limit_mb=0)
    for index in (0, 1, 2, 1):
        assert np.array_equal(cache.get(index), photo(seed=index))
    assert len(cache.images) == 1  # the one in use always stays
    large = PhotoCache(paths, limit_mb=10)
    assert large.get(0) is large.get(0)
    assert large.size == large.get(0).nbytes
