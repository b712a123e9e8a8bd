"""Sample i of an ordinary config (folders alone, every photograph good) never changes: runs resume exactly.

Three guards: the hash of crops that are plain indexing, so equal on every machine; the algorithm written out once
more, bit for bit, in whatever versions of the libraries are installed; and the means of what the code gave at first.
"""

import hashlib

import cv2
import numpy as np
import pytest
import torch

from helpers.tiny import run as tiny_run
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize
from training.config.shared import DataConfig
from training.data.dataset import CropDataset
from training.data.photographs import PhotoCache, list_source
from training.degradation.degrade import PRESETS, degrade

# first 16 digits of the sha256 of HQ of samples 0..3 at seed 0, crop 32, without scale jitter
HQ_HASHES = ("1616be25001e2a38", "c9b4a98a2ba305da", "69e8dc0aab3390a8", "97614843a8d247ab")
# mean of LQ and of HQ of samples 0..3 at seed 0, crop 32, default jitter, light 0.7 and heavy 0.3
MEANS = ((0.48798, 0.48591), (0.51199, 0.51461), (0.48900, 0.46958), (0.48124, 0.46968))


def written_out(folders, presets, scales, min_zoom, crop_px, seed, index):
    """(lq, hq) as the first version of the trainer drew them."""
    photos = PhotoCache([path for folder in folders for path in list_source(folder)], 100)
    rng = np.random.default_rng([seed, index])
    region_px = crop_px + 32
    photo = photos.get(int(rng.integers(len(photos.paths))))
    zoom = rng.uniform(min_zoom, 1)
    side = min(round(region_px / zoom), *photo.shape[:2])
    y = int(rng.integers(photo.shape[0] - side + 1))
    x = int(rng.integers(photo.shape[1] - side + 1))
    region = photo[y : y + side, x : x + side]
    if side != region_px:
        region = cv2.resize(region, (region_px, region_px), interpolation=cv2.INTER_AREA)
    region = np.rot90(region, int(rng.integers(4)))
    if rng.random() < 0.5:
        region = region[:, ::-1]
    hq = np.ascontiguousarray(region, dtype=np.float32) / 255

    def pick(weights):
        names = sorted(weights)
        shares = np.array([weights[name] for name in names], dtype=np.float64)
        return names[int(rng.choice(len(names), p=shares / shares.sum()))]

    def tensor(image):
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]

    preset = PRESETS[pick(presets)]
    small = degrade(hq, preset, float(pick(scales)), rng)
    lq = resize(tensor(small), TargetSize(region_px, region_px))[0]
    x, y = rng.integers(0, 33, size=2)
    window = (slice(None), slice(y, y + crop_px), slice(x, x + crop_px))
    return lq[window], tensor(hq)[0][window]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return tiny_run.write_photos(tmp_path_factory.mktemp("photos"), 3)


def test_plain_crops_keep_their_bytes(photos):
    dataset = CropDataset(DataConfig((str(photos),), min_zoom=1.0), 32, seed=0)
    found = [hashlib.sha256(dataset[index][1].numpy().tobytes()).hexdigest()[:16] for index in range(4)]
    assert tuple(found) == HQ_HASHES


def test_samples_keep_their_means(photos):
    dataset = CropDataset(DataConfig((str(photos),), presets={"light": 0.7, "heavy": 0.3}), 32, seed=0)
    found = [[float(image.mean()) for image in dataset[index]] for index in range(4)]
    assert np.allclose(found, MEANS, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("crop_px", "min_zoom"), [(32, 0.6), (48, 1.0), (16, 0.3)])
def test_samples_equal_the_algorithm_written_out(photos, three, crop_px, min_zoom):
    config = DataConfig((str(photos), str(three)), presets={"light": 0.7, "heavy": 0.3}, min_zoom=min_zoom)
    dataset = CropDataset(config, crop_px, seed=7)
    for index in (0, 1, 2, 11, 2**33):
        wanted = written_out(config.folders, config.presets, config.scales, min_zoom, crop_px, 7, index)
        for image, reference in zip(dataset[index], wanted, strict=True):
            assert torch.equal(image, reference)
