"""The dual-branch hooks on ComfyUI's transformer: what they change, what they leave alone."""

import pytest
import torch
from torch import nn


@pytest.fixture
def call(host, condition, builtin, photo):
    """call(model, **options): one model call at t = 0.7 on the photo's latents, as the sampler makes it."""
    made = condition(photo)
    lq = builtin.model.model.process_latent_in(made.conditioning[0][1]["reference_latents"][0])
    x = torch.randn(lq.shape, generator=torch.Generator().manual_seed(3))

    def run(model, t=0.7, x=x, lq=lq, prompt=made.conditioning[0][0], **options):
        host.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
        model.pre_run()
        transformer_options = {
            "sample_sigmas": torch.tensor([1.0, 0.7, 0.3, 0.0]),
            "wrappers": model.wrappers,
        } | options
        try:
            return model.model.apply_model(
                x,
                torch.full((len(x),), t),
                c_crossattn=prompt.expand(len(x), -1, -1),
                transformer_options=transformer_options,
                **({} if lq is None else {"ref_latents": [lq.expand(len(x), -1, -1, -1, -1)]}),
            )
        finally:
            model.cleanup()

    return run


@pytest.fixture
def lora_model(host, builtin, write_lora):
    """lora_model(seed, strength): the built-in MODEL with a random LoRA in place of the shipped one."""

    def make(seed=1, strength=1.0, model=None):
        name = write_lora(builtin.model, f"random_{seed}.safetensors", seed)
        return host.run("TEASRApplyLoRA", model=model or builtin.model, lora_name=name, lora_strength=strength)[0]

    return make


def block_inputs(model, run):
    """Inputs and outputs of block 0's modulated and adapted layers during `run`, by name."""
    block = model.model.diffusion_model.transformer_blocks[0]
    names = {"img_mod": block.img_mod[1], "txt_mod": block.txt_mod[1], "to_q": block.attn.to_q, "to_k": block.attn.to_k}
    seen, handles = {}, []

    def hook(name):
        return lambda _module, inputs, output: seen.__setitem__(name, (inputs[0].clone(), output.clone()))

    for name, module in names.items():
        handles.append(module.register_forward_hook(hook(name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def test_target_time_changes_only_the_condition_tokens_modulation_at_block_0(call, builtin):
    near = block_inputs(builtin.model, lambda: call(builtin.model, teasr_target_sigma=0.5))
    far = block_inputs(builtin.model, lambda: call(builtin.model, teasr_target_sigma=0.0))
    noise, condition = near["img_mod"][0].chunk(2), far["img_mod"][0].chunk(2)
    assert torch.equal(noise[0], condition[0])
    assert not torch.equal(noise[1], condition[1])
    assert torch.equal(near["txt_mod"][0], far["txt_mod"][0])
    tokens = near["to_q"][0].shape[1] // 2
    assert torch.equal(near["to_q"][0][:, :tokens], far["to_q"][0][:, :tokens])
    assert not torch.equal(near["to_q"][0][:, tokens:], far["to_q"][0][:, tokens:])


def test_lora_touches_condition_tokens_only(call, builtin, lora_model):
    plain = block_inputs(builtin.model, lambda: call(builtin.model))
    adapted = block_inputs(builtin.model, lambda: call(lora_model()))
    tokens = plain["to_q"][0].shape[1] // 2
    for name in ("to_q", "to_k"):
        assert torch.equal(plain[name][1][:, :tokens], adapted[name][1][:, :tokens])
        assert not torch.equal(plain[name][1][:, tokens:], adapted[name][1][:, tokens:])
    assert torch.equal(plain["img_mod"][1].chunk(2)[0], adapted["img_mod"][1].chunk(2)[0])
    assert not torch.equal(plain["img_mod"][1].chunk(2)[1], adapted["img_mod"][1].chunk(2)[1])
    assert torch.equal(plain["txt_mod"][1], adapted["txt_mod"][1])


def test_the_target_is_the_next_entry_of_the_schedule(call, builtin):
    assert torch.equal(call(builtin.model), call(builtin.model, teasr_target_sigma=0.3))
    assert not torch.equal(call(builtin.model), call(builtin.model, teasr_target_sigma=0.0))
    # Between two entries (a sampler that evaluates there) it is the lower one; -0.3 is the fake trajectory.
    assert torch.equal(call(builtin.model, t=0.5), call(builtin.model, t=0.5, teasr_target_sigma=0.3))
    assert not torch.equal(call(builtin.model, teasr_target_sigma=-0.3), call(builtin.model, teasr_target_sigma=0.3))


def test_condition_tokens_share_the_noise_tokens_positions(call, builtin):
    """Both groups carry the same image, so swapping their positions' frame index must not matter: there is none."""
    ids = []
    patch = {"post_input": [lambda inputs: ids.append(inputs["img_ids"]) or inputs]}
    call(builtin.model, patches=patch)
    noise, condition = ids[0].chunk(2, dim=1)
    assert not torch.equal(noise, condition)  # what the host would have used: this patch runs before ours
    pe = builtin.model.model.diffusion_model.pe_embedder
    seen = []
    handle = pe.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    call(builtin.model)
    handle.remove()
    noise, condition = seen[0][:, -2 * noise.shape[1] :].chunk(2, dim=1)
    assert torch.equal(noise, condition)


def test_strength_0_is_bit_equal_to_no_adapter(call, builtin, lora_model):
    assert torch.equal(call(lora_model(strength=0.0)), call(builtin.model))


def test_strength_scales_the_delta(call, builtin, lora_model):
    plain, half, full = (call(m) for m in (builtin.model, lora_model(strength=0.5), lora_model()))
    assert 0 < (half - plain).norm() < (full - plain).norm()


def test_applying_again_replaces_the_adapter(call, host, lora_model):
    first, second = lora_model(seed=1), lora_model(seed=2)
    replaced = lora_model(seed=2, model=first)
    assert torch.equal(call(replaced), call(second))
    assert not torch.equal(call(replaced), call(first))
    key, wrapper = host.pack("nodes.model.dual_branch").HOOKS_KEY, "apply_model"
    assert len(replaced.get_wrappers(wrapper, key)) == len(replaced.get_additional_models_with_key(key)) == 1


def test_two_adapters_and_the_plain_base_interleaved(call, host, builtin, lora_model):
    """One shared module, four MODELs: the order of the calls must not matter, and the base must stay itself."""
    weights = {k: v.clone() for k, v in builtin.model.model.diffusion_model.state_dict().items()}
    models = [builtin.model, lora_model(seed=1), lora_model(seed=2), lora_model(seed=1, strength=0.5)]
    alone = [call(model) for model in models]
    for k in (2, 0, 1, 3, 0, 2, 1, 0, 3):
        assert torch.equal(call(models[k]), alone[k])
    for key, value in builtin.model.model.diffusion_model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_clones_and_clones_of_clones(call, builtin, lora_model):
    model = lora_model()
    expected = call(model)
    clone = model.clone().clone()
    assert torch.equal(call(clone), expected)
    del clone  # the host detaches a collected clone; that must not remove anything from the others
    assert torch.equal(call(model), expected)


def test_an_ordinary_weight_patch_beside_it_and_gone_again(call, lora_model):
    """A stock LoRA changes weights for all tokens and ours adds to them; without it everything is as before."""
    model = lora_model()
    before = call(model)
    patched = model.clone()
    key = "diffusion_model.transformer_blocks.0.attn.to_q.weight"
    shape = model.model.diffusion_model.transformer_blocks[0].attn.to_q.weight.shape
    patched.add_patches({key: ("diff", (torch.full(shape, 0.05),))})
    assert not torch.equal(call(patched), before)
    assert torch.equal(call(model), before)


def test_an_exception_inside_leaves_nothing(call, builtin, lora_model):
    model = lora_model()
    before = call(model)
    transformer = model.model.diffusion_model

    def broken(_inputs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(model, patches={"double_block": [broken]})
    assert not [name for name, module in transformer.named_modules() if "forward" in module.__dict__]
    assert torch.equal(call(model), before)


def test_nothing_stays_on_the_shared_model(call, builtin, lora_model):
    call(lora_model())
    transformer = builtin.model.model.diffusion_model
    assert not [name for name, module in transformer.named_modules() if "forward" in module.__dict__]
    assert not [
        name for name, module in transformer.named_modules() if module._forward_hooks or module._forward_pre_hooks
    ]


def test_batch_of_three_equals_each_alone(call, builtin, lora_model):
    model = lora_model()
    x = torch.randn(3, 48, 1, 8, 12, generator=torch.Generator().manual_seed(4))
    lq = torch.randn(3, 48, 1, 8, 12, generator=torch.Generator().manual_seed(5))
    together = call(model, x=x, lq=lq)
    for k in range(3):
        alone = call(model, x=x[k : k + 1], lq=lq[k : k + 1])
        assert (together[k : k + 1] - alone).abs().max() <= 1e-5 * alone.abs().max()


class Bypass(nn.Module):
    """A host that computes a layer without calling its forward, as fused kernels do."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def __call__(self, x):
        return nn.functional.linear(x, self.linear.weight, self.linear.bias)


def test_a_bypassed_layer_is_noticed(call, host, lora_model, builtin):
    """The guard bites: a fused layer would lose the adapter without a word."""
    model = lora_model()
    attention = model.model.diffusion_model.transformer_blocks[0].attn
    original = attention.to_k
    original.__class__ = type(
        "Fused", (type(original),), {"__call__": Bypass.__call__, "linear": property(lambda s: s)}
    )
    try:
        with pytest.raises(host.pack("teasr_core.errors").InputError, match=r"\d+ of \d+ TEASR hooks ran"):
            call(model)
    finally:
        original.__class__ = type(original).__mro__[1]


def test_residual_prediction_adds_the_lq_latent_without_a_division(call, builtin, host):
    """denoised = F + z_lq exactly; with proj_out zeroed the denoised image is the LQ latent itself."""
    transformer = builtin.model.model.diffusion_model
    transformer.proj_out.weight.zero_()
    transformer.proj_out.bias.zero_()
    lq = torch.randn(1, 48, 1, 8, 12, generator=torch.Generator().manual_seed(6))
    assert torch.equal(call(builtin.model, t=1 / 30, x=torch.randn_like(lq), lq=lq), lq)


@pytest.mark.parametrize("case", ["none", "several", "size"])
def test_a_missing_or_unfit_lq_latent_is_one_clear_error(call, host, builtin, photo, condition, case):
    error = host.pack("teasr_core.errors").InputError
    x = torch.randn(1, 48, 1, 8, 12)
    if case == "none":
        with pytest.raises(error, match=r"no LQ latent.*TEASRCondition"):
            call(builtin.model, lq=None)
    elif case == "several":
        bridge = host.pack("nodes.model.dual_branch")
        with pytest.raises(error, match="2 reference latents"):
            bridge.lq_latent(x, {"ref_latents": [x, x]})
    else:
        with pytest.raises(error, match="same channels, one frame and the same size"):
            call(builtin.model, x=x, lq=x[..., :-1])


def test_a_stacked_model_sampling_node_is_refused_on_the_built_in_model(call, host, builtin):
    model = builtin.model.clone()
    config = builtin.model.model.model_config
    sampling = type("Stacked", (host.model_sampling.ModelSamplingFlux, host.model_sampling.CONST), {})(config)
    model.add_object_patch("model_sampling", sampling)
    model.patch_model()
    try:
        with pytest.raises(host.pack("teasr_core.errors").InputError, match="remove the ModelSampling node"):
            call(model)
    finally:
        model.unpatch_model()
