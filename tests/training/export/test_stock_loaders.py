"""What diffusers' and peft's own loaders do with our files (docs/training/lora_format.md).

The safe form is applied to nothing, and never in silence. The all-tokens form is applied whole to every token.
"""

import logging

import pytest
import torch
from torch import nn

from helpers.tiny import distill as tiny_distill
from helpers.tiny import model as tiny
from teasr_core.model.branch_lora import BranchLora, target_paths
from teasr_core.model.qwen_velocity import QwenVelocity, build_transformer
from teasr_core.weight_files.lora_file import ALL_TOKENS_PREFIXES, read_lora
from training.export.lora import export_lora

PATHS = target_paths(tiny.ARCHITECTURE.num_layers)
NO_KEYS = "No LoRA keys associated to QwenImageTransformer2DModel found"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prefix -> the tiny run exported with it."""
    folder = tmp_path_factory.mktemp("loras")
    run = tiny_distill.write_run(folder / "run")
    paths = {"teasr.": folder / "safe.safetensors"}
    export_lora(run, paths["teasr."])
    for prefix in ALL_TOKENS_PREFIXES:
        paths[prefix] = folder / f"unsafe_{prefix}safetensors"
        export_lora(run, paths[prefix], all_tokens_unsafe=prefix)
    return paths


@pytest.fixture
def diffusers_log():
    """Messages of diffusers' loggers, which do not reach the root logger."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def transformer():
    model = build_transformer(tiny.ARCHITECTURE)
    model.load_state_dict(tiny.base_weights())
    return model.eval().requires_grad_(False)


def pipeline(model):
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=model)


@torch.inference_mode()
def output(model, lora=None):
    """Velocity of noise and condition tokens through `model`, DTC on, with an optional TEASR adapter of ours."""
    velocity = QwenVelocity(model, tiny.prompt_embeds(), "lq_residual", lora, 1.0, True)
    z_t, z_lq = tiny.latents()
    return velocity(z_t, torch.full((2,), 0.7), z_lq, torch.full((2,), 0.2))


def merged(path):
    """The base with W + B A in every target: the adapter on all tokens, written out."""
    adapter, model = read_lora(path).tensors, transformer()
    for target in PATHS:
        a, b = (adapter[f"{target}.lora_{half}.weight"].double() for half in "AB")
        weight = model.get_submodule(target).weight
        weight.copy_((weight.double() + b @ a).float())
    return model


def adapted(model):
    """Paths that carry a peft layer."""
    from peft.tuners.lora import LoraLayer

    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def close(found, reference):
    return bool((found - reference).abs().max() <= 1e-5 * reference.abs().max())


# diffusers


def test_the_pipeline_refuses_the_safe_file(files):
    model = transformer()
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline(model).load_lora_weights(str(files["teasr."]))
    assert not adapted(model)
    assert torch.equal(output(model), output(transformer()))


def test_the_pipeline_warns_where_the_prompt_embedding_is_absent(files, tmp_path, diffusers_log):
    back = tmp_path / "back.safetensors"
    export_lora(files["transformer."], back)
    model = transformer()
    pipeline(model).load_lora_weights(str(back))
    assert any(NO_KEYS in message for message in diffusers_log)
    assert not adapted(model)
    assert torch.equal(output(model), output(transformer()))


@pytest.mark.parametrize("how", ["adapter", "mixin"])
def test_the_transformer_warns_and_applies_nothing_of_the_safe_file(files, diffusers_log, how):
    from diffusers.loaders import QwenImageLoraLoaderMixin

    model = transformer()
    if how == "adapter":
        model.load_lora_adapter(str(files["teasr."]))
    else:
        state = QwenImageLoraLoaderMixin.lora_state_dict(str(files["teasr."]))
        QwenImageLoraLoaderMixin.load_lora_into_transformer(state, model)
    assert any(NO_KEYS in message for message in diffusers_log)
    assert not adapted(model)
    assert torch.equal(output(model), output(transformer()))


def test_the_transformer_fails_on_the_safe_file_taken_without_a_prefix(files):
    model = transformer()
    with pytest.raises(ValueError, match="not found in the base model"):
        model.load_lora_adapter(str(files["teasr."]), prefix=None)
    assert not adapted(model)
    assert torch.equal(output(model), output(transformer()))


def test_our_prefix_by_name_is_no_accident(files):
    """The one way in: the caller asks for the keys under `teasr.`."""
    model = transformer()
    model.load_lora_adapter(str(files["teasr."]), prefix="teasr")
    assert close(output(model), output(merged(files["teasr."])))


@pytest.mark.parametrize("prefix", ALL_TOKENS_PREFIXES)
def test_the_pipeline_applies_the_all_tokens_file_to_every_token(files, diffusers_log, prefix):
    model = transformer()
    pipeline(model).load_lora_weights(str(files[prefix]))
    assert adapted(model) == set(PATHS)
    assert not any(NO_KEYS in message or "unexpected" in message for message in diffusers_log)
    everywhere = output(merged(files[prefix]))
    assert close(output(model), everywhere)
    # Bite: neither the base alone nor the adapter where it belongs looks like that.
    assert not close(output(transformer()), everywhere)
    lora = BranchLora.from_tensors({key: value.float() for key, value in read_lora(files[prefix]).tensors.items()})
    assert not close(output(transformer(), lora), everywhere)


# peft


def injected(name):
    """A holder with the transformer as attribute `name` (peft matches whole keys), and fresh pairs on every target."""
    from peft import LoraConfig, inject_adapter_in_model

    holder = nn.Module()
    holder.add_module(name, transformer())
    config = LoraConfig(r=tiny.RANK, lora_alpha=tiny.RANK, target_modules=[f"{name}.{path}" for path in PATHS])
    return inject_adapter_in_model(config, holder), config


def as_peft_folder(path, folder):
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["transformer", "diffusion_model"])
def test_peft_reports_every_key_of_the_safe_file_and_sets_none(files, tmp_path, name):
    from peft import load_peft_weights, set_peft_model_state_dict

    holder, _ = injected(name)
    stored = load_peft_weights(str(as_peft_folder(files["teasr."], tmp_path / "peft")), device="cpu")
    result = set_peft_model_state_dict(holder, stored)
    assert len(result.unexpected_keys) == len(stored) == 2 * len(PATHS) + 1
    assert sum("lora_" in key for key in result.missing_keys) == 2 * len(PATHS)
    assert torch.equal(output(getattr(holder, name)), output(transformer()))


def test_peft_s_model_warns_and_sets_nothing(files, tmp_path):
    """It expects `base_model.model.` before every key, which our files do not have."""
    from peft import PeftModel

    folder = as_peft_folder(files["teasr."], tmp_path / "peft")
    holder, config = injected("transformer")
    config.save_pretrained(folder)
    holder = nn.Module()
    holder.transformer = transformer()
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        model = PeftModel.from_pretrained(holder, str(folder))
    assert torch.equal(output(model.base_model.model.transformer), output(transformer()))
