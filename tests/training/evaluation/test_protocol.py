"""The fixed protocol: fixed crops, reproducible pairs, means over the right pictures; the picture grid."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.tiny.evaluation import shrunk, smooth
from teasr_core.errors import InputError
from teasr_core.image.labelled_sheet import GAP_PX, TEXT_PX
from training.data.held_out import CROP_PX, EvalPair, choose_crop, load_eval_pairs, read_eval_list
from training.degradation.degrade import HEAVY, LIGHT
from training.evaluation.protocol import Row, markdown_table, split_means
from training.evaluation.tables.picture_grid import save_grid

REPOSITORY = Path(__file__).resolve().parents[3]


def tiny_pairs(count):
    return [
        EvalPair(f"p{index}", shrunk(smooth(48, 48, index), 12, 12), smooth(48, 48, index)) for index in range(count)
    ]


def bicubic(lr):
    return np.asarray(Image.fromarray(lr).resize((lr.shape[1] * 4, lr.shape[0] * 4), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photo_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    for index, size in enumerate(((520, 512), (531, 544))):
        Image.fromarray(smooth(*size, index)).save(folder / f"photo{index}.png")
    (folder / "list.tsv").write_text("# a note\nfile\tx\ty\nphoto0.png\t0\t5\nphoto1.png\t9\t3\n")
    return folder


def test_the_committed_list_is_off_the_jpeg_grid():
    crops = read_eval_list()
    assert len(crops) == 24 and len({crop.file for crop in crops}) == 24
    assert crops == sorted(crops, key=lambda crop: crop.file)
    offsets = [offset for crop in crops for offset in (crop.x, crop.y)]
    assert all(offset % 8 or offset == 0 for offset in offsets)
    assert sum(offset == 0 for offset in offsets) <= 2  # photographs exactly as high as the crop


def test_the_crop_is_off_the_grid_inside_and_the_busiest_of_its_candidates():
    photo = np.full((700, 640, 3), 128, np.uint8)
    photo[:, 320:] = smooth(700, 320, 0)
    spots = [choose_crop(photo, index) for index in range(6)]
    for x, y in spots:
        assert x % 8 and y % 8 and x + CROP_PX <= 640 and y + CROP_PX <= 700
    assert np.mean([x for x, _ in spots]) > 90  # of 0..128; the texture is on the right
    assert choose_crop(photo, 3) == spots[3]
    with pytest.raises(InputError, match="500"):
        choose_crop(photo[:500], 0)


def test_the_committed_list_follows_its_rule():
    folder = Path(os.environ.get("TEASR_SHARED", REPOSITORY.parent / "shared")) / "data" / "eval_dev"
    if not folder.is_dir():
        pytest.skip(f"the photographs are not in {folder} (set TEASR_SHARED to the folder of the shared data)")
    for index, crop in list(enumerate(read_eval_list()))[5:20:7]:
        photo = np.asarray(Image.open(folder / crop.file).convert("RGB"))
        assert choose_crop(photo, index) == (crop.x, crop.y)


def test_pairs_are_reproducible_and_each_has_its_own_seed(photo_dir):
    pairs = load_eval_pairs(photo_dir, LIGHT, list_path=photo_dir / "list.tsv")
    again = load_eval_pairs(photo_dir, LIGHT, list_path=photo_dir / "list.tsv")
    assert [pair.name for pair in pairs] == ["photo0", "photo1"]
    for pair, twin in zip(pairs, again, strict=True):
        assert pair.lr.shape == (128, 128, 3) and pair.hq.shape == (512, 512, 3)
        assert pair.lr.dtype == pair.hq.dtype == np.uint8
        assert np.array_equal(pair.lr, twin.lr)
        small = np.asarray(Image.fromarray(pair.hq).resize((128, 128), Image.Resampling.BOX)).astype(int)
        assert np.corrcoef(pair.lr.ravel(), small.ravel())[0, 1] > 0.8  # the same picture, in the same place
    other = load_eval_pairs(photo_dir, LIGHT, seed=1, list_path=photo_dir / "list.tsv")
    heavy = load_eval_pairs(photo_dir, HEAVY, list_path=photo_dir / "list.tsv")
    assert not np.array_equal(pairs[0].lr, other[0].lr) and not np.array_equal(pairs[0].lr, heavy[0].lr)
    (photo_dir / "second.tsv").write_text("file\tx\ty\nphoto1.png\t9\t3\nphoto1.png\t9\t3\n")
    same_place = load_eval_pairs(photo_dir, LIGHT, list_path=photo_dir / "second.tsv")
    assert np.array_equal(same_place[1].lr, pairs[1].lr)  # depends on its own row only
    assert not np.array_equal(same_place[0].lr, same_place[1].lr)


def test_a_list_that_does_not_fit_is_refused(photo_dir, tmp_path):
    for text, match in (
        ("file\tx\ty\nnone.png\t1\t1\n", "no photograph"),
        ("file\tx\ty\nphoto0.png\t1\t200\n", "expected 512"),
        ("file\tx\ty\nphoto0.png\t1\n", "by tabs"),
    ):
        (tmp_path / "list.tsv").write_text(text)
        with pytest.raises(InputError, match=match):
            load_eval_pairs(photo_dir, LIGHT, list_path=tmp_path / "list.tsv")
    with pytest.raises(InputError, match="no file"):
        read_eval_list(tmp_path / "other.tsv")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"no picture", "not an image"),
        (lambda data: b"", "an empty file"),
    ],
)
def test_a_damaged_photograph_is_named(photo_dir, damage, kind):
    path = photo_dir / "photo1.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"photo1\.png is {kind}"):
        load_eval_pairs(photo_dir, LIGHT, list_path=photo_dir / "list.tsv")


def test_a_row_is_compared_on_the_pictures_that_it_covers():
    values = [float(index) for index in range(24)]
    rows = [Row("1 step", {"psnr_y": values}), Row("30 steps", {"psnr_y": values[:8]})]
    means = split_means(rows, "psnr_y")
    assert set(means["first 8"]) == {"1 step", "30 steps"}
    assert all(set(means[split]) == {"1 step"} for split in ("first 12", "last 12", "all"))
    assert means["first 8"]["1 step"] == means["first 8"]["30 steps"] == np.mean(values[:8])
    assert means["last 12"]["1 step"] == np.mean(values[12:])
    table = markdown_table(rows).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("|")[1:3] for line in table[2:4]] == [[" first 8 ", " 1 step "], [" first 8 ", " 30 steps "]]
    assert " - " in table[2]  # a metric that was not asked for


def test_the_flat_ratio_is_not_decided_by_one_picture():
    scores = {"psnr_y": [30.0, 30.0], "flat_gradient": [20.0, 4.0], "hq_flat_gradient": [20.0, 1.0]}
    assert split_means([Row("x", scores)], "flat_ratio")["all"]["x"] == pytest.approx(2.0)


def test_a_grid_is_readable_and_small(tmp_path):
    pair = tiny_pairs(1)[0]
    rows = [[pair.lr, bicubic(pair.lr), pair.hq]] * 2
    save_grid(rows, ("LQ", "bicubic", "HQ"), tmp_path / "new" / "grid.png")
    grid = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert grid.shape[0] == TEXT_PX + 48 + GAP_PX + 48 and grid.shape[1] >= 3 * 48 + 2 * GAP_PX
    for top in (TEXT_PX, TEXT_PX + 48 + GAP_PX):
        assert np.array_equal(grid[top : top + 48, -48:], pair.hq)
        assert np.array_equal(grid[top : top + 48 : 4, 0:48:4], pair.lr)
    assert (grid[:TEXT_PX] < 128).any()  # the labels
    save_grid(rows, ("LQ", "bicubic", "HQ"), tmp_path / "half.png", cell_px=24)
    assert Image.open(tmp_path / "half.png").height == TEXT_PX + 24 + GAP_PX + 24


def test_a_grid_keeps_the_byte_limit_or_refuses(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    save_grid([[noise]], ["x"], tmp_path / "free.jpg")
    limit = (tmp_path / "free.jpg").stat().st_size * 2 // 3
    save_grid([[noise]], ["x"], tmp_path / "tight.jpg", max_bytes=limit)
    assert (tmp_path / "tight.jpg").stat().st_size <= limit
    with pytest.raises(InputError, match="cell_px"):
        save_grid([[noise]], ["x"], tmp_path / "no.jpg", max_bytes=500)
    with pytest.raises(InputError, match="suffix"):
        save_grid([[noise]], ["x"], tmp_path / "no.webp")
    with pytest.raises(InputError, match="one for each label"):
        save_grid([[noise]], ["x", "y"], tmp_path / "no.png")
