"""A step count visited before comes back at once, and only where it is the same thing."""

import gc

import pytest
import torch


@pytest.fixture
def visited(host, monkeypatch):
    """An empty cache in the sampler's place."""
    module = host.pack("nodes.run.latent_cache")
    cache = module.LatentCache()
    monkeypatch.setattr(host.pack("nodes.run.sampling_jobs"), "SAMPLED_LATENTS", cache)
    return cache


@pytest.fixture
def visit(host):
    return host.pack("nodes.run.latent_cache").SampledLatent


@pytest.fixture
def forwards(builtin):
    """How often the transformer ran."""
    count = []
    handle = builtin.model.model.diffusion_model.register_forward_pre_hook(lambda *_: count.append(1))
    yield count
    handle.remove()


def test_going_back_to_a_step_count_runs_no_model(visited, forwards, builtin, condition, photo, sample):
    made = condition(photo)
    first = {steps: sample(builtin.model, made.conditioning, made.latent, steps=steps) for steps in (1, 2, 4)}
    assert len(forwards) == 7
    for steps in (4, 1, 2):
        assert torch.equal(sample(builtin.model, made.conditioning, made.latent, steps=steps), first[steps])
    assert len(forwards) == 7


def test_results_handed_out_may_be_changed(visited, builtin, condition, photo, sample):
    made = condition(photo)
    first = sample(builtin.model, made.conditioning, made.latent)
    kept = first.clone()
    first.zero_()
    sample(builtin.model, made.conditioning, made.latent).zero_()
    assert torch.equal(sample(builtin.model, made.conditioning, made.latent), kept)


@pytest.mark.parametrize("change", ["seed", "tile", "image", "model", "prompt", "negative", "fidelity"])
def test_anything_else_runs_again(visited, forwards, builtin, condition, photo, sample, change):
    made = condition(photo)
    sample(builtin.model, made.conditioning, made.latent)
    before, model, inputs = len(forwards), builtin.model, {}
    if change == "seed":
        inputs = {"seed": 1}
    elif change == "fidelity":
        inputs = {"fidelity": 0.5}
    elif change == "tile":
        inputs = {"tile_px": 32, "overlap_px": 16}
    elif change == "image":
        made = condition(photo.flip(1))
    elif change == "model":
        model = builtin.model.clone()  # any node between loader and sampler makes another MODEL
    elif change == "prompt":
        made.conditioning = [[made.conditioning[0][0] + 1, made.conditioning[0][1]]]
    else:
        inputs = {"negative": made.conditioning}
    sample(model, made.conditioning, made.latent, **inputs)
    assert len(forwards) > before


def test_an_entry_knows_what_it_took(host, builtin, visit):
    cache = host.pack("nodes.run.latent_cache").LatentCache()
    cache.put(builtin.model, b"a", visit(torch.zeros(1), 2.5, 16))
    found = cache.get(builtin.model, b"a")
    assert (found.seconds, found.largest_piece) == (2.5, 16)
    assert cache.get(builtin.model, b"b") is cache.get(builtin.model, None) is None


def test_what_came_in_pieces_says_so_when_it_is_visited_again(host, visited, builtin, condition):
    """R8: the picture is the one that was cut, whatever memory there is by now."""
    card = {"area": 16 * 16}

    def hear(_module, inputs):
        if inputs[0].shape[-2] * inputs[0].shape[-1] > card["area"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    made = condition(torch.rand(2, 48, 48, 3, generator=torch.Generator().manual_seed(4)))
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    inputs = {"model": builtin.model, "conditioning": made.conditioning, "latent": made.latent, "sigmas": sigmas}
    handle = builtin.model.model.diffusion_model.register_forward_pre_hook(hear)
    try:
        first = host.run("TEASRSampler", **inputs)[0]
        card["area"] = 10**9
        again = host.run("TEASRSampler", **inputs)[0]
        fresh = host.run("TEASRSampler", **inputs, seed=1)[0]
    finally:
        handle.remove()
    assert torch.equal(first["samples"], again["samples"])
    pieces = [latent["teasr_notes"].largest_piece for latent in (first, again, fresh)]
    assert pieces == [12, 12, None]


def test_what_has_no_plain_content_is_not_remembered(host):
    digest = host.pack("nodes.run.latent_cache").digest
    assert digest([[torch.ones(2), {"a": 1, "b": [None, "x", 0.5]}]]) is not None
    assert digest([[torch.ones(2), {"control": object()}]]) is None
    assert digest(torch.ones(2)) != digest(torch.ones(2, 1)) != digest(torch.ones(2).bfloat16())
    assert digest([1], [2]) != digest([1, 2])


def test_memory_is_bounded_and_the_oldest_goes_first(host, builtin, visit):
    cache = host.pack("nodes.run.latent_cache").LatentCache(max_bytes=3 * 400)
    for k in range(3):
        cache.put(builtin.model, bytes([k]), visit(torch.full((100,), float(k))))
    assert cache.get(builtin.model, b"\0") is not None  # touched: now the newest
    cache.put(builtin.model, b"\3", visit(torch.zeros(100)))
    assert cache.get(builtin.model, b"\1") is None
    assert cache.get(builtin.model, b"\0").samples[0] == 0
    cache.put(builtin.model, b"\4", visit(torch.zeros(1000)))
    assert cache.get(builtin.model, b"\4") is None


def test_latents_of_a_model_that_is_gone_are_dropped(visited, builtin, visit):
    """Nothing can ask for them again, so that memory does not wait for the cache to be full."""
    gone = builtin.model.clone()
    for k in range(3):
        visited.put(gone, bytes([k]), visit(torch.ones(4)))
    visited.put(builtin.model, b"kept", visit(torch.ones(4)))
    assert len(visited.entries) == 4
    del gone
    gc.collect()
    visited.put(builtin.model, b"new", visit(torch.ones(4)))
    assert list(visited.entries) == [b"kept", b"new"]
