"""TEASRCompareSteps through ComfyUI's own executor: each column is TEASRUpscale's result, one encode serves all."""

import pytest
import torch

from helpers.comfy.upscale_run import upscale_prompt


def compare_prompt(steps_list="1,2,4", **inputs):
    """The kept `image` is the sheet, the kept `mask` the results."""
    prompt = upscale_prompt(**inputs)
    node = prompt["up"]
    node["class_type"] = "TEASRCompareSteps"
    node["inputs"] = {k: v for k, v in node["inputs"].items() if k not in ("steps", "step_mode")}
    node["inputs"]["steps_list"] = steps_list
    prompt["out"]["inputs"]["report"] = ""
    return prompt


def test_the_images_are_the_upscalers_at_each_number(executor):
    run = executor()
    got = run(compare_prompt("4,1,2"))
    assert got.mask.shape == (3, 34, 46, 3)
    assert got.image.dtype == torch.float32
    for k, steps in enumerate((4, 1, 2)):
        assert torch.equal(got.mask[k : k + 1], run(upscale_prompt(steps=steps)).image)


def test_each_number_gets_the_upscalers_grain(executor):
    """Of the same seed; 0 changes no bit."""
    run = executor()
    plain, none, grained = (run(compare_prompt("1,2", **more)).mask for more in ({}, {"grain": 0.0}, {"grain": 1.0}))
    assert torch.equal(plain, none) and not torch.equal(plain, grained)
    for k, steps in enumerate((1, 2)):
        assert torch.equal(grained[k : k + 1], run(upscale_prompt(steps=steps, grain=1.0)).image)


def test_one_load_and_one_encode_serve_all(executor):
    run = executor()
    run(compare_prompt("1,2,4", builtin=False))
    assert run.ran.count("TEASRLoadBuiltin") == run.ran.count("TEASRCondition") == 1
    assert run.ran.count("TEASRSampler") == run.ran.count("TEASRUpscaleDecode") == 3


def test_one_more_number_costs_that_number(executor):
    run = executor("LRU")
    run(compare_prompt("1,2"))
    for longer in ("1,2,3", "4,2", "2,1,4,3,5"):
        run(compare_prompt(longer))
        assert run.ran.count("TEASRSampler") == 1, longer
        assert "TEASRCondition" not in run.ran


def test_the_sheet_holds_every_picture_and_its_labels(host, executor):
    got = executor()(compare_prompt("1,2"))
    grid = host.pack("teasr_core.image.labelled_sheet")
    sheet = got.image[0]
    assert got.image.ndim == 4
    picture = (got.mask[0] * 255 + 0.5).floor() / 255
    top, left = grid.TEXT_PX, 0
    assert torch.allclose(sheet[top : top + 34, left : left + 46], picture, atol=1e-6)
    under = sheet[top + 34 :, :]
    assert sheet[:top].min() < 0.5 < sheet[:top].max()  # black on white
    assert under.min() < 0.5 < under.max()


def test_sheets_of_a_batch_are_as_wide_as_the_widest(host):
    """Pictures narrower than their captions: "sharpness 0.00" is narrower than "sharpness 85.00"."""
    parts = host.pack("nodes.parts.compare_parts")
    images = torch.stack([torch.full((8, 9, 3), 0.5), torch.rand(8, 9, 3, generator=torch.Generator().manual_seed(1))])
    columns = [parts.Column(steps, (images,), ((1.0, 1.0),)) for steps in (1, 2)]
    made = parts.sheets(columns, 0)
    alone = [parts.sheets([parts.Column(c.steps, (images[k : k + 1],), ((1.0,),)) for c in columns], 0) for k in (0, 1)]
    assert alone[0].shape[2] < alone[1].shape[2] == made.shape[2]
    assert torch.equal(made[1:], alone[1])
    assert torch.equal(made[:1, :, : alone[0].shape[2]], alone[0])
    assert (made[:1, :, alone[0].shape[2] :] == 1).all()


def test_labels_tell_number_time_and_sharpness(host):
    parts, sharpness = host.pack("nodes.parts.compare_parts"), host.pack("teasr_core.image.luma")
    images = torch.rand(2, 8, 9, 3, generator=torch.Generator().manual_seed(1))
    column = parts.Column(1, (images,), ((0.5, 12.345),))
    cell = parts.cell(column, 0, 1)
    wanted = sharpness.mean_gradient(images[1:].movedim(-1, 1))
    assert (cell.label, cell.note) == ("1 step", f"12.35 s, sharpness {wanted:.2f}")
    assert parts.cell(parts.Column(4, (images,), ((),)), 0, 0).note.startswith("no model, sharpness ")
    assert parts.cell(parts.Column(4, (images,), ((),)), 0, 0).label == "4 steps"


def test_the_time_is_that_of_sampling_also_when_it_came_from_memory(host, builtin, condition, photo, monkeypatch):
    cache = host.pack("nodes.run.latent_cache").LatentCache()
    monkeypatch.setattr(host.pack("nodes.run.sampling_jobs"), "SAMPLED_LATENTS", cache)
    made, key = condition(photo), host.pack("nodes.run.run_notes").NOTES_KEY
    sigmas = host.run("TEASRStepSelector", steps=2)[0]
    inputs = {"model": builtin.model, "conditioning": made.conditioning, "latent": made.latent, "sigmas": sigmas}
    first, again = (host.run("TEASRSampler", **inputs)[0][key].image_seconds for _ in range(2))
    assert first == again
    assert first[0] > 0


def test_a_batch_is_a_sheet_and_a_row_of_results_for_each(executor):
    run = executor()
    got = run(compare_prompt("1,2", source={"count": 2}))
    assert len(got.image) == 2
    assert got.mask.shape == (4, 34, 46, 3)
    alone = run(compare_prompt("1,2"))
    assert torch.equal(got.mask[:2], alone.mask)  # the first picture's numbers, then the second's


def test_a_list_of_mixed_sizes(executor):
    run, prompt = executor(), compare_prompt("1,2")
    prompt["in"] = {"class_type": "TestSourceList", "inputs": {}}
    run(prompt)
    assert [tuple(result.mask.shape) for result in run.results] == [(2, 34, 46, 3), (2, 18, 28, 3)]


def test_options_reach_the_sampler_and_the_finish(executor):
    run = executor()
    for inputs in ({"seed": 1}, {"fidelity": 0.5}, {"strength": 0.4}, {"color_fix": "lab"}, {"tile_px": 32}):
        got = run(compare_prompt("2", **inputs))
        assert torch.equal(got.mask, run(upscale_prompt(steps=2, **inputs)).image), inputs


def test_strength_0_runs_no_model(executor):
    run = executor()
    got = run(compare_prompt("1,2", builtin=False, strength=0.0))
    assert not {"TEASRLoadBuiltin", "TEASRCondition", "TEASRSampler", "TEASRUpscaleDecode"} & set(run.ran)
    assert torch.equal(got.mask[0], got.mask[1])


@pytest.mark.parametrize("text", ["", "1,,2", "one", "1;2", "1,1", "0", "1,31", "2.5"])
def test_a_bad_list_is_one_clear_error(executor, text):
    run = executor()
    assert run(compare_prompt(text)) is None
    assert len(run.errors) == 1
    assert "steps" in run.errors[0]
    assert "expected" in run.errors[0] or "from 1 to 30" in run.errors[0]
    assert "TEASRSampler" not in run.ran


@pytest.mark.parametrize("text", ["1，2", "1、2", " 1 ， 2 ", "１，２"])
def test_full_width_commas_are_commas(executor, text):
    run = executor()
    assert torch.equal(run(compare_prompt(text)).mask, run(compare_prompt("1,2")).mask)


def test_steps_that_are_no_text_get_one_sentence(host):
    with pytest.raises(host.pack("teasr_core.errors").InputError, match="steps are None: expected whole numbers"):
        host.run("TEASRCompareSteps", image=["1", 0], size={"size": "factor", "scale": 2.0}, steps_list=None)


def test_partial_wiring_names_the_missing_one(executor):
    run, prompt = executor(), compare_prompt()
    del prompt["up"]["inputs"]["vae"]
    assert run(prompt) is None
    assert run.errors[0].startswith("model and conditioning wired, vae not")
