"""`degrade`: pairs in the StableSR layout, the same ones the evaluation makes, files whole or not at all."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from teasr_core.picture_files.read import load_picture
from training.cli.commands import main
from training.data import make_pairs
from training.data.held_out import load_eval_pairs
from training.data.make_pairs import central_crop, degrade_uint8
from training.degradation.degrade import PRESETS


def texture(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def run(capsys):
    def call(*arguments):
        try:
            code = main(["degrade", *(str(argument) for argument in arguments)])
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def photos(tmp_path):
    """b.png 61 x 50, a.png 40 x 44, c.jpg 48 x 48."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(texture(50, 61, 1)).save(folder / "b.png")
    Image.fromarray(texture(44, 40, 2)).save(folder / "a.png")
    Image.fromarray(texture(48, 48, 3)).save(folder / "c.jpg")
    return folder


def read(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(result, *parts):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    for part in parts:
        assert part in err
    return True


# The pairs


def test_pairs_of_a_folder(run, photos, tmp_path):
    code, out, _ = run(photos, tmp_path / "out", "--preset", "heavy", "--seed", 5)
    assert (code, out) == (0, f"wrote 3 pairs into {tmp_path / 'out'} (test_HR, test_LR)\n")
    assert sorted(tree(tmp_path / "out")) == sorted(
        ["pairs.tsv", *(f"test_{part}/{name}.png" for part in ("HR", "LR") for name in "abc")]
    )
    assert (tmp_path / "out" / "pairs.tsv").read_text() == (
        "name\tseed\tindex\tpreset\tscale\na\t5\t0\theavy\t4\nb\t5\t1\theavy\t4\nc\t5\t2\theavy\t4\n"
    )
    for index, (name, shape, corner) in enumerate((("a", (44, 40), (0, 0)), ("b", (48, 60), (1, 0)))):
        whole = np.asarray(Image.open(photos / f"{name}.png"))
        hq, lr = (read(tmp_path / "out" / f"test_{part}" / f"{name}.png") for part in ("HR", "LR"))
        y, x = corner
        assert np.array_equal(hq, whole[y : y + shape[0], x : x + shape[1]])
        assert lr.shape == (shape[0] // 4, shape[1] // 4, 3)
        assert np.array_equal(lr, degrade_uint8(hq, "heavy", 4, 5, index))


def test_a_list_gives_the_pairs_of_the_evaluation_bit_for_bit(run, tmp_path, monkeypatch):
    for name, height, width in (("one.jpg", 530, 520), ("two.png", 512, 541)):
        Image.fromarray(texture(height, width)).save(tmp_path / name)
    listed = tmp_path / "list.tsv"
    listed.write_text("# a note\nfile\tx\ty\ntwo.png\t9\t0\none.jpg\t3\t5\n")
    for preset in PRESETS:
        assert run(tmp_path, tmp_path / preset, "--list", listed, "--seed", 3, "--preset", preset)[0] == 0
        wanted = load_eval_pairs(tmp_path, PRESETS[preset], 3, listed)
        assert [pair.name for pair in wanted] == ["two", "one"]
        for pair in wanted:
            assert np.array_equal(read(tmp_path / preset / "test_LR" / f"{pair.name}.png"), pair.lr)
            assert np.array_equal(read(tmp_path / preset / "test_HR" / f"{pair.name}.png"), pair.hq)
    assert (tmp_path / "light" / "pairs.tsv").read_text().splitlines()[1] == "two\t3\t0\tlight\t4"


def test_a_folder_is_degraded_as_the_evaluation_does_it(run, tmp_path):
    """The same crops as files of their own, in the list's order."""
    for name in ("a", "b"):
        Image.fromarray(texture(512, 512, ord(name))).save(tmp_path / f"{name}.png")
    (tmp_path / "list.tsv").write_text("file\tx\ty\na.png\t0\t0\nb.png\t0\t0\n")
    assert run(tmp_path, tmp_path / "out")[0] == 0
    for pair in load_eval_pairs(tmp_path, PRESETS["light"], 0, tmp_path / "list.tsv"):
        assert np.array_equal(read(tmp_path / "out" / "test_LR" / f"{pair.name}.png"), pair.lr)


def test_crop_scale_and_workers(run, photos, tmp_path):
    assert run(photos, tmp_path / "one", "--crop-px", 40, "--scale", 2)[0] == 0
    assert run(photos, tmp_path / "many", "--crop-px", 40, "--scale", 2, "--workers", 3)[0] == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    whole = np.asarray(Image.open(photos / "b.png"))
    assert np.array_equal(read(tmp_path / "one" / "test_HR" / "b.png"), whole[5:45, 10:50])
    assert read(tmp_path / "one" / "test_LR" / "b.png").shape == (20, 20, 3)
    seeds = [tree(tmp_path / "one")["test_LR/a.png"]]
    for index, options in enumerate((["--seed", 1], ["--preset", "heavy"])):
        run(photos, tmp_path / str(index), "--crop-px", 40, "--scale", 2, *options)
        seeds.append(tree(tmp_path / str(index))["test_LR/a.png"])
    assert len(set(seeds)) == 3


def test_one_file_is_number_0(run, photos, tmp_path):
    assert run(photos / "b.png", tmp_path / "out")[0] == 0
    hq = read(tmp_path / "out" / "test_HR" / "b.png")
    assert np.array_equal(read(tmp_path / "out" / "test_LR" / "b.png"), degrade_uint8(hq, "light", 4, 0, 0))


def test_scale_one_and_central_crop(run, photos, tmp_path):
    assert run(photos / "a.png", tmp_path / "out", "--scale", 1)[0] == 0
    assert read(tmp_path / "out" / "test_LR" / "a.png").shape == (44, 40, 3)
    picture = np.arange(7 * 9 * 3).reshape(7, 9, 3)
    assert np.array_equal(central_crop(picture, 4, None), picture[1:5, 0:8])
    with pytest.raises(make_pairs.SkippedError, match="9x7 px, smaller than 8 px"):
        central_crop(picture, 4, 8)


def test_photographs_come_upright(run, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.fromarray(texture(40, 60)).save(tmp_path / "a.jpg", exif=exif)
    assert run(tmp_path / "a.jpg", tmp_path / "out")[0] == 0
    hq = read(tmp_path / "out" / "test_HR" / "a.png")
    wanted = (load_picture(tmp_path / "a.jpg").rgb[0].permute(1, 2, 0) * 255).round().numpy()
    assert hq.shape == (60, 40, 3) and np.array_equal(hq, wanted)


# What cannot be used


def test_bad_files_among_good_ones_are_skipped_counted_and_named(run, photos, tmp_path):
    wanted = run(photos, tmp_path / "whole") and tree(tmp_path / "whole")
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:-60])  # truncated; the others keep their numbers
    (photos / "d.jpg").write_text("no image")
    Image.fromarray(texture(30, 3)).save(photos / "e.png")
    code, out, err = run(photos, tmp_path / "out")
    assert code == 0
    assert out == f"wrote 2 pairs into {tmp_path / 'out'} (test_HR, test_LR); skipped 3 (named above)\n"
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["skipped b", "skipped d", "skipped e"]
    assert "damaged" in lines[0] and "3x30 px, smaller than 4 px" in lines[2]
    found = tree(tmp_path / "out")
    assert all(found[name] == wanted[name] for name in found if name != "pairs.tsv")
    assert set(wanted) - set(found) == {"test_HR/b.png", "test_LR/b.png"}


def test_nothing_to_do_is_one_clear_error(run, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused(run(tmp_path / "empty", tmp_path / "out"), "holds no image")
    assert refused(run(tmp_path / "none", tmp_path / "out"), "does not exist")
    assert refused(run(photos, tmp_path / "out", "--crop-px", 64), "nothing usable among 3", "a: 40x44 px", "64 px")
    assert refused(run(photos / "a.png", tmp_path / "out", "--crop-px", 512), "40x44 px, smaller than 512 px")
    Image.fromarray(texture(40, 40)).save(photos / "a.jpg")
    assert refused(run(photos, tmp_path / "out"), "holds a.jpg and a.png: expected one picture of each name")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--scale", "0"], "--scale is 0"),
        (["--scale", "1.5"], "--scale"),
        (["--crop-px", "42"], "multiple of the scale, 4"),
        (["--crop-px", "0"], "--crop-px is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--workers", "0"], "--workers is 0"),
        (["--preset", "medium"], "--preset"),
        (["--list", "none.tsv"], "found no file at none.tsv"),
        (["--list", "none.tsv", "--crop-px", "512"], "leave out --crop-px"),
        (["--list", "none.tsv", "--scale", "2"], "leave out --crop-px and --scale"),
    ],
)
def test_options_that_cannot_be_are_refused(run, photos, tmp_path, options, part):
    assert refused(run(photos, tmp_path / "out", *options), part)
    assert not (tmp_path / "out").exists()


def test_a_list_is_whole_or_refused(run, tmp_path):
    Image.fromarray(texture(520, 520)).save(tmp_path / "a.png")
    Image.fromarray(texture(520, 520)).save(tmp_path / "b.png")
    for text, part in (("c.png\t0\t0", "found no photograph"), ("a.png\t0\t50", "expected 512 a side"),
                       ("a.png\t0\t0\na.png\t1\t1", "'a' twice")):  # fmt: skip
        (tmp_path / "list.tsv").write_text(f"file\tx\ty\nb.png\t0\t0\n{text}\n")
        assert refused(run(tmp_path, tmp_path / "out", "--list", tmp_path / "list.tsv"), part)
    (tmp_path / "list.tsv").write_text("file\tx\ty\nb.png\t0\t0\na.png\t0\t0\n")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    assert refused(run(tmp_path, tmp_path / "out", "--list", tmp_path / "list.tsv"), "a.png is damaged")
    assert not (tmp_path / "out").exists()


# Outputs


def test_existing_outputs_are_refused_unless_told(run, photos, tmp_path):
    assert run(photos, tmp_path / "out")[0] == 0
    before = tree(tmp_path / "out")
    assert refused(run(photos, tmp_path / "out", "--seed", 1), "7 outputs exist already", "pairs.tsv", "--overwrite")
    assert tree(tmp_path / "out") == before
    assert run(photos, tmp_path / "out", "--seed", 1, "--overwrite")[0] == 0
    after = tree(tmp_path / "out")
    assert after["test_HR/a.png"] == before["test_HR/a.png"] and after["test_LR/a.png"] != before["test_LR/a.png"]
    (tmp_path / "file").write_text("")
    assert refused(run(photos, tmp_path / "file"), "is a file")


def test_a_failure_leaves_no_half_file_and_no_table(run, photos, tmp_path, monkeypatch):
    """The second save meets a folder in its place."""
    (tmp_path / "out" / "test_LR" / "a.png").mkdir(parents=True)
    code, _, err = run(photos, tmp_path / "out", "--overwrite")
    assert code == 2 and "a.png" in err
    assert not list((tmp_path / "out").rglob("*.tmp")) and not (tmp_path / "out" / "pairs.tsv").exists()
    for path in (tmp_path / "out").rglob("*.png"):
        if path.is_file():
            read(path)


def test_pairs_train(run, photos, tmp_path):
    """What degrade writes is what data.pairs reads."""
    from training.config.shared import DataConfig
    from training.data.dataset import CropDataset

    assert run(photos, tmp_path / "out")[0] == 0
    crops = CropDataset(DataConfig(pairs=(str(tmp_path / "out"),)), 32, seed=0)
    assert crops.num_entries == 3
    lq, hq = crops[0]
    assert np.corrcoef(lq.flatten(), hq.flatten())[0, 1] > 0.5
