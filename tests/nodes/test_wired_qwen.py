"""TEASRUpscale with Qwen-Image wired: stock MODEL, TEASR LoRA and ComfyUI's VAE class, tiny, through the executor."""

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt
from helpers.wan_vae import random_vae


@pytest.fixture
def vae(host):
    return random_vae()


@pytest.fixture
def wired(add_node, qwen, vae, write_lora):
    """wired(**inputs): `upscale_prompt` with loader -> TEASRApplyLoRA -> TEASRUpscale."""

    add_node("TestLoader", ("MODEL", "VAE"), {}, lambda: (qwen, vae))  # Load Diffusion Model and Load VAE in one
    lora = {"lora_name": write_lora(qwen, "wired.safetensors"), "lora_strength": 1.0, "allow_other_base": False}

    def make(**inputs):
        prompt = upscale_prompt(builtin=False, **inputs)
        prompt["load"] = {"class_type": "TestLoader", "inputs": {}}
        prompt["lora"] = {"class_type": "TEASRApplyLoRA", "inputs": {"model": ["load", 0]} | lora}
        prompt["up"]["inputs"] |= {"model": ["lora", 0], "vae": ["load", 1], "conditioning": ["lora", 1]}
        return prompt

    make.lora = lora
    return make


@pytest.fixture
def card(qwen, vae):
    """`card.model` and `card.vae`: latent pixels that a call of the transformer and of the decoder may have."""

    class Card:
        model = vae = 10**9

        def hear(self, name):
            def check(_module, inputs):
                if inputs[0].shape[-2] * inputs[0].shape[-1] > getattr(self, name):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

            return check

    card = Card()
    modules = {"model": qwen.model.diffusion_model, "vae": vae.first_stage_model.decoder}
    handles = [module.register_forward_pre_hook(card.hear(name)) for name, module in modules.items()]
    yield card
    for handle in handles:
        handle.remove()


def test_the_one_node_is_the_stock_blocks(host, executor, wired, qwen, vae, photo, sample):
    """TEASRCondition, TEASRSampler, the stock VAEDecode and TEASRColorFix by hand: the same pixels, odd sides."""
    model, conditioning = host.run("TEASRApplyLoRA", model=qwen, **wired.lora)
    made = host.run(
        "TEASRCondition", image=photo, vae=vae, conditioning=conditioning, size={"size": "factor", "scale": 3.0}
    )
    samples = sample(model, made[0], made[2], steps=2, seed=7)
    assert samples.shape == (1, 16, 1, 8, 12)  # 51 x 69 px, padded to 64 x 96
    decoded = host.nodes.VAEDecode().decode(vae, {"samples": samples})[0]
    expected = host.run("TEASRColorFix", image=decoded, reference=made[3], color_fix="wavelet")[0]
    found = executor()(wired(**{"size.scale": 3.0}))
    assert found.image.shape == (1, 51, 69, 3)
    assert float((found.image - expected).abs().max()) <= 1e-6
    assert found.report.startswith("69x51, 1 tile, 2 steps, fp32 | encode ")


def test_a_batch_with_a_mask_is_each_alone(executor, wired):
    run = executor()
    together = run(wired(source={"count": 3, "hole": True}.items(), mask=["in", 1]))
    assert together.image.shape == (3, 34, 46, 3) and together.mask.shape == (3, 34, 46)
    for k in range(3):
        alone = run(wired(source={"first": k, "hole": True}.items(), mask=["in", 1]))
        assert torch.equal(alone.image, together.image[k : k + 1]), k
        assert torch.equal(alone.mask, together.mask[k : k + 1]), k


def test_a_list_and_automatic_steps(executor, wired):
    run = executor()
    prompt = wired(step_mode="auto")
    prompt["in"] = {"class_type": "TestSourceList", "inputs": {}}
    run(prompt)
    assert [tuple(result.image.shape) for result in run.results] == [(1, 34, 46, 3), (1, 18, 28, 3)]
    assert all("| auto: " in result.report for result in run.results)


def test_strength_0_touches_neither_model_nor_vae(executor, wired, card):
    card.model = card.vae = 0
    run = executor()
    assert run(wired(strength=0.0)).image.shape == (1, 34, 46, 3)
    assert not {"TEASRCondition", "TEASRSampler", "TEASRUpscaleDecode"} & set(run.ran)


def test_a_batch_of_three_on_a_card_too_small(executor, wired, card):
    """Both step down on their own, the report says so, and with more memory the next run is what it was before."""
    run = executor()
    inputs = {"source": {"count": 3}.items(), "size.scale": 8.0}
    before = run(wired(**inputs))
    assert "VAE tiles" not in before.report and "memory" not in before.report
    card.model, card.vae = 12 * 12, 16 * 16  # of 20 x 24
    small = run(wired(**inputs, steps=1))
    assert small.image.shape == (3, 136, 184, 3)
    assert "VAE tiles of 128 px" in small.report
    assert small.report.endswith("memory ran out: tiles were cut to 12 latent pixels")
    card.model = card.vae = 10**9
    assert torch.equal(executor()(wired(**inputs)).image, before.image)  # nothing cached


@pytest.mark.parametrize(("part", "says"), [("vae", "memory ran out in the VAE"), ("model", "memory ran out even for")])
def test_nothing_small_enough_is_one_sentence(executor, wired, card, part, says):
    run = executor()
    setattr(card, part, 0)
    assert run(wired()) is None
    assert run.errors[0].startswith(says)
    setattr(card, part, 10**9)
    assert run(wired()).image.shape == (1, 34, 46, 3)
