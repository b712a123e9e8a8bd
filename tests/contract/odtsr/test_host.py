"""An imported ODTSR in ComfyUI: the latents and pictures of ODTSR's own code, and one sentence for what is missing.

What ODTSR's code made of the tiny model is recorded (`tests/training/export/test_odtsr_agrees.py` compares and makes
the record). Everything here runs through ComfyUI's own loaders, samplers and VAE.
"""

import shutil

import pytest
import torch

from contract import qwen_on_disk

pytest.importorskip("diffusers", reason="diffusers is not installed in this environment: pip install diffusers")
from helpers.tiny import odtsr as tiny

LORA = "odtsr_on_the_shelf.safetensors"
TOLERANCE = 1e-5
CASES = [(tiles, fidelity) for tiles in tiny.SIDES for fidelity in tiny.FIDELITIES]


@pytest.mark.parametrize(("tiles", "fidelity"), CASES)
def test_the_blocks_make_what_their_code_makes(host, graph, condition, normalised, tiles, fidelity):
    made = condition(tiles)
    sigmas = host.run("TEASRStepSelector", steps=1, model=graph.model)[0]
    sampled = host.run(
        "TEASRSampler", model=graph.model, conditioning=made[0], latent=made[2], sigmas=sigmas, seed=tiny.SEED,
        fidelity=fidelity,
    )[0]  # fmt: skip
    decoded = host.run("TEASRUpscaleDecode", latent=sampled, vae=graph.vae)[0]
    record = tiny.recorded()
    expected = record[f"{tiles} {fidelity} picture"].clamp(0, 1)
    errors = [
        tiny.difference(normalised(sampled["samples"]), record[f"{tiles} {fidelity} latent"]),
        tiny.difference(decoded.movedim(-1, 1)[..., ::3, ::3], expected),
    ]
    print("relative error in ComfyUI:", tiles, fidelity, errors)
    assert max(errors) <= TOLERANCE


@pytest.mark.parametrize(("tiles", "fidelity"), CASES)
def test_the_one_node_makes_the_same(restored, tiles, fidelity):
    """TEASRUpscale with three wires and no input of its own for any of this."""
    found = restored(tiny.image(tiles), fidelity=fidelity)
    expected = tiny.recorded()[f"{tiles} {fidelity} picture"].clamp(0, 1)
    assert tiny.difference(found.image.movedim(-1, 1)[..., ::3, ::3], expected) <= TOLERANCE
    assert {"one tile": "1 tile,", "four tiles": "4 tiles of 64 px"}[tiles] in found.report


def test_stock_nodes_make_what_fidelity_0_makes(host, graph, condition):
    """SamplerCustomAdvanced with euler starts from `latent` and the noise, as ComfyUI does at any sigma below 1."""
    nodes = host.nodes_custom_sampler
    made = condition("one tile")
    sigmas = host.run("TEASRStepSelector", steps=2, model=graph.model)[0]
    ours = host.run(
        "TEASRSampler", model=graph.model, conditioning=made[0], latent=made[2], sigmas=sigmas, seed=3
    )[0]["samples"]  # fmt: skip
    noise = nodes.RandomNoise.execute(3).args[0]
    guider = nodes.BasicGuider.execute(graph.model, made[0]).args[0]
    euler = nodes.KSamplerSelect.execute("euler").args[0]
    stock = nodes.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, made[2]).args[0]["samples"]
    assert tiny.difference(stock, ours) <= 1e-6


@pytest.mark.parametrize("steps", [1, 3])
def test_the_sigmas_start_where_the_file_says(host, graph, steps):
    sigmas = host.run("TEASRStepSelector", steps=steps, model=graph.model)[0]
    assert sigmas.tolist() == pytest.approx([0.4361254 * (1 - k / steps) for k in range(steps + 1)], abs=1e-6)
    assert host.run("TEASRStepSelector", steps=steps)[0][0] == 1


def test_automatic_steps_work(host, graph, condition):
    made = condition("one tile")
    sigmas, steps, reason = host.run(
        "TEASRStepSelector", mode="auto", tolerance=10.0, model=graph.model, conditioning=made[0], latent=made[2],
        seed=1,
    )  # fmt: skip
    assert steps == 1 and float(sigmas[0]) == pytest.approx(0.4361254, abs=1e-6) and "within tolerance" in reason


def sample(host, graph, made, sigmas=None):
    sigmas = host.run("TEASRStepSelector", model=graph.model)[0] if sigmas is None else sigmas
    return host.run("TEASRSampler", model=graph.model, conditioning=made[0], latent=made[2], sigmas=sigmas)


def refused(host):
    return pytest.raises(host.pack("teasr_core.errors").TeasrError)


def test_sigmas_from_1_are_refused(host, graph, condition):
    with refused(host) as caught:
        sample(host, graph, condition("one tile"), torch.tensor([1.0, 0.0]))
    assert "starts at 0.4361: wire the MODEL into TEASRStepSelector" in str(caught.value)


def test_a_condition_that_did_not_know_the_model_is_refused(host, graph, condition):
    with refused(host) as caught:
        sample(host, graph, condition("one tile", model=None))
    assert "odtsr_vae.safetensors" in str(caught.value) and "TEASRCondition's `model`" in str(caught.value)


def test_a_condition_for_another_model_is_refused(host, graph, condition, apply_lora):
    made = condition("one tile")
    other = apply_lora(graph.base, tiny.base())
    with refused(host) as caught:
        host.run(
            "TEASRSampler", model=other.model, conditioning=made[0], latent=made[2], sigmas=torch.tensor([1.0, 0.0])
        )
    assert "for another MODEL" in str(caught.value)


def test_a_missing_encoder_is_one_sentence(host, graph, files):
    files.encoder.unlink()
    host.folder_paths.filename_list_cache.clear()
    with refused(host) as caught:
        host.run("TEASRApplyLoRA", model=graph.base, lora_name=LORA)
    message = str(caught.value)
    assert "second VAE encoder, and odtsr_vae.safetensors is not in ComfyUI's models/vae" in message
    assert "\n" not in message


def test_the_encoder_may_lie_beside_the_lora(host, graph, files):
    beside = files.lora.parent / files.encoder.name
    shutil.move(files.encoder, beside)
    host.folder_paths.filename_list_cache.clear()
    host.run("TEASRApplyLoRA", model=graph.base, lora_name=LORA)
    beside.unlink()


def test_another_encoder_is_refused(host, graph, files, made):
    shutil.copy(made.vae, files.encoder)
    with refused(host) as caught:
        host.run("TEASRApplyLoRA", model=graph.base, lora_name=LORA)
    assert "is no second encoder" in str(caught.value)


def test_a_vae_of_another_kind_is_refused(host, graph, condition):
    _, builtin_vae, _ = host.run("TEASRLoadBuiltin")
    with refused(host) as caught:
        condition("one tile", vae=builtin_vae)
    assert "second encoder of Qwen-Image's VAE" in str(caught.value)


def test_the_wired_vae_is_left_as_it_was(host, graph, condition):
    before = {name: value.clone() for name, value in graph.vae.get_sd().items()}
    condition("one tile")
    assert all(torch.equal(value, before[name]) for name, value in graph.vae.get_sd().items())


def test_what_teasrs_own_loras_make_is_unchanged_by_the_wire(host, graph, condition, apply_lora):
    other = apply_lora(graph.base, tiny.base())
    plain = condition("one tile", model=None, conditioning=other.conditioning)
    wired = condition("one tile", model=other.model, conditioning=other.conditioning)
    assert torch.equal(plain[2]["samples"], wired[2]["samples"])
    sigmas = host.run("TEASRStepSelector", steps=3)[0]
    assert torch.equal(sigmas, host.run("TEASRStepSelector", steps=3, model=other.model)[0])
    assert qwen_on_disk.LAYERS == tiny.LAYERS
