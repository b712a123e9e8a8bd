"""Previews: one JPEG, LQ | 1 | 2 | 4 | 8 steps | HQ, from the averaged weights, without disturbing the run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny.run import MODEL, write_photos
from teasr_core.codec.dct import DctCodec
from teasr_core.errors import InputError
from teasr_core.image.labelled_sheet import GAP_PX, TEXT_PX
from teasr_core.picture_files.picture import Picture
from teasr_core.picture_files.write import save_picture
from training.distill.trainer import Distiller
from training.pretrain.model import PretrainModel
from training.pretrain.trainer import Pretrainer
from training.run.preview import CROP_PX, check_preview_images, write_preview


def large_photos(folder: Path) -> list[Path]:
    write_photos(folder)
    paths = sorted(folder.iterdir())
    for path in paths:
        Image.open(path).resize((200, 160)).save(path)
    return paths


def test_an_untrained_model_shows_the_lq_image_at_every_step(tmp_path):
    photographs = large_photos(tmp_path / "photos")
    state = torch.get_rng_state()
    codec = DctCodec([0.0] * 48, [0.5] * 48)
    write_preview(tmp_path / "preview.jpg", PretrainModel(MODEL, seed=0).eval().velocity(), codec, photographs)
    assert torch.equal(torch.get_rng_state(), state)
    with Image.open(tmp_path / "preview.jpg") as image:
        side = 2 * CROP_PX
        assert image.size == (6 * side + 5 * GAP_PX, TEXT_PX + 2 * side + GAP_PX)
        pixels = np.asarray(image).astype(int)
    assert (pixels[:TEXT_PX] < 128).any()  # the labels
    columns = [pixels[TEXT_PX:, left : left + side] for left in range(0, 6 * side + 5 * GAP_PX, side + GAP_PX)]
    lq, *restored, hq = (np.concatenate((column[:side], column[-side:]))[::2, ::2] for column in columns)
    for steps in restored:
        assert np.abs(steps - lq).mean() < 3  # JPEG, and bf16 in the network
    assert np.abs(hq - lq).mean() > 0.5


def test_a_photograph_is_read_as_everywhere_else(tmp_path):
    """Upright, 16 bits as the nearest 8, and transparent parts grey: the same preview as of the plain picture."""
    state = np.random.default_rng(0)
    pixels = state.integers(0, 256, (140, 170, 3), dtype=np.uint8)
    alpha = np.full((140, 170, 1), 255, np.uint8)
    alpha[:70] = 0
    seen = np.where(alpha == 0, np.uint8(128), pixels)
    Image.fromarray(seen).save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    Image.fromarray(np.rot90(np.dstack([pixels, alpha]))).save(tmp_path / "turned.png", exif=exif)
    deep = torch.from_numpy(seen.astype(np.float32) / 255).permute(2, 0, 1)[None]
    save_picture(Picture(deep, bit_depth=16), tmp_path / "deep.tif")
    check_preview_images([str(tmp_path / name) for name in ("plain.png", "turned.png", "deep.tif")])
    velocity, codec = PretrainModel(MODEL, seed=0).eval().velocity(), DctCodec([0.0] * 48, [0.5] * 48)
    drawn = []
    for name in ("plain.png", "turned.png", "deep.tif"):
        write_preview(tmp_path / "preview.jpg", velocity, codec, [tmp_path / name])
        drawn.append((tmp_path / "preview.jpg").read_bytes())
    assert drawn[1] == drawn[0] and drawn[2] == drawn[0]


def test_previews_do_not_change_the_run(config, tmp_path):
    from training.run.checkpoint import list_checkpoints, load_checkpoint

    photographs = tuple(str(path) for path in large_photos(tmp_path / "held_out"))
    plain, shown = config("plain"), config("shown", preview_every=2, preview_images=photographs)
    for run in (plain, shown):
        Pretrainer(run).train(last_step=4)
    assert sorted(p.name for p in (tmp_path / "shown").glob("*.jpg")) == [
        "preview_00000002.jpg",
        "preview_00000004.jpg",
    ]
    found, wanted = (load_checkpoint(list_checkpoints(Path(run.run.output_dir))[-1])[0] for run in (shown, plain))
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jpg", "there is no such file"),
        ("text.png", "it cannot be read"),
        ("half.jpg", "it cannot be read"),
        ("small.png", "it has 127x200 px, expected at least 128 px a side"),
    ],
)
def test_photographs_that_give_no_preview_are_refused_at_the_start(config, distillation, tmp_path, name, message):
    """Not at the first preview, hours later."""
    good, *_ = large_photos(tmp_path / "held_out")
    (tmp_path / "text.png").write_text("hello")
    Image.open(good).save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:-800])
    Image.open(good).resize((127, 200)).save(tmp_path / "small.png")
    images = (str(good), str(tmp_path / name))
    for trainer, run in (
        (Pretrainer, config(preview_images=images)),
        (Distiller, distillation(run={"preview_images": images})),
    ):
        with pytest.raises(InputError, match=rf"run\.preview_images names '.*{name}': {message}"):
            trainer(run)
