"""Prompts queued one behind the other share the base model, and each gives the picture that it gives alone."""

import numpy as np
import pytest

from helpers.comfy import frozen_v1
from helpers.comfy import server as comfy_server


def build(picture, strength, seed, lora=None):
    """The building blocks at x2 in fp32; `lora` puts the strength on TEASRApplyLoRA in place of the loader."""
    prompt = comfy_server.workflow(
        "teasr_building_blocks", LoadImage={"image": picture}, TEASRCondition={"size.scale": 2.0},
        TEASRLoadBuiltin={"dtype": "fp32", "lora_strength": 1.0 if lora else strength},
        RandomNoise={"noise_seed": seed},
    )  # fmt: skip
    if lora:
        node = {"model": ["2", 0], "lora_name": lora, "lora_strength": strength, "allow_other_base": False}
        prompt["30"] = {"class_type": "TEASRApplyLoRA", "inputs": node}
        prompt["7"]["inputs"]["model"] = ["30", 0]
        prompt["3"]["inputs"]["conditioning"] = ["30", 1]
    return prompt


@pytest.fixture
def lora(server):
    frozen_v1.install(server)
    return frozen_v1.LORA


@pytest.fixture
def both_ways(server):
    """both_ways(prompts): (pictures of the prompts queued at once, pictures of each alone in a cold server)."""

    def run(prompts):
        queued = [server.queue(prompt) for prompt in prompts]
        together = [server.image(server.follow(entry)) for entry in queued]
        alone = []
        for prompt in prompts:
            comfy_server.forget(server)
            alone.append(server.image(server.run(prompt)))
        return together, alone

    return run


def check(together, alone):
    for k, (queued, single) in enumerate(zip(together, alone, strict=True)):
        assert np.array_equal(queued, single), k
    for k in range(0, len(alone), 2):  # bite: the strength shows
        assert not np.array_equal(alone[k], alone[k + 1])


def test_two_strengths_of_the_built_in_model_alternate_undisturbed(picture, both_ways):
    prompts = [build(picture, strength, seed) for seed in (21, 22) for strength in (0.0, 1.0)]
    check(*both_ways(prompts))


def test_two_strengths_of_a_lora_on_the_same_base_alternate_undisturbed(picture, both_ways, lora):
    prompts = [build(picture, strength, seed, lora) for seed in (23, 24) for strength in (0.3, 1.0)]
    check(*both_ways(prompts))


def test_two_strengths_in_one_graph_share_a_base_undisturbed(server, picture, lora):
    """Two TEASRApplyLoRA on one MODEL, both sampled in one prompt."""
    one, two = (build(picture, strength, 25, lora) for strength in (0.3, 1.0))
    shared = {"1", "2", "5", "6"}

    def second(value):
        return [f"1{value[0]}", value[1]] if isinstance(value, list) and value[0] not in shared else value

    prompt = dict(one)
    for node, entry in two.items():
        if node not in shared:
            inputs = {name: second(value) for name, value in entry["inputs"].items()}
            prompt[f"1{node}"] = {"class_type": entry["class_type"], "inputs": inputs}
    prompt["111"]["inputs"]["filename_prefix"] = "second"
    run = server.run(prompt)
    assert len(run.images) == 2
    first_of = {image["filename"].startswith("second"): image for image in run.images}
    for is_second, alone in ((False, one), (True, two)):
        run.images = [first_of[is_second]]
        found = server.image(run)
        comfy_server.forget(server)
        assert np.array_equal(found, server.image(server.run(alone)))


def test_identical_frames_stay_identical(server, picture):
    """R32: one noise for a clip, so that a still picture does not flicker; each frame as it would be alone."""
    prompt = comfy_server.workflow(
        "teasr_quick_start", LoadImage={"image": picture}, TEASRUpscale={"steps": 3, "seed": 26, "tile_px": 64}
    )
    prompt["20"] = {"class_type": "TEASRLoadBuiltin", "inputs": {"lora_strength": 1.0, "dtype": "fp32"}}
    prompt["2"]["inputs"] |= {"model": ["20", 0], "vae": ["20", 1], "conditioning": ["20", 2]}
    del prompt["2"]["inputs"]["mask"]
    alone = server.image(server.run(prompt))
    prompt["21"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 3}}
    prompt["2"]["inputs"]["image"] = ["21", 0]
    run = server.run(prompt)
    assert len(run.images) == 3
    for image in run.images:
        run.images = [image]
        assert np.array_equal(server.image(run), alone)
