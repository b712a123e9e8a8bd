"""Tiles as a velocity: exact where the velocity is local, noise and condition cropped alike (R7)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import model as tiny
from teasr_core.errors import InputError
from teasr_core.sampling.sampler import initial_noise, sample
from teasr_core.sampling.schedule import linear_taus
from teasr_core.sampling.tiled_velocity import TiledVelocity
from teasr_core.tiling import (
    AUTO_OVERLAP_PX,
    AUTO_TILE_PX,
    TilePlan,
    blend_window,
    border_window,
    convert_in_tiles,
    plan_codec_tiles,
    plan_tiles,
    tile_in_latent,
    tile_offsets,
)

MULTIPLE = 4


def local(z_t, t_cur, z_lq, t_tar):
    """Elementwise, so tiles cannot change it."""
    return torch.sin(2 * z_t) * t_cur.reshape(-1, 1, 1, 1) + z_lq**2 - t_tar.reshape(-1, 1, 1, 1)


@st.composite
def layouts(draw):
    """(height, width, tile, overlap) in latent pixels, all as `restore` would give them."""
    tile = MULTIPLE * draw(st.integers(1, 8))
    overlap = (MULTIPLE // 2) * draw(st.integers(0, tile // MULTIPLE))
    height, width = (MULTIPLE * draw(st.integers(1, 24)) for _ in range(2))
    return height, width, tile, overlap


@settings(max_examples=300, deadline=None)
@given(layouts())
def test_plans_cover_every_pixel_with_equal_tiles_on_the_token_grid(layout):
    height, width, tile, overlap = layout
    plan = plan_tiles(height, width, tile, overlap, MULTIPLE)
    assert plan.count == len(plan.rows) * len(plan.columns)
    for size, side, offsets in ((height, plan.height, plan.rows), (width, plan.width, plan.columns)):
        assert side == min(tile, size)
        assert side % MULTIPLE == 0
        assert offsets[0] == 0
        assert offsets[-1] + side == size
        assert all(offset % (MULTIPLE // 2) == 0 for offset in offsets)
        steps = [b - a for a, b in itertools.pairwise(offsets)]
        assert all(0 < step <= side - overlap for step in steps)  # rising, at least `overlap` shared
        fewest = 1 if tile >= size else -(-(size - overlap) // (tile - overlap))
        assert len(offsets) == fewest


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_weights_are_positive_and_windows_add_up(layout):
    height, _, tile, overlap = layout
    offsets = tile_offsets(height, tile, overlap, MULTIPLE // 2)
    side = min(tile, height)
    total = torch.zeros(height)
    for offset in offsets:
        window = blend_window(side, offset, offsets)
        assert window.shape == (side,)
        assert float(window.min()) > 0
        assert float(window.max()) <= 1
        total[offset : offset + side] += window
    assert float(total.min()) > 0
    if all(b - a >= side / 2 for a, b in itertools.pairwise(offsets)):
        assert torch.allclose(total, torch.ones(height), atol=1e-6)  # linear ramps of two neighbours add up to 1


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(1, 2))
def test_tiled_equals_untiled_for_a_local_velocity(layout, batch):
    height, width, tile, overlap = layout
    z_t, z_lq = torch.randn(2, batch, 3, height, width)
    t_cur, t_tar = torch.rand(2, batch)
    tiled = TiledVelocity(local, plan_tiles(height, width, tile, overlap, MULTIPLE))
    found = tiled(z_t, t_cur, z_lq, t_tar)
    assert found.shape == z_t.shape
    assert torch.allclose(found, local(z_t, t_cur, z_lq, t_tar), rtol=0, atol=1e-6 * 16)


def test_a_whole_sampling_in_tiles_equals_the_untiled_one():
    noise, z_lq = initial_noise(0, 3, 20, 36), torch.randn(1, 3, 20, 36, generator=tiny.generator(1))
    plan = plan_tiles(20, 36, 8, 2, MULTIPLE)
    tiled = sample(TiledVelocity(local, plan), noise, z_lq, linear_taus(4))
    assert torch.allclose(tiled, sample(local, noise, z_lq, linear_taus(4)), rtol=0, atol=1e-5)


def test_noise_and_condition_are_cropped_alike_and_times_passed_on():
    height, width = 20, 28
    place = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    corners, t_cur, t_tar = [], torch.tensor([0.7]), torch.tensor([0.3])

    def spy(z_t, cur, z_lq, tar):
        assert torch.equal(z_t[:, :1], z_lq[:, :1])
        assert z_t.shape == (1, 2, 8, 8)
        assert cur is t_cur
        assert tar is t_tar
        corners.append(divmod(int(z_t[0, 0, 0, 0]), width))
        return z_t

    plan = plan_tiles(height, width, 8, 2, MULTIPLE)
    out = TiledVelocity(spy, plan)(place.repeat(1, 2, 1, 1), t_cur, place.repeat(1, 2, 1, 1), t_tar)
    assert corners == [(y, x) for y in plan.rows for x in plan.columns]
    assert torch.allclose(out, place.repeat(1, 2, 1, 1), rtol=1e-6)


def test_one_tile_is_the_velocity_itself():
    velocity = tiny.velocity()
    z_t, z_lq = tiny.latents()
    plan = plan_tiles(8, 12, 12, 4, MULTIPLE)
    assert plan == TilePlan(8, 12, (0,), (0,))
    times = torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.0])
    assert torch.equal(
        TiledVelocity(velocity, plan)(z_t, times[0], z_lq, times[1]), velocity(z_t, times[0], z_lq, times[1])
    )


def test_the_callback_runs_before_each_tile_and_may_stop():
    calls = []

    def stop(done, count):
        calls.append((done, count))
        if done == 2:
            raise InterruptedError

    z = torch.zeros(1, 3, 16, 16)
    with pytest.raises(InterruptedError):
        TiledVelocity(local, plan_tiles(16, 16, 8, 0, MULTIPLE), stop)(z, torch.ones(1), z, torch.zeros(1))
    assert calls == [(0, 4), (1, 4), (2, 4)]


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (2, 0), (6, 0), (-8, 0), (8, 1), (8, 6), (8, -2)])
def test_impossible_tiles_are_refused(tile, overlap):
    with pytest.raises(InputError, match="expected a multiple"):
        plan_tiles(32, 32, tile, overlap, MULTIPLE)


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(8, 0), (24, 0), (-16, 0), (64, 4), (64, 40), (64, -8), (32, 24)])
def test_impossible_tiles_in_pixels_are_refused(tile_px, overlap_px):
    with pytest.raises(InputError, match="_px is"):
        tile_in_latent(tile_px, overlap_px, 4, MULTIPLE)


def test_tiles_in_pixels():
    assert tile_in_latent(0, 0, 4, MULTIPLE) == (AUTO_TILE_PX // 4, AUTO_OVERLAP_PX // 4)
    assert tile_in_latent(0, 0, 8, MULTIPLE, auto_px=(1024, 128)) == (128, 16)
    assert tile_in_latent(128, 64, 4, MULTIPLE) == (32, 16)


@pytest.mark.parametrize("tile_px", [16, 32, 48])
def test_a_small_tile_works_with_the_automatic_overlap(tile_px):
    """0 is automatic for each of the two, so it must fit the other."""
    tile, overlap = tile_in_latent(tile_px, 0, 4, MULTIPLE)
    plan_tiles(64, 64, tile, overlap, MULTIPLE)


def test_tile_lines_do_not_show_on_a_flat_image():
    """With a real network on a flat condition, gradients at tile lines are like those elsewhere."""
    size, tile, overlap = 48, 16, 8
    plan = plan_tiles(size, size, tile, overlap, MULTIPLE)
    noise, z_lq = initial_noise(0, 48, size, size), torch.full((1, 48, size, size), 0.1)
    velocity = tiny.velocity(use_lora=True)
    codec, taus = tiny.codec(), linear_taus(2)
    tiled = codec.decode(sample(TiledVelocity(velocity, plan), noise, z_lq, taus))
    whole = codec.decode(sample(velocity, noise, z_lq, taus))
    assert bool(torch.isfinite(tiled).all())
    assert float((tiled - whole).abs().max()) > 1e-4  # tiling is no identity for attention
    gradient = (tiled[..., 1:] - tiled[..., :-1]).square().mean(dim=(0, 1, 2))  # energy between x and x+1
    edges = {4 * edge - 1 for x in plan.columns for edge in (x, x + tile) if 0 < edge < size}
    block_lines = [x for x in range(3, 4 * size - 1, 4) if x not in edges]  # the codec's own block borders
    at_tiles = gradient[sorted(edges)].mean()
    assert float(at_tiles / gradient[block_lines].mean()) <= 1.5


def test_a_step_between_tiles_is_spread_over_their_overlap():
    """The worst case for seams: every tile has a level of its own."""

    def level(z_t, *_):
        return z_t.mean(dim=(2, 3), keepdim=True).expand_as(z_t)

    def largest_jump(overlap):
        z = torch.randn(1, 3, 48, 48, generator=tiny.generator(0))
        v = TiledVelocity(level, plan_tiles(48, 48, 16, overlap, MULTIPLE))(z, torch.ones(1), z, torch.zeros(1))
        return float((v[..., 1:] - v[..., :-1]).abs().max())

    assert largest_jump(8) < 0.15 * largest_jump(0)


# A part of the picture


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 2**31), st.integers(1, 3))
def test_tiles_that_hold_no_wanted_pixel_are_not_computed(layout, seed, steps):
    """The calls are counted; every wanted pixel is as in the whole run, and without a tile the LQ latent stays."""
    height, width, tile, overlap = layout
    plan = plan_tiles(height, width, tile, overlap, MULTIPLE)
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.rand(height, width, generator=generator) < 0.01
    calls = []

    def counted(z_t, *args):
        calls.append(z_t.shape)
        return local(z_t, *args)

    z_lq = torch.randn(1, 2, height, width, generator=generator)
    noise, taus = initial_noise(seed, 2, height, width), linear_taus(steps)
    tiled = TiledVelocity(counted, plan, wanted=wanted)
    found = sample(tiled, noise, z_lq, taus)
    windows = [
        (slice(y, y + plan.height), slice(x, x + plan.width))
        for y in plan.rows
        for x in plan.columns
        if wanted[y : y + plan.height, x : x + plan.width].any()
    ]
    assert len(calls) == steps * len(windows)
    covered = torch.zeros(height, width, dtype=torch.bool)
    for window in windows:
        covered[window] = True
    whole = sample(local, noise, z_lq, taus)
    assert torch.allclose(found[..., covered], whole[..., covered], atol=1e-4)
    assert torch.allclose(found[..., ~covered], z_lq[..., ~covered], atol=1e-5)


def test_the_callback_counts_the_computed_tiles_alone():
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[0, 0] = wanted[15, 15] = True
    seen = []
    tiled = TiledVelocity(local, plan_tiles(16, 16, 8, 0, MULTIPLE), lambda *at: seen.append(at), wanted)
    z = torch.zeros(1, 1, 16, 16)
    tiled(z, torch.ones(1), z, torch.zeros(1))
    assert seen == [(0, 2), (1, 2)]


def test_a_border_weights_tiles_by_the_distance_to_their_nearest_edge():
    window = border_window(6, 9, 3)
    for y in range(6):
        for x in range(9):
            assert float(window[y, x]) == pytest.approx(min(3, y + 1, 6 - y, x + 1, 9 - x) / 3)


@pytest.mark.parametrize("size", [(28, 28), (28, 16), (32, 44)])
def test_a_velocity_blended_by_borders(size):
    """Against a loop over tiles and pixels: weights of any kind leave what all tiles agree on as it is."""
    plan = plan_tiles(*size, 16, 4, 4, border=6)
    z = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    shifts = iter(range(100))

    def velocity(z_t, t_cur, z_lq, t_tar):
        return z_t + next(shifts)

    found = TiledVelocity(velocity, plan)(z, torch.ones(1), z, torch.zeros(1))
    total, weights = torch.zeros_like(z), torch.zeros(size)
    for k, (y, x) in enumerate((y, x) for y in plan.rows for x in plan.columns):
        window = border_window(plan.height, plan.width, 6)
        place = (..., slice(y, y + plan.height), slice(x, x + plan.width))
        total[place] += window * (z + k)[place]
        weights[place] += window
    assert torch.allclose(found, total / weights, atol=1e-5)


def test_a_codec_blended_by_borders():
    plan = plan_codec_tiles(28, 28, 16, 4, border=6)
    assert plan == TilePlan(16, 16, (0, 12), (0, 12), 6)
    source = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    made = convert_in_tiles(lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3), source, plan, 1, 2)
    assert torch.allclose(made, source.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-6)
    shifts = iter((0.0, 0.0, 1.0, 1.0))  # the lower tiles are lighter: a column shows the weights
    lighter = convert_in_tiles(lambda t: torch.zeros(1, 1, 32, 32) + next(shifts), source, plan, 1, 2)[0, 0, :, 10]
    upper, lower = border_window(32, 32, 12)[:, 10], border_window(32, 32, 12)[:, 10]
    assert torch.equal(lighter[:24], torch.zeros(24)) and torch.equal(lighter[32:], torch.ones(24))
    assert torch.allclose(lighter[24:32], lower[:8] / (upper[24:] + lower[:8]))
