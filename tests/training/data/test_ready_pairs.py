"""LR/HR pairs as training data: cut at the same place, enlarged by the restorer's Lanczos, never degraded."""

import numpy as np
import pytest
import torch
from PIL import Image

from teasr_core.errors import InputError
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from training.config.shared import DataConfig
from training.data.dataset import CropDataset
from training.data.sources import open_sources, pair_scale

CROP = 32


def texture(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_pair(root, name, low, scale, seed=0):
    """LR of the shape `low`, HR a texture `scale` times as large; the two have nothing to do with each other."""
    for folder, picture in (
        ("test_HR", texture(low[0] * scale, low[1] * scale, seed)),
        ("test_LR", texture(*low, seed + 100)),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / folder / f"{name}.png")
    return root


def dataset(root, crop_px=CROP, **changes):
    return CropDataset(DataConfig(**({"pairs": (str(root),), "cache_mb": 20} | changes)), crop_px, seed=0)


def read(root, folder, name):
    pixels = np.asarray(Image.open(root / folder / f"{name}.png"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W)


def turned(image):
    """The eight flips and quarter turns of (3, H, W)."""
    return [t for k in range(4) for t in (image.rot90(k, (1, 2)), image.rot90(k, (1, 2)).flip(2))]


def place(hq, image):
    """(y, x) of the crop in the picture, or None."""
    crop, side = hq.numpy(), hq.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(image.numpy(), (side, side), axis=(1, 2))
    corner = (windows[..., 0, 0] == crop[:, None, None, 0, 0]).all(axis=0)
    for y, x in np.argwhere(corner):
        if np.array_equal(windows[:, y, x], crop):
            return int(y), int(x)
    return None


@pytest.mark.parametrize(("low", "scale"), [((40, 37), 4), ((40, 60), 3), ((50, 41), 2), ((90, 80), 1)])
def test_lq_is_the_enlarged_lr_at_the_place_of_hq(tmp_path, low, scale):
    """In its middle, that is: near the region's border Lanczos sees a mirror where the whole picture goes on."""
    write_pair(tmp_path, "a", low, scale)
    high, small = read(tmp_path, "test_HR", "a"), read(tmp_path, "test_LR", "a")
    crops = dataset(tmp_path)
    edge = 3 * scale
    seen, phases = set(), set()
    for index in range(24):
        lq, hq = crops[index]
        assert lq.shape == hq.shape == (3, CROP, CROP) and lq.is_contiguous() and hq.is_contiguous()
        (turn,) = (k for k, image in enumerate(turned(high)) if place(hq, image) is not None)
        y, x = place(hq, turned(high)[turn])
        whole = turned(small)[turn]
        wanted = resize(whole[None], TargetSize(whole.shape[2] * scale, whole.shape[1] * scale))[0]
        wanted = wanted[:, y : y + CROP, x : x + CROP]
        inner = slice(edge, CROP - edge)
        assert float((lq - wanted)[:, inner, inner].abs().max()) < 1e-4
        seen.add(turn)
        phases.add((y % scale, x % scale))
    assert len(seen) > 4  # flips and turns
    assert len(phases) > (2 if scale > 1 else 0)  # the LR grid falls at every phase of the crop


def test_pairs_are_never_degraded(tmp_path):
    """A constant pair stays constant; synthetic degradation would add noise."""
    for folder, side in (("test_HR", 80), ("test_LR", 20)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(tmp_path / folder / "a.png")
    for image in dataset(tmp_path)[0]:
        assert torch.allclose(image, torch.tensor(90 / 255), atol=1e-6)


def test_a_picture_of_just_the_crop_is_used_whole(tmp_path):
    write_pair(tmp_path, "a", (8, 8), 4)
    high, small = read(tmp_path, "test_HR", "a"), read(tmp_path, "test_LR", "a")
    lq, hq = dataset(tmp_path)[0]
    (turn,) = (k for k, image in enumerate(turned(high)) if torch.equal(image, hq))
    wanted = resize(turned(small)[turn][None], TargetSize(CROP, CROP))[0]
    assert torch.allclose(lq, wanted, atol=1e-6)


def test_pairs_mix_with_photographs_by_weight_and_alone_by_count(tmp_path):
    write_pair(tmp_path / "pairs", "a", (20, 20), 4)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(photos / f"{index}.png")

    def share_of_pairs(**changes):
        crops = dataset(tmp_path / "pairs", folders=(str(photos),), **changes)
        return np.mean([float(crops[index][1].max()) > 0 for index in range(300)])

    assert share_of_pairs() == pytest.approx(0.25, abs=0.1)
    assert share_of_pairs(weights=(1.0, 3.0)) == pytest.approx(0.75, abs=0.1)
    assert share_of_pairs(weights=(1.0, 0.0)) == 0


def test_an_item_depends_on_seed_and_index_alone(tmp_path):
    write_pair(tmp_path, "a", (20, 25), 4)
    write_pair(tmp_path, "b", (24, 22), 4, seed=1)
    first, second = dataset(tmp_path), dataset(tmp_path, cache_mb=0)
    second[3]
    for index in (0, 7, 2**35):
        assert all(torch.equal(a, b) for a, b in zip(first[index], second[index], strict=True))


def test_what_is_no_pair_is_skipped_and_named(tmp_path):
    for name, low, scale in (("good", (12, 12), 4), ("small", (6, 9), 4)):
        write_pair(tmp_path, name, low, scale)
    for name, high, low in (("odd", (50, 48), (12, 12)), ("swapped", (12, 12), (48, 48))):
        Image.fromarray(texture(*high)).save(tmp_path / "test_HR" / f"{name}.png")
        Image.fromarray(texture(*low)).save(tmp_path / "test_LR" / f"{name}.png")
    Image.fromarray(texture(48, 48)).save(tmp_path / "test_HR" / "alone.png")
    Image.fromarray(texture(48, 48)).save(tmp_path / "test_HR" / "broken.png")
    (tmp_path / "test_LR" / "broken.png").write_text("no image")
    (source,) = open_sources(DataConfig(pairs=(str(tmp_path),)), CROP)
    assert [path.name for path in source.high] == [path.name for path in source.low or ()] == ["good.png"]
    assert set(source.skipped) == {
        "skipped, without a partner: 1 (alone.png)",
        "skipped, unreadable: 1 (broken.png)",
        "skipped, HR is no whole multiple of LR: 2 (odd.png, swapped.png)",
        "skipped, smaller than 32 px a side: 1 (small.png)",
    }
    assert source.lines()[0] == f"data '{tmp_path}': 1 of 5 pairs usable"


def test_folders_that_are_no_pairs(tmp_path):
    with pytest.raises(InputError, match=r"data\.pairs names .* no folder test_HR"):
        dataset(tmp_path)
    write_pair(tmp_path, "a", (20, 20), 4)
    (tmp_path / "test_LR" / "a.png").rename(tmp_path / "test_LR" / "b.png")
    with pytest.raises(InputError, match="no image name is in both"):
        dataset(tmp_path)
    (tmp_path / "test_LR" / "b.png").rename(tmp_path / "test_LR" / "a.png")
    with pytest.raises(InputError, match="no readable pair of at least 96 px a side among 1"):
        dataset(tmp_path, crop_px=96)
    Image.fromarray(texture(20, 20)).save(tmp_path / "test_LR" / "a.jpg")
    with pytest.raises(InputError, match=r"holds a\.jpg and a\.png"):
        dataset(tmp_path)


def test_pair_scale():
    assert [pair_scale((48, 40, 3), low) for low in ((12, 10, 3), (48, 40), (12, 11), (13, 10))] == [4, 1, None, None]
    assert pair_scale((12, 12), (48, 48)) is None
