"""300 random pictures, sizes and settings through the command line's path: size, values, border, the same again.

All of them with a model that returns the picture it was given, so that the whole result is known; then with a random
transformer, and some with the built-in model.
"""

import types

import pytest
import torch

from helpers import random_runs
from helpers.tiny import model as tiny
from teasr_core.cli.request import restore_picture, target_size
from teasr_core.image.alpha import bleed_rgb, resize_alpha
from teasr_core.image.resize import resize
from teasr_core.picture_files.picture import Picture
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import Restorer, load_restorer
from teasr_core.sampling.schedule import manual_plan
from teasr_core.weight_files.base_file import build_velocity

COUNT = 300
BORDER_BOUND = 18 / 255  # the built-in model: 15.1 / 255 at most was seen, at a black and white edge in 31 x 36 px
RUNS = random_runs.random_runs(COUNT)
# `scale` and `megapixels` are the command line's names too.
FLAGS = {"scale": "scale", "mp": "megapixels", "width": "width", "height": "height"}


class ReturnsItsInput:
    """x̂ = z_lq at every step: what the sampler, tiles, blending and codec make of it must be the resized picture."""

    def __init__(self, transformer):
        self.transformer = transformer

    def __call__(self, z_t, t_cur, z_lq, t_tar):
        return (z_t - z_lq) / t_cur.view(-1, 1, 1, 1).clamp(min=1 / 64)


@pytest.fixture(scope="module")
def restorers(tmp_path_factory):
    base = tiny.read_tiny_base(tmp_path_factory.mktemp("base"))
    velocity = build_velocity(base)
    return types.SimpleNamespace(
        identity=Restorer(base, ReturnsItsInput(velocity.transformer), torch.float32),
        tiny=Restorer(base, velocity, torch.float32),
    )


def options_of(run):
    sizes = dict.fromkeys(("scale", "shortest", "longest", "width", "height", "megapixels"))
    sizes |= {FLAGS.get(name, run.mode): value for name, value in run.amounts.items()}
    args = types.SimpleNamespace(**sizes, max_megapixels=run.max_megapixels)
    size = target_size(args, run.width, run.height)
    assert run.size_is_right(size.width, size.height), (run, size)
    return RestoreOptions(size, run.strength, run.color_fix, run.color_strength, run.fidelity)


def opaque(run):
    """(rgb (B, 3, H, W), alpha (B, 1, H, W) or None) as the command line hands them on."""
    picture = run.picture()
    if run.channels == 4:
        return bleed_rgb(picture[:, :3], picture[:, 3:]), picture[:, 3:]
    return picture.expand(-1, 3, -1, -1).contiguous(), None


def restored(restorer, run, steps=None):
    """(found, resized), both (B, 3, H', W'), checked for what every result owes."""
    options, (rgb, _) = options_of(run), opaque(run)
    plan = manual_plan(steps or run.steps)
    found = restorer.restore(rgb, RestoreRequest(options, plan, run.seed, run.tile_px, run.overlap_px)).image
    assert found.shape == (run.batch, 3, options.size.height, options.size.width), run
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all()), run
    assert 0 <= float(found.min()) <= float(found.max()) <= 1, run
    return found, resize(rgb, options.size)


def check_the_last_alone(restorer, run, found, steps=None):
    """Again, and as one file of its own: the same pixels, bit for bit; grey stays grey, alpha its own size."""
    picture = run.picture()[-1:]
    rgb, alpha = (picture[:, :3], picture[:, 3:]) if run.channels == 4 else (picture.expand(-1, 3, -1, -1), None)
    source = Picture(rgb.contiguous(), alpha, is_grey=run.channels == 1)
    args = types.SimpleNamespace(seed=run.seed, tile_px=run.tile_px, overlap_px=run.overlap_px)
    options = options_of(run)
    alone, _ = restore_picture(restorer, source, options, manual_plan(steps or run.steps), args)
    if run.channels == 1:
        luma = 0.299 * found[-1:, :1] + 0.587 * found[-1:, 1:2] + 0.114 * found[-1:, 2:]
        assert float((alone.rgb - luma).abs().max()) <= 1e-6, run
    else:
        assert torch.equal(alone.rgb, found[-1:]), run
    if alpha is not None:
        assert torch.equal(alone.alpha, resize_alpha(alpha, options.size)), run


def test_the_runs_are_the_same_every_time_and_cover_what_they_say():
    assert random_runs.random_runs(COUNT) == RUNS
    assert random_runs.random_runs(COUNT, seed=1) != RUNS
    for name, values in (("kind", random_runs.KINDS), ("mode", random_runs.MODES), ("color_fix", random_runs.FIXES),
                         ("channels", random_runs.CHANNELS), ("batch", (1, 2, 3))):  # fmt: skip
        for value in values:
            assert sum(getattr(run, name) == value for run in RUNS) >= COUNT // 10, (name, value)
    assert sum(1 in run.expected or 1 in (run.width, run.height) for run in RUNS) >= 20
    assert sum(run.width % 2 == run.height % 2 == 1 for run in RUNS) >= 50
    assert max(run.steps for run in RUNS) > 20
    assert sum(0 < run.tile_px < max(run.expected) for run in RUNS) >= 50
    assert sum(run.strength == 0 for run in RUNS) >= 30
    assert max(run.seed for run in RUNS) > 2**63


def test_a_model_that_returns_its_input_gives_the_resize_up_to_the_border(restorers):
    worst = 0.0
    for run in RUNS:
        found, resized = restored(restorers.identity, run)
        worst = max(worst, float((found - resized).abs().max()))
        assert random_runs.border_artefact(found, resized) <= 1e-4, run
        check_the_last_alone(restorers.identity, run, found)
    print(f"largest difference from the resize over {COUNT} runs: {worst:.1e}")
    assert worst <= 1e-4


def test_a_random_transformer_gives_the_size_finite_and_the_same_again(restorers):
    for index, run in enumerate(RUNS):
        steps = min(run.steps, 2)
        found, _ = restored(restorers.tiny, run, steps)
        if index % 6 == 0:
            check_the_last_alone(restorers.tiny, run, found, steps)


def test_the_built_in_model_leaves_no_border():
    restorer = load_restorer("fp32")
    worst = 0.0
    chosen = [run for run in RUNS if min(run.expected) >= 12 and run.kind != "noise" and run.strength > 0][:10]
    assert len(chosen) == 10
    for run in chosen:
        found, resized = restored(restorer, run, steps=min(run.steps, 2))
        value = random_runs.border_artefact(found, resized)
        print(f"{run.kind} {run.mode} {run.expected} tile {run.tile_px}: {255 * value:.2f} / 255")
        worst = max(worst, value)
    assert worst <= BORDER_BOUND


# Bite


def plant_black_line(image):
    image[..., 0] = 0.0


def plant_flat_line(image):
    image[:, :, -1] = image[:, :, -1].mean()


def plant_repeated_line(image):
    image[..., -1] = image[..., 0]


@pytest.mark.parametrize("plant", [plant_black_line, plant_flat_line, plant_repeated_line])
def test_the_measure_sees_one_bad_line(restorers, plant):
    run = next(run for run in RUNS if run.kind == "photo" and min(run.expected) >= 24 and run.channels == 3)
    found, resized = restored(restorers.identity, run)
    plant(found)
    assert random_runs.border_artefact(found, resized) > BORDER_BOUND


def test_the_size_check_sees_one_pixel():
    for run in RUNS:
        if run.max_megapixels == 0:
            width, height = run.expected
            assert run.size_is_right(width, height)
            assert not run.size_is_right(width + 1, height)
            assert not run.size_is_right(width, height - 1)
