"""Sampling: TEASRSampler, the stock route and the core's own sampler are one algorithm; tiles; batches; promises."""

import pytest
import torch

TOLERANCE = 1e-5  # relative to the largest value (docs/decisions.md#tolerance-between-hosts)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def core_sample(host, model, made, steps, seed, plan=None):
    """The core's `sample` on a velocity that calls the MODEL itself, tiled by the core if `plan` is given."""
    sampler, tiled = host.pack("teasr_core.sampling.sampler"), host.pack("teasr_core.sampling.tiled_velocity")
    bridge, taus = host.pack("nodes.model.dual_branch"), host.pack("teasr_core.sampling.schedule").linear_taus(steps)
    embeds, values = made.conditioning[0]
    base = model.model
    lq = base.process_latent_in(values["reference_latents"][0])  # (B, C, 1, h, w)
    host.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    model.pre_run()

    def velocity(z_t, t_cur, z_lq, t_tar):
        options = {"wrappers": model.wrappers, bridge.TARGET_SIGMA: t_tar}
        denoised = base.apply_model(
            z_t, t_cur, c_crossattn=embeds.expand(len(z_t), -1, -1), ref_latents=[z_lq], transformer_options=options
        )
        return (z_t - denoised) / t_cur.reshape(-1, 1, 1, 1, 1)

    noise = sampler.initial_noise(seed, lq.shape[1], *lq.shape[-2:])[:, :, None]
    velocity = velocity if plan is None else tiled.TiledVelocity(velocity, plan)
    latent = sampler.sample(velocity, noise, lq, taus)
    model.cleanup()
    return base.process_latent_out(latent)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 30])
def test_node_stock_route_and_core_agree(host, builtin, condition, photo, sample, stock_sample, steps):
    """R17, R19: TEASRSampler == SamplerCustomAdvanced + euler + RandomNoise + our SIGMAS == Algorithm 1."""
    made = condition(photo)
    ours = sample(builtin.model, made.conditioning, made.latent, steps=steps, seed=7)
    sigmas = host.run("TEASRStepSelector", steps=steps)[0]
    theirs = stock_sample(builtin.model, made.conditioning, made.latent, sigmas, seed=7)
    assert torch.equal(ours, theirs)
    assert relative(ours, core_sample(host, builtin.model, made, steps, seed=7)) <= TOLERANCE


def test_stock_route_gives_a_batch_the_same_noise(host, builtin, condition, sample, stock_sample):
    images = torch.rand(3, 16, 24, 3, generator=torch.Generator().manual_seed(1))
    made = condition(images)
    ours = sample(builtin.model, made.conditioning, made.latent, seed=5)
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    theirs = stock_sample(builtin.model, made.conditioning, made.latent, sigmas, seed=5)
    assert relative(ours, theirs) <= TOLERANCE
    for k in range(3):
        alone = condition(images[k : k + 1])
        assert torch.equal(sample(builtin.model, alone.conditioning, alone.latent, seed=5), ours[k : k + 1])


def test_stock_route_has_the_automatic_tiles_of_the_built_in_model(host, builtin, condition, sample, stock_sample):
    """It was trained on small pictures: in one piece a large one comes out damaged, whichever sampler asks."""
    images = torch.rand(2, 80, 56, 3, generator=torch.Generator().manual_seed(1))
    made = condition(images)
    ours = sample(builtin.model, made.conditioning, made.latent, seed=5, steps=2)
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    theirs = stock_sample(builtin.model, made.conditioning, made.latent, sigmas, seed=5)
    assert relative(ours, theirs) <= TOLERANCE
    whole = sample(builtin.model, made.conditioning, made.latent, seed=5, steps=2, tile_px=160)
    assert relative(whole, theirs) > 1e-3
    assert host.pack("nodes.model.dual_branch").TILES not in builtin.model.model_options["transformer_options"]


def test_stock_qwen_image_with_a_lora(host, qwen, write_lora, sample):
    """The 20B's route at a tiny width: velocity prediction, 16 channels, the file's own prompt."""
    model, prompt = host.run("TEASRApplyLoRA", model=qwen, lora_name=write_lora(qwen, "qwen.safetensors", seed=3))
    lq = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(2))
    conditioning = [[prompt[0][0], {"reference_latents": [lq]}]]
    latent = {"samples": torch.zeros_like(lq), "batch_index": [0]}
    made = type("Made", (), {"conditioning": conditioning, "latent": latent})
    for steps in (1, 4):
        ours = sample(model, conditioning, latent, steps=steps, seed=1)
        assert relative(ours, core_sample(host, model, made, steps, seed=1)) <= TOLERANCE
    weak = host.run("TEASRApplyLoRA", model=qwen, lora_name="qwen.safetensors", lora_strength=0.0)[0]
    assert relative(sample(weak, conditioning, latent, seed=1), sample(model, conditioning, latent, seed=1)) > 1e-2


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(32, 16), (48, 16), (64, 32)])
def test_tiles_in_the_host_equal_tiles_in_the_core(host, builtin, condition, sample, tile_px, overlap_px):
    image = torch.rand(1, 40, 56, 3, generator=torch.Generator().manual_seed(8))
    made = condition(image)
    plan = host.pack("nodes.run.tile_plan").plan_model_tiles(
        builtin.model, *made.latent["samples"].shape[-2:], tile_px, overlap_px
    )
    assert plan.count > 1
    tiled = sample(builtin.model, made.conditioning, made.latent, seed=9, tile_px=tile_px, overlap_px=overlap_px)
    assert relative(tiled, core_sample(host, builtin.model, made, 2, seed=9, plan=plan)) <= TOLERANCE
    assert not torch.equal(tiled, sample(builtin.model, made.conditioning, made.latent, seed=9))


def test_a_tile_as_large_as_the_image_is_untiled(builtin, condition, photo, sample):
    made = condition(photo)
    whole = sample(builtin.model, made.conditioning, made.latent, seed=9)
    assert torch.equal(whole, sample(builtin.model, made.conditioning, made.latent, seed=9, tile_px=64))


def test_a_model_that_sees_no_neighbours_is_the_same_tiled(builtin, condition, sample):
    """With attention's output cut off, every token stands alone: tiles must not change a thing but rounding."""
    for block in builtin.model.model.diffusion_model.transformer_blocks:
        block.attn.to_out[0].weight.zero_()
        block.attn.to_out[0].bias.zero_()
    made = condition(torch.rand(1, 40, 56, 3, generator=torch.Generator().manual_seed(8)))
    whole = sample(builtin.model, made.conditioning, made.latent, steps=3)
    tiled = sample(builtin.model, made.conditioning, made.latent, steps=3, tile_px=32, overlap_px=16)
    assert relative(tiled, whole) <= TOLERANCE


def test_automatic_tiles_are_the_cores_for_the_built_in_model_and_1024_px_for_qwen(host, builtin, qwen):
    plan = host.pack("nodes.run.tile_plan").plan_model_tiles
    side = host.pack("teasr_core.tiling").AUTO_TILE_PX // 4
    assert plan(builtin.model, side, side, 0, 0).count == 1
    tiles = plan(builtin.model, 2 * side, side, 0, 0)
    assert tiles.count > 1
    assert (tiles.height, tiles.width) == (side, side)
    assert plan(qwen, 128, 128, 0, 0).count == 1  # 1024 px
    assert plan(qwen, 256, 128, 0, 0).height == 128
    ours, core = host.pack("nodes.run.tile_plan"), host.pack("teasr_core.restorer")
    assert (ours.QWEN_SIDES_PX[0], ours.QWEN_OVERLAP_PX) == (core.QWEN_TILE_PX, core.QWEN_OVERLAP_PX)


def test_the_host_makes_room_for_one_tile(host, builtin, condition, sample, monkeypatch):
    """R8: the memory estimate is the tile's, so that a small card does not unload everything for a large image."""
    estimates = []
    original = type(builtin.model.model).memory_required

    def record(self, shape, cond_shapes=None):
        estimates.append(original(self, shape, cond_shapes=cond_shapes or {}))
        return estimates[-1]

    made = condition(torch.rand(1, 128, 128, 3))
    monkeypatch.setattr(type(builtin.model.model), "memory_required", record)
    sample(builtin.model, made.conditioning, made.latent, steps=1, tile_px=64, overlap_px=32)
    tiled = estimates[0]
    estimates.clear()
    sample(builtin.model, made.conditioning, made.latent, steps=1, tile_px=256)
    assert tiled < estimates[0] / 10  # 16 tiles' worth of area


def test_progress_counts_images_steps_and_tiles_and_never_goes_back(host, builtin, condition, sample, monkeypatch):
    seen = []
    bar = host.pack("nodes.run.sampling").comfy.utils.ProgressBar

    def record(self, value, total=None, preview=None):
        self.current = value
        seen.append((value, self.total))

    monkeypatch.setattr(bar, "update_absolute", record)
    made = condition(torch.rand(2, 40, 24, 3))
    sample(builtin.model, made.conditioning, made.latent, steps=2, tile_px=48, overlap_px=16)
    tiles = seen[-1][1] // 4
    assert tiles == 2
    assert [value for value, _ in seen] == sorted({value for value, _ in seen}) == list(range(1, 2 * 2 * tiles + 1))


def test_interrupt_is_heard_before_the_next_tile(host, builtin, condition, sample):
    made = condition(torch.rand(1, 64, 64, 3))
    forwards = []

    def press_cancel_in_the_second(*_args):
        forwards.append(1)
        host.model_management.interrupt_current_processing(len(forwards) == 2)

    handle = builtin.model.model.diffusion_model.register_forward_pre_hook(press_cancel_in_the_second)
    try:
        with pytest.raises(host.model_management.InterruptProcessingException):
            sample(builtin.model, made.conditioning, made.latent, steps=4, tile_px=64, overlap_px=32)
    finally:
        handle.remove()
        host.model_management.interrupt_current_processing(False)
    assert len(forwards) == 2
    sample(builtin.model, made.conditioning, made.latent, steps=1, tile_px=64)  # the next run works


def test_negative_adds_guidance(builtin, condition, photo, sample):
    made = condition(photo, negative=[[builtin.conditioning[0][0].flip(-1), {}]])
    plain = sample(builtin.model, made.conditioning, made.latent)
    assert relative(sample(builtin.model, made.conditioning, made.latent, negative=made.negative), plain) > 1e-3
    same = sample(builtin.model, made.conditioning, made.latent, negative=made.conditioning)
    assert relative(same, plain) <= TOLERANCE  # guidance towards itself


def test_global_rng_and_inputs_are_untouched(host, builtin, condition, photo, sample):
    """R6, docs/decisions.md#one-noise-field."""
    torch.manual_seed(123)
    state = torch.get_rng_state()
    before = photo.clone()
    made = condition(photo)
    values = made.conditioning[0][1]["reference_latents"][0].clone()
    latent = made.latent["samples"].clone()
    sample(builtin.model, made.conditioning, made.latent, seed=2**64 - 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(photo, before)
    assert torch.equal(made.conditioning[0][1]["reference_latents"][0], values)
    assert torch.equal(made.latent["samples"], latent)
    assert "reference_latents" not in builtin.conditioning[0][1]


def test_same_seed_same_latent_other_seed_another(builtin, condition, photo, sample):
    made = condition(photo)
    first = sample(builtin.model, made.conditioning, made.latent, seed=1)
    assert torch.equal(first, sample(builtin.model, made.conditioning, made.latent, seed=1))
    assert not torch.equal(first, sample(builtin.model, made.conditioning, made.latent, seed=2))


def test_a_plain_qwen_run_is_the_same_before_and_after(host, qwen, write_lora, sample):
    """The base MODEL is untouched by the adapter: a stock run with a stock node, before and after, bit for bit."""

    def plain():
        stock = host.nodes_custom_sampler
        guider = stock.BasicGuider.execute(qwen, [[torch.ones(1, 2, 24), {}]]).args[0]
        latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
        noise, euler = stock.RandomNoise.execute(1).args[0], stock.KSamplerSelect.execute("euler").args[0]
        sigmas = torch.tensor([1.0, 0.5, 0.0])
        return stock.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent).args[0]["samples"]

    before = plain()
    model, prompt = host.run("TEASRApplyLoRA", model=qwen, lora_name=write_lora(qwen, "qwen.safetensors", seed=3))
    lq = torch.randn(1, 16, 1, 8, 8)
    sample(model, [[prompt[0][0], {"reference_latents": [lq]}]], {"samples": torch.zeros_like(lq)})
    assert torch.equal(plain(), before)
