"""Steps chosen by the picture, in the host: the core's choice, per image in TEASRUpscale, told to the user."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt

TOLERANCE = 0.02


def core_parts(host, model, made, seed, tiles=None):
    """(velocity, noise, z_lq) for the core's own `AutoSteps`: a velocity that calls the MODEL itself."""
    sampler, bridge = host.pack("teasr_core.sampling.sampler"), host.pack("nodes.model.dual_branch")
    embeds, values = made.conditioning[0]
    base = model.model
    lq = base.process_latent_in(values["reference_latents"][0])  # (1, C, 1, h, w)
    host.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    model.pre_run()

    def velocity(z_t, t_cur, z_lq, t_tar):
        options = {"wrappers": model.wrappers, bridge.TARGET_SIGMA: t_tar}
        denoised = base.apply_model(
            z_t, t_cur, c_crossattn=embeds, ref_latents=[z_lq], transformer_options=options
        )  # (1, C, 1, h, w)
        return (z_t - denoised) / t_cur.reshape(-1, 1, 1, 1, 1)

    if tiles is not None:
        velocity = host.pack("teasr_core.sampling.tiled_velocity").TiledVelocity(velocity, tiles)
    return velocity, sampler.initial_noise(seed, lq.shape[1], *lq.shape[-2:])[:, :, None], lq


def core_choice(host, model, made, seed, tolerance=TOLERANCE, tiles=None):
    parts = core_parts(host, model, made, seed, tiles)
    plan = host.pack("teasr_core.sampling.auto_steps").AutoSteps(tolerance).choose(*parts)
    model.cleanup()
    return plan


def telling_tolerance(host, model, mades, seed):
    """Between the two-step errors of two images: one of them needs two steps, the other more."""
    first_step = host.pack("teasr_core.sampling.auto_steps").FirstStep
    errors = [first_step(*core_parts(host, model, made, seed)).error(2) for made in mades]
    model.cleanup()
    assert abs(errors[0] - errors[1]) > 1e-4
    return sum(errors) / 2


def auto_inputs(builtin, made, **changes):
    inputs = {"model": builtin.model, "conditioning": made.conditioning, "latent": made.latent, "seed": 7}
    return {"mode": "auto", "tolerance": TOLERANCE} | inputs | changes


def flat_and_busy():
    """(2, 17, 23, 3): one flat picture, one of noise."""
    busy = torch.rand(1, 17, 23, 3, generator=torch.Generator().manual_seed(5))
    return torch.cat([torch.full_like(busy, 0.5), busy])


# TEASRStepSelector


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.02])
def test_the_nodes_choice_is_the_cores(host, builtin, condition, photo, tolerance):
    made = condition(photo)
    sigmas, steps, reason = host.run("TEASRStepSelector", **auto_inputs(builtin, made, tolerance=tolerance))
    wanted = core_choice(host, builtin.model, made, 7, tolerance)
    assert (steps, reason) == (wanted.steps, wanted.reason)
    assert torch.equal(sigmas, wanted.taus)
    assert reason.startswith("auto: ")


def test_a_smaller_tolerance_takes_more_steps(host, builtin, condition, photo):
    made = condition(photo)
    steps = [host.run("TEASRStepSelector", **auto_inputs(builtin, made, tolerance=t))[1] for t in (10.0, 0.1, 0.01)]
    assert steps[0] == 1
    assert steps == sorted(steps)
    assert steps[-1] > 4


def test_a_batch_takes_the_most_that_one_of_its_images_needs(host, builtin, condition):
    images = flat_and_busy()
    mades = [condition(images[k : k + 1]) for k in range(2)]
    tolerance = telling_tolerance(host, builtin.model, mades, 7)
    alone = [host.run("TEASRStepSelector", **auto_inputs(builtin, made, tolerance=tolerance))[1] for made in mades]
    together = auto_inputs(builtin, condition(images), tolerance=tolerance)
    _, steps, reason = host.run("TEASRStepSelector", **together)
    assert min(alone) == 2 < max(alone) == steps
    assert reason.startswith(f"auto: {steps} steps, error ")
    assert reason.endswith(f"; the most of 2 images, by steps: 1 at 2, 1 at {steps}")


def test_manual_needs_no_wire_and_auto_names_those_it_lacks(host, builtin, condition, photo):
    errors = host.pack("teasr_core.errors")
    assert host.run("TEASRStepSelector", steps=4)[1:] == (4, "4 steps, chosen by hand")
    full = auto_inputs(builtin, condition(photo))
    for name in ("model", "conditioning", "latent", "seed"):
        with pytest.raises(errors.InputError, match=f"auto looks at the picture, {name} not wired"):
            host.run("TEASRStepSelector", **{key: value for key, value in full.items() if key != name})
    with pytest.raises(errors.InputError, match="model and conditioning and latent and seed not wired"):
        host.run("TEASRStepSelector", mode="auto")
    host.run("TEASRStepSelector", **full | {"seed": 0})  # a seed of 0 is a seed


def test_a_model_without_hooks_and_a_bad_tolerance_are_refused(host, builtin, qwen, condition, photo):
    errors, made = host.pack("teasr_core.errors"), condition(photo)
    latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    with pytest.raises(errors.InputError, match="put TEASRApplyLoRA between"):
        host.run("TEASRStepSelector", **auto_inputs(builtin, made, model=qwen, latent=latent))
    with pytest.raises(errors.InputError, match="tolerance is 0"):
        host.run("TEASRStepSelector", **auto_inputs(builtin, made, tolerance=0.0))
    with pytest.raises(errors.InputError, match="step mode is 'other'"):
        host.run("TEASRStepSelector", mode="other")


def test_choosing_leaves_nothing_behind(host, builtin, condition, photo, sample):
    """The next run is the same to the bit; the global random state and the MODEL's options are untouched."""
    made = condition(photo)
    before = sample(builtin.model, made.conditioning, made.latent)
    options = repr(builtin.model.model_options)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    host.run("TEASRStepSelector", **auto_inputs(builtin, made))
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(builtin.model.model_options) == options
    assert torch.equal(sample(builtin.model, made.conditioning, made.latent), before)


def test_choosing_can_be_interrupted_and_costs_what_it_says(host, builtin, condition, photo):
    made, forwards = condition(photo), []

    def count(*_args):
        forwards.append(1)
        host.model_management.interrupt_current_processing(len(forwards) == stop_at)

    handle = builtin.model.model.diffusion_model.register_forward_pre_hook(count)
    try:
        stop_at = 2
        with pytest.raises(host.model_management.InterruptProcessingException):
            host.run("TEASRStepSelector", **auto_inputs(builtin, made))
        assert len(forwards) == 2
        stop_at = 0
        forwards.clear()
        host.run("TEASRStepSelector", **auto_inputs(builtin, made, tolerance=0.001))
        assert 3 <= len(forwards) <= host.pack("teasr_core.sampling.auto_steps").MAX_EVALUATIONS
    finally:
        handle.remove()
        host.model_management.interrupt_current_processing(False)


# TEASRUpscale


def auto_prompt(**inputs):
    return upscale_prompt(**{"step_mode": "auto", "tolerance": TOLERANCE} | inputs)


def test_auto_gives_the_picture_of_the_number_it_names(executor):
    run = executor()
    auto = run(auto_prompt(steps=1))
    number = int(auto.report.split(" step")[0].rsplit(" ", 1)[1])
    assert number > 1  # the slider plays no part
    assert f"| auto: {number} steps, error " in auto.report
    assert "TEASRUpscaleAutoSampler" in run.ran
    manual = run(upscale_prompt(steps=number))
    assert torch.equal(auto.image, manual.image)
    assert "auto" not in manual.report


def test_each_image_of_a_batch_has_its_own_number(host, executor, builtin, condition, photo):
    run = executor()
    mades = [condition(image) for image in (photo, photo.flip(2), 1 - photo)]
    tolerance = telling_tolerance(host, builtin.model, [mades[0], mades[2]], 7)
    plans = [core_choice(host, builtin.model, made, 7, tolerance) for made in mades]
    assert len({plan.steps for plan in plans}) > 1
    got = run(auto_prompt(source={"count": 3}, tolerance=tolerance))
    for steps in {plan.steps for plan in plans}:
        manual = run(upscale_prompt(source={"count": 3}, steps=steps)).image
        for k in (k for k in range(3) if plans[k].steps == steps):
            assert torch.equal(got.image[k], manual[k])
    summary = host.pack("nodes.run.sampling_jobs").steps_summary(plans)
    assert got.report.endswith(f" | {summary}")
    assert summary.startswith("auto: 3 images, by steps: ")


def test_a_list_of_mixed_sizes(executor):
    run, prompt = executor(), auto_prompt()
    prompt["in"] = {"class_type": "TestSourceList", "inputs": {}}
    run(prompt)
    assert [tuple(result.image.shape) for result in run.results] == [(1, 34, 46, 3), (1, 18, 28, 3)]
    assert all("| auto: " in result.report for result in run.results)


def test_tiles(host, executor, builtin, condition, photo):
    got = executor()(auto_prompt(tile_px=32, overlap_px=16))
    tiles = host.pack("teasr_core.tiling").plan_tiles(12, 12, 8, 4, 4)
    wanted = core_choice(host, builtin.model, condition(photo), 7, tiles=tiles)
    assert "4 tiles" in got.report
    assert got.report.endswith(f" | {wanted.reason}")


def test_what_needs_no_model_runs_none(executor):
    run = executor("LRU")
    run(auto_prompt())
    run(auto_prompt(strength=0.5))
    assert run.ran == sorted({"TEASRUpscale", "TEASRUpscaleOutput", "TestKeep"})
    run(auto_prompt(steps=9, strength=0.5))
    assert "TEASRUpscaleAutoSampler" not in run.ran
    run(auto_prompt(tolerance=0.5))
    assert {"TEASRUpscaleAutoSampler", "TEASRUpscaleDecode"} <= set(run.ran)
    assert "TEASRCondition" not in run.ran
    assert "auto" not in run(auto_prompt(strength=0.0)).report


# What the user sees


@pytest.fixture
def shown(host, monkeypatch):
    """(text, node id) of every line that is sent to a node, taken where the server would send it on."""
    lines = []
    __import__("server")
    server = SimpleNamespace(send_progress_text=lambda text, node_id: lines.append((text, node_id)))
    monkeypatch.setattr(sys.modules["server"].PromptServer, "instance", server, raising=False)
    return lines


def test_number_and_reason_are_shown_on_the_upscaler(executor, shown):
    got = executor()(auto_prompt())
    assert shown[-1] == (got.report, "up")


def test_the_reason_is_shown_on_the_step_selector(executor, shown):
    prompt = upscale_prompt()
    prompt["steps"] = {"class_type": "TEASRStepSelector", "inputs": {"steps": 3, "mode": "manual"}}
    prompt["up"]["inputs"]["steps"] = ["steps", 1]
    executor()(prompt)
    assert ("3 steps, chosen by hand", "steps") in shown


# Old graphs


def test_a_prompt_without_the_new_inputs_is_valid_and_means_what_it_meant(host, executor):
    """R25."""
    run = executor()
    old = upscale_prompt()
    old["up"]["inputs"] |= {"max_megapixels": 0.0, "tile_px": 0, "overlap_px": 0, "color_strength": 1.0}
    for name in ("fidelity", "tolerance"):
        assert name not in old["up"]["inputs"]
    valid, error, _, node_errors = asyncio.run(host.execution.validate_prompt("id", old, None))
    assert valid, (error, node_errors)
    new = {"fidelity": 0.0, "tolerance": 0.5}
    assert torch.equal(run(old).image, run(upscale_prompt(**new)).image)


# Fidelity


def test_fidelity_of_the_sampler_and_of_the_upscaler_is_one_dial(executor, builtin, condition, photo, sample):
    made = condition(photo)
    plain = sample(builtin.model, made.conditioning, made.latent)
    assert torch.equal(sample(builtin.model, made.conditioning, made.latent, fidelity=0.0), plain)
    some = sample(builtin.model, made.conditioning, made.latent, fidelity=0.5)
    assert not torch.equal(some, plain)
    ends = [sample(builtin.model, made.conditioning, made.latent, seed=seed, fidelity=1.0) for seed in (1, 2)]
    assert torch.equal(*ends)  # no noise is left that a seed could change
    run = executor()
    images = [run(upscale_prompt(fidelity=1.0, seed=seed)).image for seed in (1, 2)]
    assert torch.equal(*images)
    assert not torch.equal(images[0], run(upscale_prompt(seed=1)).image)


def test_fidelity_is_the_cores(host, builtin, condition, photo, sample):
    """Noise scaled by hand into the stock route gives the same latent."""
    made, stock = condition(photo), host.nodes_custom_sampler
    ours = sample(builtin.model, made.conditioning, made.latent, steps=4, seed=3, fidelity=0.25)

    class Quieter:
        seed = 3

        def generate_noise(self, latent):
            return 0.75 * stock.RandomNoise.execute(3).args[0].generate_noise(latent)

    guider = stock.BasicGuider.execute(builtin.model, made.conditioning).args[0]
    euler, sigmas = stock.KSamplerSelect.execute("euler").args[0], host.run("TEASRStepSelector", steps=4)[0]
    theirs = stock.SamplerCustomAdvanced.execute(Quieter(), guider, euler, sigmas, made.latent).args[0]["samples"]
    assert torch.equal(ours, theirs)


def test_an_impossible_fidelity_is_refused(host, builtin, condition, photo, sample):
    made = condition(photo)
    with pytest.raises(host.pack("teasr_core.errors").InputError, match=r"fidelity is 1\.5"):
        sample(builtin.model, made.conditioning, made.latent, fidelity=1.5)
