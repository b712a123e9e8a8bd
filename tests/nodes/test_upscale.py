"""TEASRUpscale through ComfyUI's own executor: the graph it expands into, what is cached, what comes out."""

import itertools

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt

CACHES = ("RAM_PRESSURE", "CLASSIC", "LRU")  # the host's default, --cache-classic, --cache-lru


def by_hand(host, builtin, image, steps=2, seed=7, strength=1.0, color_fix="wavelet", factor=2.0):
    """The core's own path (`restore.postprocess` and friends), fed by the nodes' sampler."""
    restore, target_size = host.pack("teasr_core.restore"), host.pack("teasr_core.image.target_size")
    size = target_size.size_by_factor(image.shape[2], image.shape[1], factor)
    resized = host.pack("teasr_core.image.resize").resize(image.movedim(-1, 1).contiguous(), size)
    made = host.run(
        "TEASRCondition",
        image=image,
        vae=builtin.vae,
        conditioning=builtin.conditioning,
        size={"size": "factor", "scale": factor},
    )
    sigmas = host.run("TEASRStepSelector", steps=steps)[0]
    latent = host.run(
        "TEASRSampler", model=builtin.model, conditioning=made[0], latent=made[2], sigmas=sigmas, seed=seed
    )
    decoded = builtin.vae.decode(latent[0]["samples"]).movedim(-1, 1)
    options = restore.RestoreOptions(size, strength, color_fix)
    return restore.postprocess(decoded, resized, options).movedim(1, -1), resized.movedim(1, -1)


def test_one_node_equals_the_core_by_hand(host, builtin, executor, photo):
    run = executor()
    for inputs in ({}, {"steps": 4, "seed": 3}, {"color_fix": "lab"}, {"strength": 0.4}):
        expected = by_hand(host, builtin, photo, **inputs)[0]
        got = run(upscale_prompt(**inputs))
        assert got.image.shape == (1, 34, 46, 3)
        assert got.image.dtype == torch.float32
        assert (got.image - expected).abs().max() <= 1e-6, inputs
        assert not got.mask.any()
        assert got.mask.shape == (1, 34, 46)


def test_nothing_wired_is_the_built_in_model(executor):
    run = executor()
    got = run(upscale_prompt(builtin=False))
    assert got.image.shape == (1, 34, 46, 3)
    assert "TEASRLoadBuiltin" in run.ran


@pytest.mark.parametrize("cache", CACHES)
def test_moving_steps_reruns_the_sampler_only(executor, cache):
    """R12: no loading, no resize, no encode; the schedule, the sampler and what follows it."""
    run = executor(cache)
    first = run(upscale_prompt(builtin=False, steps=1))
    assert run.ran.count("TEASRLoadBuiltin") == run.ran.count("TEASRCondition") == 1
    after = {
        "TEASRUpscale",
        "TEASRStepSelector",
        "TEASRSampler",
        "TEASRUpscaleDecode",
        "TEASRUpscaleOutput",
        "TestKeep",
    }
    for steps in (2, 3):
        moved = run(upscale_prompt(builtin=False, steps=steps))
        assert run.ran == sorted(after)
        assert "encode 0.0 s" in moved.report
        assert f"{steps} steps" in moved.report
        assert not torch.equal(moved.image, first.image)
    run(upscale_prompt(builtin=False, steps=3, strength=0.5))
    assert run.ran == sorted({"TEASRUpscale", "TEASRUpscaleOutput", "TestKeep"})  # strength re-runs no model at all
    run(upscale_prompt(builtin=False, steps=3, strength=0.5))
    assert run.ran in (["TestKeep"], [])


def test_strength_0_runs_no_model_and_is_the_plain_resize(host, builtin, executor, photo):
    """docs/decisions.md#strength-and-colour"""
    run = executor()
    got = run(upscale_prompt(builtin=False, strength=0.0))
    assert not {"TEASRLoadBuiltin", "TEASRCondition", "TEASRSampler", "TEASRUpscaleDecode"} & set(run.ran)
    assert torch.equal(got.image, by_hand(host, builtin, photo)[1])
    assert got.report.startswith("46x34, 0 tiles, 0 steps | peak ")


def test_strength_is_monotone(host, builtin, executor, photo):
    run = executor()
    resized = by_hand(host, builtin, photo)[1]
    changes = [
        float((run(upscale_prompt(strength=s)).image - resized).abs().mean()) for s in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert changes[0] == 0
    assert all(a < b for a, b in itertools.pairwise(changes))


def test_a_batch_equals_each_alone(executor):
    run = executor()
    together = run(upscale_prompt(source={"count": 3}.items())).image
    assert together.shape[0] == 3
    for k in range(3):
        assert torch.equal(together[k : k + 1], run(upscale_prompt(source={"first": k}.items())).image), k


def test_a_list_of_mixed_sizes(executor):
    """R21: every picture on its own, in order."""
    run = executor()
    prompt = upscale_prompt()
    prompt["in"] = {"class_type": "TestSourceList", "inputs": {}}
    run(prompt)
    assert [tuple(result.image.shape) for result in run.results] == [(1, 34, 46, 3), (1, 18, 28, 3)]
    first = run.results[0].image
    assert torch.equal(first, run(upscale_prompt()).image)


def test_a_lora_without_prompt_fails_only_where_its_conditioning_is_wired(executor, builtin, write_lora):
    """Through the host: the MODEL output works; the other raises one sentence."""
    run = executor()
    name = write_lora(builtin.model, "promptless.safetensors", use_prompt=False)
    prompt = upscale_prompt()
    prompt["lora"] = {
        "class_type": "TEASRApplyLoRA",
        "inputs": {"model": ["load", 0], "lora_name": name, "lora_strength": 1.0, "allow_other_base": False},
    }
    prompt["up"]["inputs"]["model"] = ["lora", 0]
    assert not torch.equal(run(prompt).image, run(upscale_prompt()).image)
    prompt["up"]["inputs"]["conditioning"] = ["lora", 1]
    assert run(prompt) is None
    assert "promptless.safetensors holds no prompt embedding" in run.errors[0]


def test_mask_comes_out_at_the_new_size(executor):
    run = executor()
    got = run(upscale_prompt(source={"hole": True}.items(), mask=["in", 1]))
    assert got.mask.shape == (1, 34, 46)
    assert got.mask[0, 10:16, 10:16].min() > 0.9  # Lanczos rings inside so small a hole
    assert got.mask[0, -6:].max() == 0
    assert not torch.equal(got.image, run(upscale_prompt()).image)  # the hole's colour was filled before the model


def test_tiles_of_the_one_node(executor):
    run = executor()
    got = run(upscale_prompt(tile_px=32, overlap_px=16))
    assert "4 tiles" in got.report
    assert not torch.equal(got.image, run(upscale_prompt()).image)


def test_the_report_names_size_tiles_steps_dtype_and_phases(executor):
    report = executor()(upscale_prompt(steps=1)).report
    for part in ("46x34, 1 tile, 1 step, fp32", "encode ", "sample ", "decode ", "peak "):
        assert part in report


def test_partial_wiring_reaches_the_user_as_one_sentence(executor):
    run = executor()
    prompt = upscale_prompt()
    del prompt["up"]["inputs"]["vae"]
    assert run(prompt) is None
    assert run.errors[0].startswith("model and conditioning wired, vae not")


def test_an_impossible_size_reaches_the_user(executor):
    run = executor()
    prompt = upscale_prompt()
    prompt["up"]["inputs"] |= {"size": "exact", "size.width": 4000, "size.height": 10}
    assert run(prompt) is None
    assert "expected 0.25 to 8" in run.errors[0]
