"""R8: what does not fit is cut smaller, finished tiles are kept, and the plan follows from the host's estimate."""

import logging
from collections import Counter
from dataclasses import replace

import pytest
import torch


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture
def card(builtin):
    """The built-in model on a card that holds `card.area` latent pixels; `card.calls` are the sizes it was given.

    `card.shrink_at`: (number of calls, area): another program takes the rest then.
    """

    class Card:
        def __init__(self):
            self.area, self.error, self.calls, self.shrink_at = 10**9, torch.OutOfMemoryError, [], (-1, 0)

        def hear(self, _module, inputs):
            if len(self.calls) == self.shrink_at[0]:
                self.area = self.shrink_at[1]
            height, width = inputs[0].shape[-2:]
            self.calls.append((height, width))
            if height * width > self.area:
                raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")

        def failed(self):
            return Counter(size for size in self.calls if size[0] * size[1] > self.area)

    card = Card()
    handle = builtin.model.model.diffusion_model.register_forward_pre_hook(card.hear)
    yield card
    handle.remove()


@pytest.fixture
def photos():
    """Two pictures that condition(..., factor=2) makes 128 px: 32 latent pixels, one tile."""
    return torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(4))


def test_an_untiled_picture_goes_on_in_pieces(builtin, condition, sample, card, photos):
    """The pieces are those of tile_px 64 with a quarter of overlap, to the last bit of rounding."""
    made = condition(photos)
    assert made.latent["samples"].shape[-2:] == (32, 32)
    expected = sample(builtin.model, made.conditioning, made.latent, steps=3, tile_px=64, overlap_px=16)
    whole = sample(builtin.model, made.conditioning, made.latent, steps=3)
    card.calls.clear()
    card.area = 20 * 20
    found = sample(builtin.model, made.conditioning, made.latent, steps=3)
    assert relative(found, expected) <= 1e-5
    assert relative(found, whole) > 1e-3  # another tiling is another picture, within the tiling error
    assert card.failed() == {(32, 32): 1}  # once in three steps of two pictures
    assert card.calls[1:] == [(16, 16)] * (9 * 3 * 2)


def test_finished_tiles_are_kept(builtin, condition, sample, card, photos):
    """Memory shrinks after the second of nine tiles: those two are not sampled again."""
    made = condition(photos[:1])
    card.shrink_at = (2, 8 * 8)
    sample(builtin.model, made.conditioning, made.latent, steps=1, tile_px=64, overlap_px=16)
    assert card.calls == [(16, 16)] * (2 + 1) + [(8, 8)] * (7 * 4)  # two done, one failed, seven in pieces


def test_nothing_small_enough_is_one_sentence_and_the_next_run_works(host, builtin, condition, sample, card, photos):
    made = condition(photos[:1])
    expected = sample(builtin.model, made.conditioning, made.latent)
    card.area = 0
    with pytest.raises(host.pack("teasr_core.errors").InputError, match="memory ran out even for a piece of 4"):
        sample(builtin.model, made.conditioning, made.latent)
    card.area = 10**9
    assert torch.equal(sample(builtin.model, made.conditioning, made.latent), expected)


def test_what_the_host_calls_out_of_memory_counts_too(host, builtin, condition, sample, card, photos, monkeypatch):
    class AllocatorError(Exception):
        """As a host on another kind of card has it."""

    made = condition(photos[:1])
    card.area, card.error = 20 * 20, AllocatorError
    with pytest.raises(AllocatorError):
        sample(builtin.model, made.conditioning, made.latent)
    monkeypatch.setattr(host.model_management, "OOM_EXCEPTION", AllocatorError)
    sample(builtin.model, made.conditioning, made.latent)


def test_the_report_says_it(host, builtin, condition, card, photos):
    made = condition(photos[:1])
    card.area = 20 * 20
    size = host.pack("teasr_core.image.resize").TargetSize(128, 128)

    def line(**inputs):
        sigmas = host.run("TEASRStepSelector", steps=1)[0]
        latent = host.run(
            "TEASRSampler", model=builtin.model, conditioning=made.conditioning, latent=made.latent, sigmas=sigmas,
            **inputs,
        )[0]  # fmt: skip
        return replace(latent["teasr_notes"], size=size).report().line()

    assert "128x128, 1 tile, 1 step" in line()
    assert line().endswith("memory ran out: tiles were cut to 16 latent pixels")
    fitting = line(tile_px=64, overlap_px=16)
    assert "128x128, 9 tiles of 64 px, 1 step" in fitting and "memory ran out" not in fitting


def test_choosing_the_steps_and_sampling_share_what_did_not_fit(host, builtin, condition, card, photos):
    made = condition(photos)
    card.area = 20 * 20
    host.run("TEASRUpscaleAutoSampler", model=builtin.model, conditioning=made.conditioning, latent=made.latent)
    assert card.failed() == {(32, 32): 1}


def test_a_wired_model_is_cut_smaller_only_where_memory_is_short(host, qwen, monkeypatch, caplog):
    tiles = host.pack("nodes.run.tile_plan")
    latent = (256, 192)  # 2048 x 1536 px

    def plan(free, tile_px=0):
        monkeypatch.setattr(tiles, "available_bytes", lambda _device: free)
        return tiles.plan_model_tiles(qwen, *latent, tile_px, 0)

    needed = tiles.forward_memory(qwen, 128, 128)
    for free in (needed, 100 * needed, float("inf")):
        assert plan(free).height == 128  # never more than the size it was made for
    assert not caplog.text
    with caplog.at_level(logging.INFO):
        short = plan(0.9 * needed)
    assert (short.height, short.width) == (64, 64)
    assert f"TEASR: {short.count} tiles of 512 px: 1024 px would take {needed / 2**30:.1f} GiB, " in caplog.text
    assert plan(0.2 * needed).height == plan(0.0).height == 32  # 256 px is the least
    assert plan(0.0, tile_px=1024).height == 128  # by hand is by hand
    monkeypatch.setattr(tiles, "available_bytes", lambda _device: tiles.forward_memory(qwen, 96, 96))
    assert tiles.plan_model_tiles(qwen, 96, 96, 0, 0).count == 1  # a small picture needs less than a tile


def test_the_estimate_is_the_hosts_own(host, qwen):
    """What ComfyUI's sampler asks the loader for, condition tokens counted."""
    from comfy.sampler_helpers import estimate_memory

    shape = (1, 16, 1, 24, 32)
    conds = {"positive": [{"reference_latents": [torch.zeros(shape)]}]}
    found = host.pack("nodes.run.tile_plan").forward_memory(qwen, 24, 32)
    assert found == estimate_memory(qwen, shape, conds)[1] > estimate_memory(qwen, shape, {"positive": [{}]})[1]


def test_the_built_in_model_keeps_its_tiles(host, builtin, monkeypatch):
    tiles = host.pack("nodes.run.tile_plan")
    before = tiles.plan_model_tiles(builtin.model, 64, 64, 0, 0)
    monkeypatch.setattr(tiles, "available_bytes", lambda _device: 0.0)
    assert tiles.plan_model_tiles(builtin.model, 64, 64, 0, 0) == before


def test_room_counts_what_the_host_can_unload(host, qwen, monkeypatch):
    """The second run, with the model loaded, has the room of the first. A CPU has none of its own."""
    memory, management = host.pack("nodes.host.memory"), host.model_management
    assert memory.available_bytes(torch.device("cpu")) == memory.available_bytes(None) == float("inf")
    device, held = torch.device("cuda", 0), {"bytes": 0}
    qwen.load_device = device
    qwen.model.model_loaded_weight_memory = 5 * 2**30
    monkeypatch.setattr(management, "get_free_memory", lambda _device: 8 * 2**30 - held["bytes"])
    monkeypatch.setattr(management, "loaded_models", lambda: [qwen] if held["bytes"] else [])
    before = memory.available_bytes(device)
    held["bytes"] = 5 * 2**30
    assert memory.available_bytes(device) == before == 8 * 2**30 - management.extra_reserved_memory()
