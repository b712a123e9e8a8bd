"""What a wire may bring by mistake is named at the door: NaN, infinity, None, text, sigmas that rise."""

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt

SCALE_2 = {"size": "factor", "scale": 2.0}


@pytest.fixture
def errors(host):
    return host.pack("teasr_core.errors")


def damaged(shape, value):
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    tensor[-1, 3, 4] = value
    return tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("node_id", ["TEASRUpscaleInput", "TEASRCondition"])
def test_a_picture_that_is_not_a_number(host, errors, builtin, node_id, value):
    inputs = {"vae": builtin.vae, "conditioning": builtin.conditioning} if node_id == "TEASRCondition" else {}
    for channels in (1, 3, 4):
        with pytest.raises(errors.InputError, match="the image that is wired in holds NaN or infinity"):
            host.run(node_id, image=damaged((2, 8, 9, channels), value), size=SCALE_2, **inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_mask_or_a_reference_that_is_not_a_number(host, errors, photo, value):
    mask = damaged((1, 17, 23), value)
    with pytest.raises(errors.InputError, match="the mask that is wired in holds NaN or infinity"):
        host.run("TEASRUpscaleInput", image=photo, mask=mask, size=SCALE_2)
    with pytest.raises(errors.InputError, match="the reference that is wired in holds NaN or infinity"):
        host.run("TEASRColorFix", image=photo, reference=damaged((1, 17, 23, 3), value))


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("node_id", ["TEASRUpscale", "TEASRCompareSteps"])
def test_it_reaches_the_user_at_every_strength(host, executor, monkeypatch, node_id, strength):
    """Through ComfyUI's executor; without a model nothing else would look at the pixels."""
    run, prompt = executor(), upscale_prompt(strength=strength)
    broken = damaged((1, 17, 23, 3), float("nan")), torch.zeros(1, 17, 23)
    monkeypatch.setattr(host.nodes.NODE_CLASS_MAPPINGS["TestSource"], "load", lambda _self, **_inputs: broken)
    if node_id == "TEASRCompareSteps":
        prompt["up"]["class_type"] = node_id
        prompt["up"]["inputs"]["steps_list"] = "1,2"
        prompt["out"]["inputs"]["report"] = ""
    assert run(prompt) is None
    assert run.errors[0].startswith("the image that is wired in holds NaN or infinity")


def test_a_vae_that_makes_nan_is_named(host, errors, builtin, photo):
    class Broken:
        def spacial_compression_encode(self):
            return 8

        def encode(self, pixels):
            return torch.full((1, 16, 1, pixels.shape[1] // 8, pixels.shape[2] // 8), float("nan"))

        def decode(self, samples):
            raise AssertionError

    with pytest.raises(errors.OutputError, match=r"the VAE made NaN or infinity .* --fp32-vae"):
        host.run("TEASRCondition", image=photo, vae=Broken(), conditioning=builtin.conditioning, size=SCALE_2)


@pytest.mark.parametrize(("value", "words"), [(None, r"empty \(None\)"), ("photo.png", "the text 'photo.png'")])
def test_none_and_text_get_one_sentence(host, errors, builtin, condition, photo, value, words):
    made = condition(photo)
    sigmas = host.run("TEASRStepSelector", steps=1)[0]
    whole = {
        "TEASRUpscaleInput": {"image": photo, "size": SCALE_2},
        "TEASRCondition": {
            "image": photo, "vae": builtin.vae, "conditioning": builtin.conditioning, "size": SCALE_2
        },
        "TEASRSampler": {
            "model": builtin.model, "conditioning": made.conditioning, "latent": made.latent, "sigmas": sigmas
        },
        "TEASRUpscaleDecode": {"latent": made.latent, "vae": builtin.vae},
        "TEASRColorFix": {"image": photo, "reference": photo},
    }  # fmt: skip
    for node_id, inputs in whole.items():
        for name in inputs.keys() - {"size"}:
            with pytest.raises(errors.InputError, match=f"^{name} is {words}: expected an? "):
                host.run(node_id, **inputs | {name: value})
    if value is not None:
        with pytest.raises(errors.InputError, match=f"^mask is {words}: expected an? MASK"):
            host.run("TEASRUpscaleInput", image=photo, mask=value, size=SCALE_2)


def test_a_latent_without_samples_and_sigmas_of_another_shape(host, errors, builtin, condition, photo, sample):
    made = condition(photo)
    with pytest.raises(errors.InputError, match="latent is a dict: expected a LATENT"):
        sample(builtin.model, made.conditioning, {"noise_mask": torch.ones(1, 1, 8, 8)})
    inputs = {"model": builtin.model, "conditioning": made.conditioning, "latent": made.latent}
    with pytest.raises(errors.InputError, match=r"sigmas is shaped \(1, 2\)"):
        host.run("TEASRSampler", **inputs, sigmas=torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([0.0, 0.5, 1.0], "the sigmas rise \\(0, 0.5, 1\\): expected times that fall from 1"),
        ([1.0, 0.2, 0.6, 0.0], "the sigmas rise"),
        ([1.0, float("nan"), 0.0], "the sigmas that is wired in holds NaN or infinity"),
    ],
)
def test_sigmas_that_rise_are_named_in_our_sampler_and_the_stock_one(
    host, errors, builtin, condition, photo, stock_sample, sigmas, words
):
    made, times = condition(photo), torch.tensor(sigmas)
    inputs = {"model": builtin.model, "conditioning": made.conditioning, "latent": made.latent}
    with pytest.raises(errors.InputError, match=words):
        host.run("TEASRSampler", **inputs, sigmas=times)
    with pytest.raises(errors.InputError, match=words):
        stock_sample(builtin.model, made.conditioning, made.latent, times)


def test_a_repeated_time_is_no_error(host, builtin, condition, photo):
    made = condition(photo)
    inputs = {"model": builtin.model, "conditioning": made.conditioning, "latent": made.latent}
    latent = host.run("TEASRSampler", **inputs, sigmas=torch.tensor([1.0, 0.5, 0.5, 0.0]))[0]
    assert torch.isfinite(latent["samples"]).all()
