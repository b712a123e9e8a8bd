"""One clear sentence each: what was found, what was expected, which wire to move (R3, R4)."""

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def errors(host):
    return host.pack("teasr_core.errors")


def test_a_model_without_hooks_names_the_node_to_put(host, errors, builtin, qwen, sample):
    latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    with pytest.raises(errors.InputError, match="put TEASRApplyLoRA between your loader and this node"):
        sample(qwen, builtin.conditioning, latent)


def test_vae_and_model_channels_are_compared_first(errors, builtin, qwen, condition, photo, sample):
    made = condition(photo)
    with pytest.raises(errors.InputError, match="16 channels: wire the VAE that belongs to this MODEL"):
        sample(qwen, made.conditioning, made.latent)


def test_missing_lq_through_the_sampler(errors, builtin, condition, photo, sample):
    with pytest.raises(errors.InputError, match=r"no LQ latent in the conditioning.*TEASRCondition"):
        sample(builtin.model, builtin.conditioning, condition(photo).latent)


def test_a_negative_without_lq(errors, builtin, condition, photo, sample):
    made = condition(photo)
    with pytest.raises(errors.InputError, match="a wired `negative` needs it too"):
        sample(builtin.model, made.conditioning, made.latent, negative=[[builtin.conditioning[0][0] + 1, {}]])


def test_condition_refuses_a_second_reference(host, errors, condition, photo):
    with pytest.raises(errors.InputError, match="already holds reference latents"):
        condition(photo, conditioning=condition(photo).conditioning)


def test_another_latent_size(errors, builtin, condition, photo, sample):
    made = condition(photo)
    with pytest.raises(errors.InputError, match="wire TEASRCondition's `latent` into the sampler"):
        sample(builtin.model, made.conditioning, {"samples": torch.zeros(1, 48, 1, 8, 8)})


@pytest.mark.parametrize("kind", ["UNet", "Nunchaku", "OldHost"])
def test_models_the_hooks_cannot_reach(host, errors, qwen, kind, write_lora):
    name = write_lora(qwen, "any.safetensors")
    transformer = qwen.model.diffusion_model
    if kind == "UNet":
        qwen.model.diffusion_model = torch.nn.Linear(2, 2)
        match = "expected Qwen-Image"
    elif kind == "Nunchaku":
        for block in transformer.transformer_blocks:
            del block.attn.to_q
        match = "fused layers, as in Nunchaku"
    else:
        transformer.transformer_blocks[0].forward = lambda hidden_states, temb: None
        match = "a host before 0.17"
    with pytest.raises(errors.ModelFileError, match=match):
        host.run("TEASRApplyLoRA", model=qwen, lora_name=name, allow_other_base=True)


@pytest.fixture
def variant(host, qwen):
    """variant(**config): a MODEL like `qwen`, of the host's own class, but for some constructor arguments."""

    def make(**changes):
        config = host.supported_models.QwenImage(qwen.model.model_config.unet_config | changes)
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, device="cpu")
        shapes = {key: value.shape for key, value in model.diffusion_model.state_dict().items()}
        same = {key: value for key, value in qwen.model.diffusion_model.state_dict().items() if
                value.shape == shapes.get(key)}  # fmt: skip
        model.diffusion_model.load_state_dict(same, strict=False)
        return type(qwen)(model, load_device=qwen.load_device, offload_device=qwen.offload_device)

    return make


def test_the_layered_variant_is_named(host, errors, qwen, variant, write_lora):
    name = write_lora(qwen, "any.safetensors")
    layered = variant(use_additional_t_cond=True, default_ref_method="negative_index")
    with pytest.raises(errors.ModelFileError, match=r"Qwen-Image-Layered.*load one of them"):
        host.run("TEASRApplyLoRA", model=layered, lora_name=name, allow_other_base=True)


def test_the_2511_is_named_unless_the_lora_is_its_own(host, errors, qwen, variant, write_lora):
    name, model = write_lora(qwen, "of_qwen.safetensors"), variant(default_ref_method="index_timestep_zero")
    host.run("TEASRApplyLoRA", model=model, lora_name=name)  # the same small tensors: it was trained on this one
    model.model.diffusion_model.img_in.bias.add_(0.5)
    with pytest.raises(errors.LoraFileError, match=r"is Qwen-Image-Edit-2511, of_qwen.safetensors was .* on 'tiny'"):
        host.run("TEASRApplyLoRA", model=model, lora_name=name)
    host.run("TEASRApplyLoRA", model=model, lora_name=name, allow_other_base=True)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"num_layers": 3}, r"another architecture: 7 of 17 layers missing .*load the base it names"),
        ({"num_layers": 1}, r"another architecture.* 7 unknown"),
        ({"num_attention_heads": 4}, r"the model has \(64, 64\): it was made for another model"),
        ({"joint_attention_dim": 40}, "prompt embedding is 24 wide, the model takes 40"),
        ({"in_channels": 128, "out_channels": 32}, "trained on 'tiny'.*load that base"),
    ],
    ids=["more blocks", "fewer blocks", "width", "text width", "channels"],
)
def test_a_lora_of_another_size(host, errors, qwen, variant, write_lora, config, match):
    name = write_lora(qwen, "sized.safetensors")
    with pytest.raises(errors.LoraFileError, match=match):
        host.run("TEASRApplyLoRA", model=variant(**config), lora_name=name)


@pytest.mark.parametrize(
    ("key", "value"), [("scope", "all"), ("positions", "index"), ("format", "2"), ("prediction", "epsilon")]
)
def test_another_scheme_of_lora(host, errors, qwen, write_lora, key, value):
    """Scope, positions and prediction are how it was trained: another scheme is refused, whatever the switch says."""
    name = write_lora(qwen, f"other_{key}.safetensors", **{f"teasr.{key}": value})
    with pytest.raises(errors.LoraFileError, match=f"'{value}'") as caught:
        host.run("TEASRApplyLoRA", model=qwen, lora_name=name, allow_other_base=True)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [4, 48])
def test_another_vaes_latent_on_the_stock_route(host, errors, qwen, write_lora, channels):
    """Stock samplers mend an empty latent's channels by themselves: the LQ latent is what tells."""
    model, prompt = host.run("TEASRApplyLoRA", model=qwen, lora_name=write_lora(qwen, "channels.safetensors"))
    stock = host.nodes_custom_sampler
    lq = torch.zeros(1, channels, 1, 8, 8)
    guider = stock.BasicGuider.execute(model, [[prompt[0][0], {"reference_latents": [lq]}]]).args[0]
    noise, euler = stock.RandomNoise.execute(1).args[0], stock.KSamplerSelect.execute("euler").args[0]
    with pytest.raises(errors.InputError, match=f"has {channels} channels, the MODEL works on 16: wire the VAE"):
        stock.SamplerCustomAdvanced.execute(noise, guider, euler, torch.tensor([1.0, 0.0]), {"samples": lq})


@pytest.mark.parametrize("case", ["missing", "extra", "rank", "pickle", "truncated", "ordinary", "nan"])
def test_a_bad_lora_file_is_refused_whole(host, errors, qwen, write_lora, loras, case):
    name = write_lora(qwen, f"bad_{case}.safetensors")
    path = loras / name
    tensors, metadata = load_file(path), None
    key = "teasr.transformer_blocks.0.attn.to_q.lora_A.weight"
    with __import__("safetensors").safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    if case == "missing":
        del tensors[key]
    elif case == "extra":
        tensors["teasr.transformer_blocks.0.attn.to_q.lora_C.weight"] = torch.zeros(1)
    elif case == "rank":
        metadata["teasr.rank"] = "8"
    elif case == "ordinary":
        metadata = {}
    elif case == "nan":
        tensors[key][0] = float("nan")
    save_file({k: v.clone() for k, v in tensors.items()}, path, metadata=metadata)
    if case == "pickle":
        torch.save(tensors, path)
    elif case == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(errors.ModelFileError) as caught:
        host.run("TEASRApplyLoRA", model=qwen, lora_name=name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_base_needs_the_switch(host, errors, qwen, write_lora):
    name = write_lora(qwen, "other.safetensors")
    qwen.model.diffusion_model.img_in.bias.add_(0.5)
    with pytest.raises(errors.LoraFileError, match="allow_other_base"):
        host.run("TEASRApplyLoRA", model=qwen, lora_name=name)
    host.run("TEASRApplyLoRA", model=qwen, lora_name=name, allow_other_base=True)


def test_a_merged_ordinary_lora_keeps_the_fingerprint(host, qwen, write_lora):
    """While patched weights sit in the model, the base is told by the host's backup."""
    name = write_lora(qwen, "merged.safetensors")
    patched = qwen.clone()
    patched.add_patches({"diffusion_model.img_in.bias": ("diff", (torch.ones(32),))})
    patched.patch_model(load_weights=True)
    try:
        host.run("TEASRApplyLoRA", model=patched, lora_name=name)
    finally:
        patched.unpatch_model()


def test_a_model_cast_to_fp8_says_so(host, errors, qwen, write_lora):
    name = write_lora(qwen, "fp8.safetensors")
    qwen.model.diffusion_model.to(torch.float8_e4m3fn)
    with pytest.raises(errors.LoraFileError, match="rounded to fp8 while loading"):
        host.run("TEASRApplyLoRA", model=qwen, lora_name=name)


def test_a_lora_for_another_model(host, errors, builtin, qwen, write_lora):
    with pytest.raises(errors.LoraFileError, match="predicts 'velocity'"):
        host.run("TEASRApplyLoRA", model=builtin.model, lora_name=write_lora(qwen, "other_kind.safetensors"))


def test_a_file_without_prompt_blocks_only_its_conditioning(host, qwen, write_lora):
    """It raises where that output is wired; the MODEL output is good."""
    from comfy_execution.graph_utils import ExecutionBlocker

    name = write_lora(qwen, "promptless.safetensors", use_prompt=False)
    model, conditioning = host.run("TEASRApplyLoRA", model=qwen, lora_name=name)
    assert model.get_additional_models_with_key("teasr")
    assert isinstance(conditioning, ExecutionBlocker)
    assert "holds no prompt embedding" in conditioning.message


def test_a_damaged_built_in_file(host, errors, assets, monkeypatch, tmp_path):
    builtin = host.pack("teasr_core.weight_files.base_file")
    path = tmp_path / builtin.BASE_NAME
    tensors = load_file(assets / builtin.BASE_NAME)
    with __import__("safetensors").safe_open(assets / builtin.BASE_NAME, "pt") as file:
        metadata = dict(file.metadata())
    del tensors["proj_out.weight"]
    save_file(tensors, path, metadata=metadata)
    monkeypatch.setattr(builtin, "ASSETS", tmp_path)
    with pytest.raises(errors.ModelFileError, match=r"proj_out\.weight"):
        host.run("TEASRLoadBuiltin")
    path.unlink()
    with pytest.raises(errors.ModelFileError, match="install the pack again"):
        host.run("TEASRLoadBuiltin")


def test_nan_latents_raise_with_the_likely_cause(host, errors, builtin, condition, photo, sample):
    builtin.model.model.diffusion_model.proj_out.bias.fill_(float("nan"))
    made = condition(photo)
    with pytest.raises(errors.OutputError, match="sage attention"):
        sample(builtin.model, made.conditioning, made.latent)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({"tile_px": 40}, "multiple of 16"),
        ({"overlap_px": 20}, "multiple of 8"),
        ({"tile_px": 32, "overlap_px": 24}, "half of tile_px"),
    ],
)
def test_impossible_tiles(errors, builtin, condition, photo, sample, inputs, match):
    made = condition(photo)
    with pytest.raises(errors.InputError, match=match):
        sample(builtin.model, made.conditioning, made.latent, **inputs)


def test_steps_outside_1_to_30(host, errors):
    with pytest.raises(errors.InputError, match="from 1 to 30"):
        host.run("TEASRStepSelector", steps=31)


def test_color_fix_reference_larger_than_the_image(host, errors):
    with pytest.raises(errors.InputError, match="cannot crop"):
        host.run("TEASRColorFix", image=torch.rand(1, 8, 8, 3), reference=torch.rand(1, 16, 16, 3))


@pytest.mark.parametrize(
    ("wired", "missing"),
    [(("model",), "vae and conditioning"), (("model", "vae"), "conditioning"), (("conditioning",), "model and vae")],
)
def test_partial_wiring_of_the_upscaler_names_the_missing_one(host, errors, wired, missing):
    links = {name: ["1", 0] for name in wired}
    with pytest.raises(errors.InputError, match=f"wired, {missing} not: wire {missing} too"):
        host.run("TEASRUpscale", image=["2", 0], size={"size": "factor", "scale": 4.0}, **links)


def test_mask_and_alpha_together_and_a_mask_of_another_size(host, errors):
    size = {"size": "factor", "scale": 1.0}
    with pytest.raises(errors.InputError, match="unplug the mask"):
        host.run("TEASRUpscaleInput", image=torch.rand(1, 8, 8, 4), mask=torch.ones(1, 8, 8), size=size)
    with pytest.raises(errors.InputError, match="wire the mask that came with this image"):
        host.run("TEASRUpscaleInput", image=torch.rand(1, 8, 8, 3), mask=torch.ones(1, 9, 8), size=size)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_images_chosen_behind_the_condition_are_an_error(errors, builtin, condition, sample, count):
    """LatentFromBatch or RepeatLatentBatch on the latent alone: which image belongs to which is anyone's guess."""
    made = condition(torch.rand(3, 16, 24, 3, generator=torch.Generator().manual_seed(1)))
    latent = made.latent | {"samples": made.latent["samples"][:1].expand(count, -1, -1, -1, -1)}
    with pytest.raises(errors.InputError, match=f"the latent has {count} images, the conditioning 3: expected as many"):
        sample(builtin.model, made.conditioning, latent)
