"""Qwen-Image through ComfyUI's own loader and sampler equals the dual-branch maths in plain tensors (R17).

UNETLoader -> TEASRApplyLoRA -> SamplerCustomAdvanced with euler, and TEASRSampler. `plain_qwen` shares no code with the
host or with the pack; the command line's side is test_plain_standalone.py, partly loaded weights test_plain_lowvram.py.
"""

import importlib
import os

import pytest
import torch
from safetensors.torch import save_file

from contract import qwen_on_disk
from contract.plain_qwen import PlainQwen, euler, relative

TOLERANCE = 1e-5  # max |found - reference| / max |reference|, float32 against float64
BITE = 1e-3  # a wrong model is at least this far off
INT8_PRODUCTS = 5e-3  # of inputs and weights rounded to int8, over four steps
BASE = qwen_on_disk.weights()
ORDINARY = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.txt_mlp.net.2", "transformer_blocks.2.img_mod.1")


@pytest.fixture
def qwen(unet_loader):
    return unet_loader("small_qwen.safetensors", BASE)


def check(found, reference, *case):
    print("relative error:", *case, relative(found, reference))
    assert relative(found, reference) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 30])
def test_every_step_count(qwen, apply_lora, stock, ours, steps):
    made = apply_lora(qwen, BASE)
    noise, z_lq = qwen_on_disk.latents()
    check(
        stock(made.model, made.prompt, z_lq, noise, steps),
        euler(PlainQwen(BASE, made.pairs), noise, z_lq, steps, made.prompt),
        "stock", steps,
    )  # fmt: skip
    noise = ours.noise(z_lq, seed=steps)
    check(
        ours(made.model, made.prompt, z_lq, steps, seed=steps),
        euler(PlainQwen(BASE, made.pairs), noise, z_lq, steps, made.prompt),
        "TEASRSampler", steps,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "weight_dtype", "prefix"),
    [("bf16", "default", ""), ("fp8", "default", ""), ("old", "default", "model.diffusion_model."),
     ("new", "default", ""), ("float32", "fp8_e4m3fn", "")],
)  # fmt: skip
def test_weights_of_fewer_bits(unet_loader, apply_lora, stock, form, weight_dtype, prefix):
    """Rounded by the file, scaled in it, or rounded by the loader: the model is the dequantised one."""
    stored, meant = (BASE, qwen_on_disk.in_form(BASE, "fp8")[1]) if form == "float32" else (
        qwen_on_disk.in_form(BASE, form)
    )  # fmt: skip
    model = unet_loader(f"small_{form}.safetensors", stored, weight_dtype, prefix)
    made = apply_lora(model, BASE, allow_other_base=form in ("fp8", "float32"))
    noise, z_lq = qwen_on_disk.latents()
    found = stock(made.model, made.prompt, z_lq, noise, 4)
    check(found, euler(PlainQwen(meant, made.pairs), noise, z_lq, 4, made.prompt), form, weight_dtype)
    if form != "bf16":
        assert relative(found, euler(PlainQwen(BASE, made.pairs), noise, z_lq, 4, made.prompt)) > BITE


def test_int8_with_rotation_as_the_host_multiplies_it(unet_loader, apply_lora, stock):
    """The host rounds a layer's input to int8 too. Our LoRA sees the unrounded one; the result is near the model's."""
    if "int8_tensorwise" not in importlib.import_module("comfy.quant_ops").QUANT_ALGOS:
        pytest.skip("this ComfyUI does not read int8 weights")
    stored, meant = qwen_on_disk.in_form(BASE, "rotated")
    model = unet_loader("small_rotated.safetensors", stored)
    noise, z_lq = qwen_on_disk.latents()
    made, off = (apply_lora(model, BASE, lora_strength=strength) for strength in (1.0, 0.0))
    reference = euler(PlainQwen(meant, made.pairs), noise, z_lq, 4, made.prompt)
    found = stock(made.model, made.prompt, z_lq, noise, 4)
    alone = euler(PlainQwen(meant), noise, z_lq, 4, made.prompt)
    print("relative error: int8 products", relative(found, reference), "without the LoRA", relative(alone, reference))
    assert relative(found, reference) < INT8_PRODUCTS < relative(alone, reference) / 2  # the LoRA shows
    assert relative(stock(off.model, off.prompt, z_lq, noise, 4), alone) < INT8_PRODUCTS


def test_a_2511_with_a_lora_of_its_own(unet_loader, apply_lora, stock):
    """Its file's mark changes what the host does with reference latents by default; here it changes nothing."""
    marked = BASE | {"__index_timestep_zero__": torch.tensor([])}
    made = apply_lora(unet_loader("small_2511.safetensors", marked), BASE)
    assert made.model.model.diffusion_model.default_ref_method == "index_timestep_zero"
    noise, z_lq = qwen_on_disk.latents()
    reference = euler(PlainQwen(BASE, made.pairs), noise, z_lq, 4, made.prompt)
    check(stock(made.model, made.prompt, z_lq, noise, 4), reference, "2511")


@pytest.mark.parametrize("lq_batch", [1, 3])
def test_batch_of_three(qwen, apply_lora, stock, ours, lq_batch):
    """Three noises; one LQ image for all, or one each."""
    made = apply_lora(qwen, BASE)
    plain = PlainQwen(BASE, made.pairs)
    noise, z_lq = qwen_on_disk.latents(3, lq_batch)
    check(stock(made.model, made.prompt, z_lq, noise, 2), euler(plain, noise, z_lq, 2, made.prompt), "batch", lq_batch)
    noise = ours.noise(z_lq, seed=5).expand(3, -1, -1, -1)
    found = ours(made.model, made.prompt, z_lq, 2, seed=5, batch=3)
    check(found, euler(plain, noise, z_lq, 2, made.prompt), "TEASRSampler batch", lq_batch)


@pytest.mark.parametrize("cfg", [1.0, 2.5])
@pytest.mark.parametrize("tokens", [3, 5])
def test_guidance(qwen, apply_lora, stock, ours, cfg, tokens):
    """The host runs prompts of one length as a batch of two, others one after the other."""
    made = apply_lora(qwen, BASE)
    plain, negative = PlainQwen(BASE, made.pairs), qwen_on_disk.prompt_embeds(9, tokens)
    noise, z_lq = qwen_on_disk.latents()
    found = stock(made.model, made.prompt, z_lq, noise, 4, negative, cfg)
    check(found, euler(plain, noise, z_lq, 4, made.prompt, negative, cfg), "cfg", cfg, tokens)
    if cfg == 2.5:
        noise = ours.noise(z_lq, seed=2)
        found = ours(made.model, made.prompt, z_lq, 4, seed=2, negative=negative)
        check(found, euler(plain, noise, z_lq, 4, made.prompt, negative, cfg), "TEASRSampler negative", tokens)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_strength_and_the_users_own_prompt(qwen, apply_lora, stock, strength):
    made = apply_lora(qwen, BASE, lora_strength=strength)
    noise, z_lq = qwen_on_disk.latents()
    prompt = qwen_on_disk.prompt_embeds(21, tokens=7)
    reference = euler(PlainQwen(BASE, made.pairs, strength), noise, z_lq, 4, prompt)
    check(stock(made.model, prompt, z_lq, noise, 4), reference, "strength", strength)


def test_two_loras_from_one_base_and_the_base_untouched(host, qwen, apply_lora, stock):
    """Turn by turn, three times over; the plain base in between gives the same bits, and its weights never change."""
    one, two = (apply_lora(qwen, BASE, seed=seed) for seed in (1, 2))
    noise, z_lq = qwen_on_disk.latents()
    before = stock(qwen, one.prompt, z_lq, noise)
    for _ in range(3):
        for made in (one, two):
            reference = euler(PlainQwen(BASE, made.pairs), noise, z_lq, 2, made.prompt)
            check(stock(made.model, made.prompt, z_lq, noise), reference, "two LoRAs")
        assert torch.equal(stock(qwen, one.prompt, z_lq, noise), before)
    state = qwen.model.diffusion_model.state_dict()
    assert state.keys() == BASE.keys()
    assert all(torch.equal(state[name], BASE[name]) for name in BASE)
    assert not [name for name, module in qwen.model.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("order", ["before", "behind"])
def test_beside_an_ordinary_lora(host, shelf, qwen, apply_lora, stock, order):
    """The core node LoraLoaderModelOnly changes the weights of all tokens, on either side of ours."""
    pairs = qwen_on_disk.random_lora(list(ORDINARY), seed=31)
    save_file({f"diffusion_model.{name}": tensor for name, tensor in pairs.items()}, shelf / "ordinary.safetensors")
    host.folder_paths.filename_list_cache.clear()
    load = host.nodes.LoraLoaderModelOnly().load_lora_model_only
    if order == "before":
        made = apply_lora(load(qwen, "ordinary.safetensors", 0.7)[0], BASE)
    else:
        made = apply_lora(qwen, BASE)
        made.model = load(made.model, "ordinary.safetensors", 0.7)[0]
    merged = dict(BASE)
    for path in ORDINARY:
        merged[f"{path}.weight"] = BASE[f"{path}.weight"] + 0.7 * (
            pairs[f"{path}.lora_B.weight"] @ pairs[f"{path}.lora_A.weight"]
        )
    noise, z_lq = qwen_on_disk.latents()
    found = stock(made.model, made.prompt, z_lq, noise)
    check(found, euler(PlainQwen(merged, made.pairs), noise, z_lq, 2, made.prompt), "ordinary LoRA", order)
    assert relative(found, euler(PlainQwen(BASE, made.pairs), noise, z_lq, 2, made.prompt)) > BITE


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_under_torch_compile(unet_loader, apply_lora, stock, backend):
    """The core node TorchCompileModel: its graphs run as they are, or as the fused kernels of a C++ compiler."""
    import comfy_extras.nodes_torch_compile as compile_nodes

    if backend == "inductor" and not os.environ.get("TEASR_INDUCTOR"):
        pytest.skip("a minute of C++ compiling: set TEASR_INDUCTOR=1 to run it")
    base = qwen_on_disk.weights(layers=2)
    made = apply_lora(unet_loader("small_two_blocks.safetensors", base), base)
    model = compile_nodes.TorchCompileModel.execute(made.model, backend).args[0]
    noise, z_lq = qwen_on_disk.latents()
    try:
        for steps in (1, 4, 30):
            found = stock(model, made.prompt, z_lq, noise, steps)
            check(
                found, euler(PlainQwen(base, made.pairs), noise, z_lq, steps, made.prompt), "compiled", backend, steps
            )
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("mistake", ["adapter off", "strength 0.9", "condition at frame 1", "target 0", "target t"])
def test_the_reference_bites(qwen, apply_lora, stock, monkeypatch, mistake):
    """Each mistake in the mathematics is far outside the tolerance."""
    made = apply_lora(qwen, BASE)
    noise, z_lq = qwen_on_disk.latents()
    wrong = {
        "adapter off": {"lora": None}, "strength 0.9": {"strength": 0.9}, "condition at frame 1": {"cond_frame": 1},
    }.get(mistake, {})  # fmt: skip
    model = PlainQwen(BASE, **({"lora": made.pairs} | wrong))
    if mistake.startswith("target"):
        true = model.velocity
        monkeypatch.setattr(
            model, "velocity", lambda z, t, lq, _s, text: true(z, t, lq, 0 * t if mistake == "target 0" else t, text)
        )
    found = stock(made.model, made.prompt, z_lq, noise, 4)
    assert relative(found, euler(model, noise, z_lq, 4, made.prompt)) > BITE
