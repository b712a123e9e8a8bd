"""Qwen-Image in GGUF through city96's loader equals the dual-branch maths on the dequantised weights.

Runs where TEASR_GGUF_NODES names a checkout of ComfyUI-GGUF and the package `gguf` is installed (tests/README.md).
"""

import pytest
import torch
from safetensors.torch import save_file

from contract import gguf_pack, qwen_on_disk
from contract.plain_qwen import PlainQwen, euler, relative

TOLERANCE = 1e-5  # max |found - reference| / max |reference|, float32 against float64
BITE = 1e-3
BASE = qwen_on_disk.weights()
FORMS = ["F16", "BF16", "Q8_0", "Q4_0"]
# The K formats need rows of 256, which the second Linear of each MLP has here; the other matrices are F16 there.
MORE_FORMS = ["Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
HALF = 1e-3  # the pack unpacks these in float16 unless it is told otherwise, and rounds each product on the way
ORDINARY = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.txt_mlp.net.2", "transformer_blocks.2.img_mod.1")


@pytest.fixture
def gguf_loader(host, shelf, monkeypatch, one_thread):
    """gguf_loader(form, **options): (MODEL of the pack's loader, what its weights mean)."""
    import comfy.model_detection as detection

    loaders = gguf_pack.load_pack()
    monkeypatch.setattr(detection, "detect_unet_config", qwen_on_disk.with_small_sizes(detection.detect_unet_config))

    def load(form, dequant_dtype=None):
        path = shelf / f"small_{form}_{dequant_dtype}.gguf"
        product = torch.float16 if dequant_dtype is None else getattr(torch, dequant_dtype)
        meant = gguf_pack.write(path, BASE, form, product)
        host.folder_paths.filename_list_cache.clear()
        node = loaders.UnetLoaderGGUF if dequant_dtype is None else loaders.UnetLoaderGGUFAdvanced
        options = {} if dequant_dtype is None else {"dequant_dtype": dequant_dtype}
        return node().load_unet(path.name, **options)[0], meant

    return load


def check(found, reference, *case):
    print("relative error:", *case, relative(found, reference))
    assert relative(found, reference) <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_euler_at_one_and_four_steps(gguf_loader, apply_lora, stock, form):
    model, meant = gguf_loader(form)
    layer = model.model.diffusion_model.transformer_blocks[0].attn.to_q
    assert type(model).__name__ == "GGUFModelPatcher" and type(layer).__qualname__.startswith("GGMLOps")
    made = apply_lora(model, BASE)
    assert type(made.model) is type(model)
    noise, z_lq = qwen_on_disk.latents()
    for steps in (1, 4):
        reference = euler(PlainQwen(meant, made.pairs), noise, z_lq, steps, made.prompt)
        check(stock(made.model, made.prompt, z_lq, noise, steps), reference, form, steps)
    assert relative(euler(PlainQwen(meant), noise, z_lq, 4, made.prompt), reference) > BITE  # the LoRA shows
    if form == "Q4_0":  # and so does the quantisation
        assert relative(euler(PlainQwen(BASE, made.pairs), noise, z_lq, 4, made.prompt), reference) > BITE


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0", *MORE_FORMS])
def test_weights_unpacked_in_float32(gguf_loader, apply_lora, stock, ours, form):
    """The pack's advanced loader; TEASRSampler too."""
    model, meant = gguf_loader(form, "float32")
    made = apply_lora(model, BASE)
    noise, z_lq = qwen_on_disk.latents()
    plain = PlainQwen(meant, made.pairs)
    check(stock(made.model, made.prompt, z_lq, noise, 4), euler(plain, noise, z_lq, 4, made.prompt), form, "float32")
    noise = ours.noise(z_lq, seed=5)
    found = ours(made.model, made.prompt, z_lq, 4, seed=5)
    check(found, euler(plain, noise, z_lq, 4, made.prompt), form, "TEASRSampler")


@pytest.mark.parametrize("form", MORE_FORMS)
def test_weights_unpacked_in_float16(gguf_loader, apply_lora, stock, form):
    model, meant = gguf_loader(form)
    made = apply_lora(model, BASE)
    noise, z_lq = qwen_on_disk.latents()
    reference = euler(PlainQwen(meant, made.pairs), noise, z_lq, 4, made.prompt)
    found = relative(stock(made.model, made.prompt, z_lq, noise, 4), reference)
    print("relative error:", form, "float16", found)
    assert found <= HALF
    assert relative(euler(PlainQwen(meant), noise, z_lq, 4, made.prompt), reference) > 10 * HALF  # the LoRA shows


@pytest.mark.parametrize("form", ["F16", "Q8_0"])
def test_strength_zero_is_the_base_alone(gguf_loader, apply_lora, stock, form):
    model, meant = gguf_loader(form)
    noise, z_lq = qwen_on_disk.latents()
    off, full, half = (apply_lora(model, BASE, lora_strength=strength) for strength in (0.0, 1.0, 0.5))
    found = stock(off.model, off.prompt, z_lq, noise, 4)
    check(found, euler(PlainQwen(meant), noise, z_lq, 4, off.prompt), form, "strength 0")
    reference = euler(PlainQwen(meant, half.pairs, 0.5), noise, z_lq, 4, half.prompt)
    check(stock(half.model, half.prompt, z_lq, noise, 4), reference, form, "strength 0.5")
    stock(full.model, full.prompt, z_lq, noise, 4)
    assert torch.equal(stock(off.model, off.prompt, z_lq, noise, 4), found)


@pytest.mark.parametrize("form", ["F16", "Q4_0"])
def test_the_base_is_left_as_it_was(gguf_loader, apply_lora, stock, form):
    model, _ = gguf_loader(form)
    prompt, (noise, z_lq) = qwen_on_disk.prompt_embeds(1), qwen_on_disk.latents()
    weights = {name: value.detach().as_subclass(torch.Tensor).clone() for name, value in parameters(model)}
    before = stock(model, prompt, z_lq, noise, 4)
    for seed in (1, 2):
        made = apply_lora(model, BASE, seed=seed)
        assert relative(stock(made.model, made.prompt, z_lq, noise, 4), before.double()) > BITE
    assert torch.equal(stock(model, prompt, z_lq, noise, 4), before)
    after = {name: value.detach().as_subclass(torch.Tensor) for name, value in parameters(model)}
    assert all(torch.equal(after[name], value) for name, value in weights.items()) and len(after) == len(weights)
    assert [name for name, module in model.model.named_modules() if "forward" in module.__dict__] == []


def parameters(model):
    return model.model.diffusion_model.named_parameters()


def test_an_ordinary_lora_beside_ours(host, shelf, gguf_loader, apply_lora, stock):
    """The pack adds it while it unpacks a weight; ours goes to the condition tokens of the same layer."""
    pairs = qwen_on_disk.random_lora(list(ORDINARY), seed=31)
    save_file({f"diffusion_model.{name}": tensor for name, tensor in pairs.items()}, shelf / "ordinary.safetensors")
    host.folder_paths.filename_list_cache.clear()
    model, meant = gguf_loader("Q8_0", "float32")
    merged = dict(meant)
    for path in ORDINARY:
        merged[f"{path}.weight"] = (
            meant[f"{path}.weight"] + pairs[f"{path}.lora_B.weight"] @ pairs[f"{path}.lora_A.weight"]
        )
    lora = host.nodes.LoraLoaderModelOnly()
    noise, z_lq = qwen_on_disk.latents()
    in_front = apply_lora(lora.load_lora_model_only(model, "ordinary.safetensors", 1.0)[0], BASE)
    behind = apply_lora(model, BASE)
    reference = euler(PlainQwen(merged, behind.pairs), noise, z_lq, 4, behind.prompt)
    patched = lora.load_lora_model_only(behind.model, "ordinary.safetensors", 1.0)[0]
    for case, found in (("in front", in_front.model), ("behind", patched)):
        check(stock(found, behind.prompt, z_lq, noise, 4), reference, "ordinary LoRA", case)


@pytest.mark.parametrize("form", ["BF16", "Q8_0", "Q4_0"])
def test_another_base_is_refused(host, gguf_loader, apply_lora, form):
    """The small tensors that a LoRA knows its base by stay in float32 in a GGUF."""
    model, _ = gguf_loader(form)
    other = qwen_on_disk.weights(seed=5)
    with pytest.raises(host.pack("teasr_core.errors").LoraFileError, match="small Qwen"):
        apply_lora(model, other)
    assert apply_lora(model, other, allow_other_base=True).model is not model
