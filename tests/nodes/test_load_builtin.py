"""TEASRLoadBuiltin: base, hooks, and the shipped LoRA once there is one."""

import pytest
import torch


@pytest.fixture
def shipped_lora(host, assets, builtin, write_lora, loras):
    """A random adapter under the shipped one's name."""
    path = assets / host.pack("teasr_core.weight_files.base_file").LORA_NAME
    path.write_bytes((loras / write_lora(builtin.model, "shipped.safetensors", seed=9)).read_bytes())
    yield path
    path.unlink()


def run(host, condition, photo, sample, **inputs):
    model, vae, conditioning = host.run("TEASRLoadBuiltin", dtype="fp32", **inputs)
    made = condition(photo, vae=vae, conditioning=conditioning)
    return sample(model, made.conditioning, made.latent)


def test_the_shipped_lora_acts_and_strength_0_skips_it(host, builtin, condition, photo, sample, shipped_lora):
    model, _, conditioning = host.run("TEASRLoadBuiltin", dtype="fp32")
    assert len(model.get_additional_models_with_key("teasr")) == 1
    assert conditioning[0][0].shape[1] == 2  # the LoRA's own prompt, not the base's of 3 tokens
    full, half, none = (run(host, condition, photo, sample, lora_strength=s) for s in (1.0, 0.5, 0.0))
    assert not torch.equal(full, none)
    assert not torch.equal(full, half)
    made = condition(photo, conditioning=conditioning)
    assert torch.equal(sample(builtin.model, made.conditioning, made.latent), none)  # loaded before the LoRA came


def test_apply_lora_replaces_the_shipped_one(host, builtin, condition, photo, sample, shipped_lora, write_lora):
    name = write_lora(builtin.model, "mine.safetensors", seed=4)
    shipped = host.run("TEASRLoadBuiltin", dtype="fp32")[0]
    over, _ = host.run("TEASRApplyLoRA", model=shipped, lora_name=name)
    alone, conditioning = host.run("TEASRApplyLoRA", model=builtin.model, lora_name=name)
    made = condition(photo, conditioning=conditioning)
    assert torch.equal(*(sample(model, made.conditioning, made.latent) for model in (over, alone)))


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_dtype_is_the_one_asked_for(host, assets, condition, photo, sample, dtype, expected):
    model = host.run("TEASRLoadBuiltin", dtype=dtype)[0]
    assert model.model.get_dtype_inference() == expected
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {expected}
    made = condition(photo)
    assert sample(model, made.conditioning, made.latent).dtype == torch.float32


def test_auto_is_one_of_the_two(host, assets):
    assert host.run("TEASRLoadBuiltin")[0].model.get_dtype_inference() in (torch.float32, torch.bfloat16)


def test_the_host_can_load_it_a_second_time(host, builtin):
    """What a second GPU, or a node that cannot do dynamic VRAM, asks the patcher for."""
    factory, arguments = builtin.model.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    for key, value in builtin.model.model.diffusion_model.state_dict().items():
        assert torch.equal(again.model.diffusion_model.state_dict()[key], value), key


def test_memory_the_host_reserves_is_in_proportion_to_the_width(host, builtin):
    """A narrow model must not make the host unload the rest: at 1 MP the 20B's estimate times 32 / 3072."""
    stock = host.supported_models.QwenImage.memory_usage_factor
    assert builtin.model.model.memory_usage_factor == pytest.approx(stock * 32 / 3072)
