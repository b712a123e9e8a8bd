"""ComfyUI's transformer and diffusers', with the same weights, adapter, times and latents: the same velocity (R17).

Whatever the standalone side (trainer, command line) is tested for then holds in ComfyUI too.
"""

import functools

import pytest
import torch

TOLERANCE = 1e-5  # relative: max |difference| / max |reference|, float32; docs/decisions.md#tolerance-between-hosts

GRIDS = [(2, 2), (4, 6), (10, 4)]  # tokens, even in both directions
TIMES = [(1.0, 0.0), (1.0, 0.5), (0.5, 0.5), (0.37, 0.1), (1 / 30, 0.0), (0.6, -0.6), (0.05, -0.05)]


@pytest.fixture(scope="module", params=["lq_residual", "velocity"])
def both(request, host, tmp_path_factory):
    """The two velocities of one random base with one random adapter, `(standalone, in ComfyUI)`."""
    pytest.importorskip("diffusers", reason="diffusers is not installed in this environment: pip install diffusers")
    rooms = {"architecture": "model", "qwen_velocity": "model", "branch_lora": "model", "dct": "codec"}
    rooms |= {"base_file": "weight_files", "lora_file": "weight_files"}
    core = {name: host.pack(f"teasr_core.{room}.{name}") for name, room in rooms.items()}
    architecture = core["architecture"].QwenArchitecture(48, 3, 2, 32, (8, 12, 12), 40)
    generator = torch.Generator().manual_seed(17)
    transformer = core["qwen_velocity"].build_transformer(architecture)
    tensors = {}
    for key, value in transformer.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        tensors[key] = noise * value.shape[1] ** -0.5 if value.ndim == 2 else 0.1 * noise + float("norm" in key)
    prompt = torch.randn(3, architecture.text_width, generator=generator)
    codec = core["dct"].DctCodec([0.0] * 48, [1.0] * 48)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    base = core["base_file"].BaseFile(path, architecture, request.param, True, codec, tensors, prompt, {})
    pairs = {}
    for target in core["branch_lora"].target_paths(architecture.num_layers):
        out_features, in_features = core["lora_file"]._linear_shape(target, architecture.width)
        pairs[f"{target}.lora_A.weight"] = torch.randn(4, in_features, generator=generator) * in_features**-0.5
        pairs[f"{target}.lora_B.weight"] = torch.randn(out_features, 4, generator=generator) * 0.5
    lora = core["lora_file"].LoraFile(
        "lora", pairs, None, request.param, 4, core["branch_lora"].BLOCK_TARGETS, "b", "f", 0, {}
    )

    @functools.cache
    def velocity(strength):
        return core["base_file"].build_velocity(base, lora, strength)

    @functools.cache
    def in_comfyui(strength):
        adapter = host.pack("nodes.model.lora_patcher").adapter_patcher(lora, path)
        branch = host.pack("nodes.model.dual_branch").DualBranch(request.param, True, strength, use_adapter=True)
        model = host.pack("nodes.model.builtin_model").builtin_patcher(base, "fp32")
        model = host.pack("nodes.model.dual_branch").attach(model, branch, adapter)
        return clean_in_comfyui(host, model, prompt)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny
    yield velocity, in_comfyui
    torch.set_num_threads(threads)


def clean_in_comfyui(host, model, prompt):
    """The host's clean image of (z_t, t_cur, z_lq, t_tar)."""

    def run(z_t, t_cur, z_lq, t_tar):
        host.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
        model.pre_run()
        options = {"wrappers": model.wrappers, host.pack("nodes.model.dual_branch").TARGET_SIGMA: t_tar}
        denoised = model.model.apply_model(
            z_t[:, :, None],
            t_cur,
            c_crossattn=prompt.expand(len(z_t), -1, -1),
            ref_latents=[z_lq[:, :, None]],
            transformer_options=options,
        )[:, :, 0]
        model.cleanup()
        return denoised

    return run


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("times", TIMES, ids=str)
@torch.inference_mode()
def test_same_velocity(both, grid, times):
    standalone, in_comfyui = both
    generator = torch.Generator().manual_seed(hash((grid, times)) % 2**31)
    shape = (2, 48, 2 * grid[0], 2 * grid[1])
    z_t, z_lq = (torch.randn(shape, generator=generator) for _ in range(2))
    t_cur, t_tar = (torch.full((2,), value) for value in times)
    reference = standalone(1.0).clean(z_t, t_cur, z_lq, t_tar)
    found = in_comfyui(1.0)(z_t, t_cur, z_lq, t_tar)
    # As velocities both sides carry (z_t - x) / t: compared as such, on the scale of the reference velocity.
    v_reference, v_found = ((z_t - x) / t_cur.reshape(-1, 1, 1, 1) for x in (reference, found))
    assert (v_found - v_reference).abs().max() <= TOLERANCE * v_reference.abs().max()


@torch.inference_mode()
def test_the_adapter_and_the_target_time_matter_here(both):
    """Bite: the comparison above would notice a missing adapter or a wrong target time."""
    standalone, in_comfyui = both
    generator = torch.Generator().manual_seed(1)
    z_t, z_lq = (torch.randn((1, 48, 8, 12), generator=generator) for _ in range(2))
    t_cur, t_tar = torch.tensor([0.7]), torch.tensor([0.3])
    reference = standalone(1.0).clean(z_t, t_cur, z_lq, t_tar)
    for strength, target in ((0.0, 0.3), (1.0, 0.0), (1.0, 0.7)):
        other = in_comfyui(strength)(z_t, t_cur, z_lq, torch.tensor([target]))
        assert (other - reference).abs().max() > 100 * TOLERANCE * reference.abs().max()
