"""What ComfyUI's LoRA loaders and TEASRApplyLoRA do with each form of our files (docs/training/lora_format.md)."""

import logging

import pytest
import torch
from safetensors.torch import load_file

from training.export.lora import export_lora

PREFIXES = ("transformer.", "diffusion_model.")
LOADERS = ("LoraLoaderModelOnly", "LoraLoaderBypassModelOnly")


@pytest.fixture(params=["qwen", "built-in"])
def model(request, qwen, builtin):
    return qwen if request.param == "qwen" else builtin.model


@pytest.fixture
def forms(write_lora, loras):
    """forms(model): file names by prefix, the all-tokens ones converted from the safe one."""

    def write(model):
        names = {"teasr.": write_lora(model, "stock_safe.safetensors")}
        for prefix in PREFIXES:
            names[prefix] = f"stock_{prefix}safetensors"
            export_lora(loras / names["teasr."], loras / names[prefix], all_tokens_unsafe=prefix)
        return names

    return write


@pytest.fixture
def targets(host, model):
    layers = host.pack("nodes.model.qwen_probe").probe_architecture(model).num_layers
    return host.pack("teasr_core.model.branch_lora").target_paths(layers)


@pytest.fixture
def stock(host):
    """stock(loader, model, name): the MODEL from a loader node of ComfyUI."""
    from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly

    host.folder_paths.filename_list_cache.clear()
    classes = {
        "LoraLoaderModelOnly": host.nodes.LoraLoaderModelOnly,
        "LoraLoaderBypassModelOnly": LoraLoaderBypassModelOnly,
    }

    def load(loader, model, name):
        node = classes[loader]()
        return getattr(node, node.FUNCTION)(model=model, lora_name=name, strength_model=1.0)[0]

    return load


def added_patches(model, base):
    return {key for key, patches in model.patches.items() if len(patches) > len(base.patches.get(key, ()))}


def not_loaded(caplog):
    return {m.removeprefix("lora key not loaded: ") for m in caplog.messages if m.startswith("lora key not loaded: ")}


@pytest.mark.parametrize("loader", LOADERS)
def test_the_safe_file_is_reported_key_by_key_and_patches_nothing(model, forms, loras, stock, caplog, loader):
    name = forms(model)["teasr."]
    with caplog.at_level(logging.WARNING):
        loaded = stock(loader, model, name)
    assert not_loaded(caplog) == set(load_file(loras / name))
    assert not added_patches(loaded, model)
    assert loaded.injections.keys() == model.injections.keys()


def test_the_key_map_knows_no_key_of_the_safe_file(host, model, forms, loras):
    import comfy.lora
    import comfy.lora_convert

    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    names = forms(model)
    safe = comfy.lora_convert.convert_lora(load_file(loras / names["teasr."]))
    assert comfy.lora.load_lora(safe, key_map) == {}
    assert not any(key.startswith("teasr") for key in key_map)
    assert len(comfy.lora.load_lora(load_file(loras / names["transformer."]), key_map)) > 0  # bite


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_all_tokens_file_patches_every_target_of_the_model(model, targets, forms, loras, stock, caplog, prefix):
    name = forms(model)[prefix]
    with caplog.at_level(logging.WARNING):
        loaded = stock("LoraLoaderModelOnly", model, name)
    assert not_loaded(caplog) == set()
    assert added_patches(loaded, model) == {f"diffusion_model.{target}.weight" for target in targets}
    stored = load_file(loras / name)
    for target in targets:
        key = f"diffusion_model.{target}.weight"
        a, b = (stored[f"{prefix}{target}.lora_{half}.weight"].float() for half in "AB")
        base = model.model.diffusion_model.get_submodule(target).weight
        patched = loaded.patch_weight_to_device(key, return_weight=True)
        # W + B A for whatever token comes: the weight itself.
        assert (patched - (base + b @ a)).abs().max() <= 1e-5 * patched.abs().max()
        assert (b @ a).abs().max() > 1e-2 * patched.abs().max()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_bypass_loader_takes_the_all_tokens_file_too(model, forms, stock, caplog, prefix):
    with caplog.at_level(logging.WARNING):
        loaded = stock("LoraLoaderBypassModelOnly", model, forms(model)[prefix])
    assert not_loaded(caplog) == set()
    assert loaded.injections.keys() - model.injections.keys() == {"bypass_lora"}


@pytest.mark.parametrize("model", ["built-in"], indirect=True)
def test_a_stock_loader_leaves_the_output_alone_with_the_safe_file(
    model, forms, stock, condition, photo, sample, caplog
):
    names = forms(model)
    made = condition(photo)
    before = sample(model, made.conditioning, made.latent)
    assert torch.equal(
        sample(stock("LoraLoaderModelOnly", model, names["teasr."]), made.conditioning, made.latent), before
    )
    unsafe = stock("LoraLoaderModelOnly", model, names["transformer."])
    assert not torch.equal(sample(unsafe, made.conditioning, made.latent), before)  # bite


@pytest.mark.parametrize("model", ["built-in"], indirect=True)
def test_teasr_apply_lora_reads_all_three_forms_to_the_same_adapter(host, model, forms, condition, photo, sample):
    names = forms(model)
    made = condition(photo)
    ours = {prefix: host.run("TEASRApplyLoRA", model=model, lora_name=name)[0] for prefix, name in names.items()}
    samples = {prefix: sample(loaded, made.conditioning, made.latent) for prefix, loaded in ours.items()}
    assert torch.equal(samples["teasr."], samples["transformer."])
    assert torch.equal(samples["teasr."], samples["diffusion_model."])
    assert not torch.equal(samples["teasr."], sample(model, made.conditioning, made.latent))
    assert not added_patches(ours["transformer."], model)  # no weight is patched: the delta is a hook on some tokens


def test_the_conditioning_of_an_all_tokens_file_says_what_is_missing(host, model, forms):
    names = forms(model)
    safe = host.run("TEASRApplyLoRA", model=model, lora_name=names["teasr."])[1]
    assert safe[0][0].ndim == 3
    blocked = host.run("TEASRApplyLoRA", model=model, lora_name=names["transformer."])[1]
    assert "holds no prompt embedding" in blocked.message
