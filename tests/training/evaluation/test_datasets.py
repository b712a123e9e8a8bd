"""Layouts of evaluation data: what is a pair, which factor it has, what is left out, what is refused."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.tiny import evaluation as tiny_eval
from teasr_core.errors import InputError
from teasr_core.image.target_size import TargetSize
from training.data import held_out
from training.data.held_out import read_eval_list
from training.degradation.degrade import PRESETS
from training.evaluation.datasets import open_datasets


def save(path, width, height, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiny_eval.smooth(height, width, seed)).save(path)


def test_the_stablesr_layout_pairs_equal_stems(tmp_path):
    tiny_eval.write_pairs(tmp_path / "RealSR", 3)
    (found,) = open_datasets(tmp_path / "RealSR")
    assert (found.name, found.layout, found.has_hq, found.scale_text()) == ("RealSR", "stablesr", True, "x4")
    assert [picture.name for picture in found.pictures] == ["0", "1", "2"]
    lr, hq = found.pictures[2].read()
    assert np.array_equal(hq, tiny_eval.smooth(96, 96, 2))
    assert np.array_equal(lr, np.asarray(Image.open(tmp_path / "RealSR/test_LR/2.png")))
    assert found.pictures[2].size == TargetSize(96, 96)
    assert found.pictures_at(30) == found.pictures  # only the committed list is cut short


def test_plain_folders_and_named_ones_are_the_same_pairs(tmp_path):
    tiny_eval.write_pairs(tmp_path / "set", 2, "LR", "HR")
    (plain,) = open_datasets(tmp_path / "set")
    (named,) = open_datasets(tmp_path / "set", lr=tmp_path / "set/LR", hr=tmp_path / "set/HR", name="other set")
    (inside,) = open_datasets(tmp_path, lr=Path("set/LR"), hr=Path("set/HR"))
    ids = [[picture.picture_id for picture in one.pictures] for one in (plain, named, inside)]
    assert ids[0] == ids[1] == ids[2] and len(set(ids[0])) == 2
    assert (plain.layout, named.name) == ("pairs", "other_set")


def test_factors_are_rational_and_one_for_both_sides(tmp_path):
    save(tmp_path / "LR/a.png", 20, 30)
    save(tmp_path / "HR/a.png", 30, 45)
    save(tmp_path / "LR/b.png", 12, 10)
    save(tmp_path / "HR/b.png", 24, 20)
    (found,) = open_datasets(tmp_path)
    assert [picture.scale for picture in found.pictures] == [Fraction(3, 2), Fraction(2)]
    assert found.scale_text() == "x3/2 to x2"
    save(tmp_path / "HR/b.png", 24, 21)
    with pytest.raises(InputError, match="b has LR 12x10 and HR 24x21, factors 2 across and 21/10 down"):
        open_datasets(tmp_path)
    save(tmp_path / "HR/b.png", 120, 100)
    with pytest.raises(InputError, match="factor 10"):
        open_datasets(tmp_path)


def test_what_has_no_partner_or_cannot_be_read_is_named(tmp_path):
    tiny_eval.write_pairs(tmp_path, 2, "LR", "HR")
    save(tmp_path / "LR/alone.png", 8, 8)
    save(tmp_path / "HR/lonely.jpg", 8, 8)
    (tmp_path / "HR/1.png").write_bytes((tmp_path / "HR/1.png").read_bytes()[:200])
    (found,) = open_datasets(tmp_path)
    assert [picture.name for picture in found.pictures] == ["0"]
    assert [one.name for one in found.skipped] == ["alone.png", "lonely.jpg", "1"]
    assert "1.png" in found.skipped[2].reason and "alone.*" in found.skipped[0].reason
    (tmp_path / "HR/0.png").unlink()
    with pytest.raises(InputError, match=r"nothing usable.*4 files skipped"):
        open_datasets(tmp_path)
    save(tmp_path / "LR/alone.jpg", 8, 8)
    with pytest.raises(InputError, match=r"alone\.\w+ and alone\.\w+"):
        open_datasets(tmp_path)


def test_photographs_without_originals(tmp_path):
    save(tmp_path / "cam_0.jpg", 33, 21)
    (tmp_path / "broken.jpg").write_text("no picture")
    (found,) = open_datasets(tmp_path, scale=1.5)
    assert found.layout == "lq" and not found.has_hq and [one.name for one in found.skipped] == ["broken.jpg"]
    lr, hq = found.pictures[0].read()
    assert hq is None and lr.shape == (21, 33, 3) and found.pictures[0].size == TargetSize(50, 32)
    (doubled,) = open_datasets(tmp_path, scale=2)
    assert doubled.pictures[0].picture_id != found.pictures[0].picture_id  # another size is another result
    with pytest.raises(InputError, match=r"0\.25 to 8"):
        open_datasets(tmp_path, scale=9)


def test_turned_grey_and_16_bit_files_become_upright_8_bit_rgb(tmp_path):
    grey = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    turned = Image.fromarray(tiny_eval.smooth(12, 20, 0))
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    (found,) = open_datasets(tmp_path, scale=2)
    read = [picture.read()[0] for picture in found.pictures]
    assert np.array_equal(read[0][..., 1], np.rint(grey / 257.0))
    assert read[1].shape == (20, 12, 3)


def test_the_committed_list_becomes_a_dataset_for_each_preset(tmp_path, monkeypatch):
    crops = read_eval_list()[4:5]
    for crop in crops:
        save(tmp_path / crop.file, crop.x + 512, crop.y + 512)
    monkeypatch.setattr(held_out, "read_eval_list", lambda path: crops)
    light, heavy = open_datasets(tmp_path, ["light", "heavy"])
    assert (light.name, heavy.name, light.layout) == ("light", "heavy", "list")
    for dataset in (light, heavy):
        pairs = held_out.load_eval_pairs(tmp_path, PRESETS[dataset.name])
        for picture, pair in zip(dataset.pictures, pairs, strict=True):
            lr, hq = picture.read()
            assert np.array_equal(lr, pair.lr) and np.array_equal(hq, pair.hq)
    assert light.pictures[0].picture_id != heavy.pictures[0].picture_id
    assert open_datasets(tmp_path)[0].name == "light"
    with pytest.raises(InputError, match="medium"):
        open_datasets(tmp_path, ["medium"])


def test_options_that_do_not_go_together_are_refused(tmp_path):
    tiny_eval.write_pairs(tmp_path / "set", 1, "LR", "HR")
    for options, match in (
        ({"presets": ["light"]}, "read as 'pairs'"),
        ({"lr": Path("LR")}, "one of --lr and --hr"),
        ({"lr": Path("LR"), "hr": Path("HR"), "scale": 2}, "--scale is for photographs"),
        ({"lr": Path("LR"), "hr": Path("none")}, "none"),
    ):
        with pytest.raises(InputError, match=match):
            open_datasets(tmp_path / "set", **options)
    with pytest.raises(InputError, match="no folder"):
        open_datasets(tmp_path / "other")
    with pytest.raises(InputError, match="neither the photographs of the list"):
        open_datasets(tmp_path)
