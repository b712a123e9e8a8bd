"""Weights that are not on the card, as under --lowvram and --novram, change nothing: hooks and adapter included.

ComfyUI takes one of --cpu, --lowvram and --novram, and loads a model on a CPU whole whatever its state. So the two are
put in the host's own words: the number of bytes that `load_models_gpu` gives a model when it has that flag, here given
on a CPU. The layers then cast their weights on use, by the code a GPU runs; tests/host/test_qwen_vram_flags.py starts
the server with the flags themselves where there is a GPU.
"""

import pytest
import torch
from safetensors.torch import save_file

from contract import qwen_on_disk
from contract.plain_qwen import PlainQwen, euler, relative

TOLERANCE = 1e-5  # max |found - reference| / max |reference|, float32 against float64
BASE = qwen_on_disk.weights()
NO_VRAM_BYTES = 0.1  # what the host gives under --novram
ORDINARY = "transformer_blocks.0.attn.to_k"


@pytest.fixture
def forced_load(host, monkeypatch):
    """forced_load(share): from now on every model is loaded up to this share of its bytes (0: as under --novram)."""
    loaded = host.model_management.LoadedModel
    load = loaded.model_load

    def force(share):
        def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
            return load(self, share * self.model.model_size() or NO_VRAM_BYTES, force_patch_weights)

        host.model_management.unload_all_models()
        monkeypatch.setattr(loaded, "model_load", model_load)

    yield force
    host.model_management.unload_all_models()


def cast_on_use(patcher):
    """How many of a model's layers cast their weights when they run, and how many there are."""
    layers = [module for module in patcher.model.modules() if hasattr(module, "comfy_cast_weights")]
    return sum(hasattr(layer, "prev_comfy_cast_weights") for layer in layers), len(layers)


def parts(model):
    """The base's patcher and the adapter's."""
    return [model, *model.get_additional_models_with_key("teasr")]


@pytest.mark.parametrize("form", ["float32", "new"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_partly_loaded_model_is_the_same(unet_loader, apply_lora, stock, forced_load, share, form):
    stored, meant = (BASE, BASE) if form == "float32" else qwen_on_disk.in_form(BASE, form)
    made = apply_lora(unet_loader(f"low_{form}.safetensors", stored), BASE)
    noise, z_lq = qwen_on_disk.latents()
    whole = stock(made.model, made.prompt, z_lq, noise, 4)
    assert all(cast_on_use(part)[0] == 0 for part in parts(made.model))
    forced_load(share)
    partly = stock(made.model, made.prompt, z_lq, noise, 4)
    for part in parts(made.model):
        casting, layers = cast_on_use(part)
        assert part.model.model_lowvram
        assert casting == layers if share == 0 else 0 < casting < layers
    assert torch.equal(partly, whole)
    error = relative(partly, euler(PlainQwen(meant, made.pairs), noise, z_lq, 4, made.prompt))
    print("relative error: partly loaded", share, form, error)
    assert error <= TOLERANCE


def test_an_ordinary_lora_is_merged_on_use_beside_ours(host, shelf, unet_loader, apply_lora, stock, forced_load):
    """The layers we hook add the ordinary LoRA when they cast: both act, each on its own tokens."""
    pairs = qwen_on_disk.random_lora([ORDINARY], seed=31)
    save_file({f"diffusion_model.{name}": tensor for name, tensor in pairs.items()}, shelf / "ordinary.safetensors")
    made = apply_lora(unet_loader("low.safetensors", BASE), BASE)
    model = host.nodes.LoraLoaderModelOnly().load_lora_model_only(made.model, "ordinary.safetensors", 1.0)[0]
    delta = pairs[f"{ORDINARY}.lora_B.weight"] @ pairs[f"{ORDINARY}.lora_A.weight"]
    merged = BASE | {f"{ORDINARY}.weight": BASE[f"{ORDINARY}.weight"] + delta}
    forced_load(0)
    noise, z_lq = qwen_on_disk.latents()
    error = relative(
        stock(model, made.prompt, z_lq, noise, 4), euler(PlainQwen(merged, made.pairs), noise, z_lq, 4, made.prompt)
    )
    print("relative error: partly loaded, ordinary LoRA", error)
    assert model.model.lowvram_patch_counter == 1
    assert error <= TOLERANCE


def test_weights_that_leave_between_two_steps(unet_loader, apply_lora, stock, forced_load):
    """Another model wants the memory in the middle of a run: half of base and adapter go, then the rest."""
    from comfy.patcher_extension import WrappersMP

    made = apply_lora(unet_loader("low.safetensors", BASE), BASE)
    noise, z_lq = qwen_on_disk.latents()
    whole = stock(made.model, made.prompt, z_lq, noise, 4)
    freed = []

    def press(executor, *args, **kwargs):
        base = executor.class_obj.current_patcher
        for part in parts(base):
            freed.append(part.partially_unload(part.offload_device, part.model_size() // 2))
        return executor(*args, **kwargs)

    model = made.model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "pressure", press)
    forced_load(0.9)
    assert torch.equal(stock(model, made.prompt, z_lq, noise, 4), whole)
    assert sum(size > 0 for size in freed) >= 3  # of base and adapter, at more than one step


def test_two_loras_from_one_base_in_turn(unet_loader, apply_lora, stock, forced_load):
    qwen = unet_loader("low.safetensors", BASE)
    one, two = (apply_lora(qwen, BASE, seed=seed) for seed in (1, 2))
    noise, z_lq = qwen_on_disk.latents()
    before = stock(qwen, one.prompt, z_lq, noise)
    forced_load(0.5)
    for made in (one, two, one):
        reference = euler(PlainQwen(BASE, made.pairs), noise, z_lq, 2, made.prompt)
        assert relative(stock(made.model, made.prompt, z_lq, noise), reference) <= TOLERANCE
    assert torch.equal(stock(qwen, one.prompt, z_lq, noise), before)
