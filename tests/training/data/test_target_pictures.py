"""Target pictures: what another restorer made of the low-quality side of ready pairs."""

import numpy as np
import pytest
import torch
from PIL import Image

from teasr_core.errors import InputError
from training.config.shared import DataConfig
from training.data.dataset import CropDataset, batches
from training.data.photographs import HR_FOLDER, LR_FOLDER, TARGET_FOLDER
from training.data.sources import data_summary, open_sources

LOW, SCALE, CROP = 24, 4, 32


def smooth(seed, side):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def pairs(tmp_path):
    """Two pairs of factor 4; the target is the photograph's negative, so that it is told apart and still lies on it."""
    for index in range(2):
        high = smooth(index, LOW * SCALE)
        pictures = {HR_FOLDER: high, LR_FOLDER: high.resize((LOW, LOW), Image.Resampling.BOX),
                    TARGET_FOLDER: Image.fromarray(255 - np.asarray(high))}  # fmt: skip
        for folder, picture in pictures.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / f"{index}.png")
    return tmp_path


def dataset(pairs, with_target=True, **changes):
    return CropDataset(DataConfig(pairs=(str(pairs),), cache_mb=20, **changes), CROP, 3, with_target)


def test_the_target_lies_on_the_photograph(pairs):
    crops = dataset(pairs)
    for index in range(8):
        lq, hq, target = crops[index]
        assert lq.shape == hq.shape == target.shape == (3, CROP, CROP)
        assert torch.allclose(target, 1 - hq, atol=1e-6)
        assert float((lq - hq).abs().mean()) < 0.1 < float((lq - target).abs().mean())


def test_without_it_the_crops_are_the_same(pairs):
    """The random draws do not depend on whether the target is read."""
    for index in range(4):
        with_target, without = dataset(pairs)[index], dataset(pairs, with_target=False)[index]
        assert len(without) == 2
        assert all(torch.equal(a, b) for a, b in zip(without, with_target[:2], strict=True))


def test_one_triple_serves_for_every_factor(pairs):
    """At a smaller factor more of the low-quality picture is seen, in the same number of pixels."""
    spread = {}
    for scale in ("4", "2"):
        crops = dataset(pairs, pair_scales={scale: 1.0})
        items = [crops[index] for index in range(12)]
        for lq, hq, target in items:
            assert lq.shape == hq.shape == target.shape == (3, CROP, CROP)
            assert float((lq - hq).abs().mean()) < 0.1
            assert torch.allclose(target, 1 - hq, atol=2 / 255)
        spread[scale] = float(np.mean([hq.diff(dim=2).abs().mean() for _, hq, _ in items]))
    assert spread["2"] > 1.5 * spread["4"]


def test_a_factor_whose_picture_is_smaller_than_the_crop_is_passed_over(pairs):
    crops = dataset(pairs, pair_scales={"1": 100.0, "2": 1.0})  # at 1 a pair of 24 px gives no crop of 32 px
    assert all(torch.equal(a, b) for a, b in zip(crops[0], dataset(pairs, pair_scales={"2": 1.0})[0], strict=True))


def test_a_photograph_is_its_own_target(pairs):
    crops = CropDataset(DataConfig((str(pairs / HR_FOLDER),), pairs=(str(pairs),), weights=(1.0, 0.0)), CROP, 3, True)
    _, hq, target = crops[0]
    assert torch.equal(hq, target)


def test_batches_carry_it(pairs):
    config = DataConfig(pairs=(str(pairs),), cache_mb=20)
    batch = next(batches(config, CROP, 3, 0, first_sample=0, count=1, workers=0, with_target=True))
    assert [tuple(one.shape) for one in batch] == [(3, 3, CROP, CROP)] * 3


def test_pairs_without_a_fitting_target_are_named(pairs):
    (pairs / TARGET_FOLDER / "0.png").unlink()
    config = DataConfig(pairs=(str(pairs),))
    assert open_sources(config, CROP, with_target=True)[0].high == (pairs / HR_FOLDER / "1.png",)
    assert any("without a picture of HR's size in test_target: 1 (0.png)" in line
               for line in data_summary(config, [CROP], with_target=True))  # fmt: skip
    assert len(open_sources(config, CROP)[0].high) == 2  # nobody asks for it


def test_a_target_of_another_size_is_left_out(pairs):
    smooth(0, LOW * SCALE - 4).save(pairs / TARGET_FOLDER / "0.png")
    assert len(open_sources(DataConfig(pairs=(str(pairs),)), CROP, with_target=True)[0].high) == 1


def test_no_targets_at_all_is_an_error(pairs):
    for path in (pairs / TARGET_FOLDER).iterdir():
        path.unlink()
    (pairs / TARGET_FOLDER).rmdir()
    with pytest.raises(InputError, match=r"no folder of data\.pairs has a test_target"):
        open_sources(DataConfig(pairs=(str(pairs),)), CROP, with_target=True)
