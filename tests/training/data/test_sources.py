"""What a run learns from: folders, lists, weights; bad files named at the start and survived when drawn (T6)."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from teasr_core.errors import ConfigError, InputError
from training.config.pretrain import PretrainConfig, load_config
from training.config.shared import DataConfig
from training.config.toml import to_mapping
from training.data.dataset import CropDataset, batches
from training.data.photographs import list_source, scan_photographs
from training.data.sources import data_summary, open_sources
from training.pretrain.resume import check_resumable

CROP = 16
SIDE = CROP + 32


def plain(path, level, side=SIDE):
    """A photograph of one grey level, by which draws are told apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(path)
    return path


def textured(seed=0, height=90, width=110):
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed=0, **options):
    data = io.BytesIO()
    textured(seed).save(data, "JPEG", quality=90, **options)
    return data.getvalue()


def dataset(**changes):
    return CropDataset(DataConfig(**({"cache_mb": 20} | changes)), CROP, seed=0)


def levels(crops, count):
    """The grey level (0..255) of the HQ of the first samples."""
    return np.array([round(float(crops[index][1].mean()) * 255) for index in range(count)])


# Lists


def test_a_list_names_files_beside_it_in_its_own_order(tmp_path):
    for name in ("b.png", "a.png", "deep/c d.png", "# e.png"):
        plain(tmp_path / "data" / name, 100)
    listed = tmp_path / "data" / "some.txt"
    listed.write_text(f"# chosen by hand\n\nb.png\n  deep/c d.png  \n{tmp_path / 'data' / 'a.png'}\n", encoding="utf-8")
    found = list_source(str(listed))
    assert [path.name for path in found] == ["b.png", "c d.png", "a.png"]
    assert all(path.is_file() for path in found)
    both = dataset(folders=(str(listed), str(tmp_path / "data")))
    assert len(both.photos.paths) == 3 + 3  # the folder's own three: no recursion
    assert torch.equal(dataset(folders=(str(listed),))[0][1], dataset(folders=(str(listed),))[0][1])


def test_a_list_that_cannot_be_used(tmp_path):
    for content, match in ((b"# nothing\n\n", "no image in it"), (b"\xff\xfe", "UTF-8")):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(InputError, match=match):
            list_source(str(tmp_path / "list.txt"))
    with pytest.raises(InputError, match=r"none\.txt.*no such folder or \.txt list"):
        list_source(str(tmp_path / "none.txt"))
    plain(tmp_path / "good.png", 9)
    (tmp_path / "list.txt").write_text("good.png\ngone.png\n")
    (source,) = open_sources(DataConfig((str(tmp_path / "list.txt"),)), CROP)
    assert [path.name for path in source.high] == ["good.png"]
    assert source.skipped == ("skipped, unreadable: 1 (gone.png)",)


# Weights


def test_every_image_counts_alike_without_weights_and_every_source_by_its_weight(tmp_path):
    for index in range(3):
        plain(tmp_path / "many" / f"{index}.png", 50)
    plain(tmp_path / "one" / "0.png", 200)
    folders = (str(tmp_path / "many"), str(tmp_path / "one"))
    count = 400
    alike = np.mean(levels(dataset(folders=folders), count) == 200)
    weighted = np.mean(levels(dataset(folders=folders, weights=(1.0, 4.0)), count) == 200)
    assert alike == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / count))
    assert weighted == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / count))
    assert set(levels(dataset(folders=folders, weights=(0.0, 0.1)), 40)) == {200}
    within = dataset(folders=folders, weights=(1.0, 0.0))
    assert len({within._draw(np.random.default_rng(seed)) for seed in range(60)}) == 3  # any image of the source


def test_a_weighted_source_without_a_usable_image_is_an_error_and_others_are_not(tmp_path):
    plain(tmp_path / "good" / "a.png", 10)
    plain(tmp_path / "small" / "b.png", 10, side=20)
    folders = (str(tmp_path / "good"), str(tmp_path / "small"))
    assert len(dataset(folders=folders).photos.paths) == 1
    assert len(dataset(folders=folders, weights=(1.0, 0.0)).photos.paths) == 1
    with pytest.raises(InputError, match=r"small' has no readable photograph of at least 48 px .*b\.png"):
        dataset(folders=folders, weights=(1.0, 1.0))


FITTING = r"data\.weights is .*expected 2 weights"
WEIGHT = r"data\.weights\[1\] is .*expected at least 0"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("[1.0]", FITTING), ("[1, 2, 3]", FITTING), ("[0, 0]", FITTING),
        ("[1, -1]", WEIGHT), ("[1, nan]", WEIGHT), ("[1, inf]", WEIGHT),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(tmp_path, weights, message):
    path = tmp_path / "config.toml"
    path.write_text(f'[data]\nfolders = ["a"]\npairs = ["b"]\nweights = {weights}\n')
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    assert load_config(path, ["data.weights=[1, 3]"]).data.weights == (1.0, 3.0)


# What cannot be used is named at the start


def test_a_scan_sorts_files_by_their_headers(tmp_path):
    good = plain(tmp_path / "good.png", 5, side=60)
    small = plain(tmp_path / "small.png", 5, side=40)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    bad = [tmp_path / "text.jpg", tmp_path / "empty.png", tmp_path / "gone.png"]
    scan = scan_photographs([small, *bad, good], min_px=48)
    assert (scan.usable, scan.sizes) == ((good,), ((60, 60),))
    assert (scan.unreadable, scan.too_small, scan.count) == (tuple(bad), (small,), 5)
    assert scan.skipped() == [
        "skipped, unreadable: 3 (text.jpg, empty.png, gone.png)",
        "skipped, smaller than 48 px a side: 1 (small.png)",
    ]
    assert scan_photographs([good, small]).skipped() == []


def test_many_names_are_cut_short(tmp_path):
    scan = scan_photographs([tmp_path / f"{index}.jpg" for index in range(25)])
    (line,) = scan.skipped()
    assert line.endswith("9.jpg and 15 more)") and "10.jpg" not in line


def test_the_summary_says_everything_once(tmp_path):
    plain(tmp_path / "a.png", 5, side=64)
    plain(tmp_path / "b.png", 5, side=48)
    (tmp_path / "c.png").write_text("no image")
    config = DataConfig((str(tmp_path),))
    name = f"data '{tmp_path}'"
    assert data_summary(config, [32, 16, 16]) == [
        f"{name}: 2 of 3 images usable",
        f"{name}: skipped, unreadable: 1 (c.png)",
        f"{name}: 1 of 3 images usable",
        f"{name}: skipped, smaller than 64 px a side: 1 (b.png)",
    ]
    with pytest.raises(InputError, match="at least 96 px"):
        data_summary(config, [16, 64])


def test_a_run_says_it_and_an_older_checkpoint_still_resumes(config, capsys):
    from training.pretrain.trainer import Pretrainer

    run = config()
    Pretrainer(run)
    assert f"data '{run.data.folders[0]}': 2 of 2 images usable" in capsys.readouterr().err
    wanted = to_mapping(PretrainConfig())
    older = to_mapping(PretrainConfig())
    del older["data"]["weights"], older["data"]["pairs"]
    check_resumable(older, wanted, 10)
    wanted["data"]["weights"] = (1.0,)
    with pytest.raises(ConfigError, match=r"data\.weights is \[1\.0\], the checkpoint has \[\]"):
        check_resumable(older, wanted, 10)


# A good header, and damage behind it


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_truncated_photograph_is_passed_over_and_named_once(tmp_path, capfd, options):
    (tmp_path / "cut.jpg").write_bytes(jpeg(1, **options)[:-400])
    plain(tmp_path / "whole.png", 77)
    assert scan_photographs([tmp_path / "cut.jpg"], SIDE).usable  # the header is good
    crops = dataset(folders=(str(tmp_path),))
    assert set(levels(crops, 12)) == {77}
    assert capfd.readouterr().err.count("a photograph is left out: ") == 1
    again = dataset(folders=(str(tmp_path),))
    assert all(torch.equal(a, b) for a, b in zip(crops[5], again[5], strict=True))
    lq, _ = next(batches(DataConfig((str(tmp_path),)), CROP, 6, 0, first_sample=0, count=1, workers=1))
    assert torch.equal(lq, torch.stack([crops[index][0] for index in range(6)]))


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif"])
def test_other_truncated_files_too(tmp_path, suffix):
    textured().save(tmp_path / f"cut.{suffix}")
    data = (tmp_path / f"cut.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) * 2 // 3])
    plain(tmp_path / "whole.jpg", 77)
    assert set(levels(dataset(folders=(str(tmp_path),)), 8)) == {77}


def test_what_follows_the_picture_is_no_damage(tmp_path, capfd):
    """Phones append a second picture, a film or zeros."""
    (tmp_path / "plain.jpg").write_bytes(jpeg())
    wanted = dataset(folders=(str(tmp_path),))[0]
    for tail in (b"\0" * 700, b"MotionPhoto" * 50, jpeg(1)[:900]):
        (tmp_path / "plain.jpg").write_bytes(jpeg() + tail)
        assert all(torch.equal(a, b) for a, b in zip(dataset(folders=(str(tmp_path),))[0], wanted, strict=True))
    assert "damaged" not in capfd.readouterr().err


def test_nothing_but_damage_is_an_error(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:-400])
    with pytest.raises(InputError, match="64 draws gave no readable photograph"):
        dataset(folders=(str(tmp_path),))[0]


def test_files_of_other_kinds_are_named(tmp_path):
    """One line counts and names them; they are not counted among the images."""
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    Image.new("RGB", (200, 200)).save(tmp_path / "b.gif")
    (tmp_path / "a.txt").write_text("a caption")
    (source,) = open_sources(DataConfig(folders=[str(tmp_path)]), 64)
    assert source.count == 1
    assert source.lines()[1:] == [
        f"data '{tmp_path}': left out 2 files that are not of a kind that is read: a.txt, b.gif"
    ]
