"""60 of tests/core/test_random_runs.py's runs through TEASRUpscale in ComfyUI's executor, masks and greys included."""

import pytest
import torch

from helpers import random_runs
from helpers.comfy.upscale_run import upscale_prompt

RUNS = random_runs.random_runs(60)


@pytest.fixture
def ask(executor, add_node):
    """ask(run, last): what TEASRUpscale makes of it; `last` sends the last picture of the batch alone."""

    def load(index, last):
        """IMAGE and MASK of one of RUNS; alpha as a fourth channel in one half of the runs, as a mask in the other."""
        picture = RUNS[index].picture()[-1 if last else 0 :].movedim(1, -1)  # (B, H, W, C)
        if picture.shape[-1] == 4 and index % 2:
            return picture[..., :3].contiguous(), 1 - picture[..., 3]
        return picture.contiguous(), torch.zeros(1, 64, 64)  # LoadImage's mask of an opaque picture

    inputs = {"index": ("INT", {"default": 0}), "last": ("BOOLEAN", {"default": False})}
    add_node("TestRandomSource", ("IMAGE", "MASK"), inputs, load)
    machine = executor()

    def make(index, last=False):
        run = RUNS[index]
        size = {"size": run.mode, **{f"size.{name}": value for name, value in run.amounts.items()}}
        names = (
            "max_megapixels",
            "seed",
            "strength",
            "fidelity",
            "color_fix",
            "color_strength",
            "tile_px",
            "overlap_px",
        )
        inputs = size | {name: getattr(run, name) for name in names} | {"steps": min(run.steps, 2), "mask": ["in", 1]}
        prompt = upscale_prompt(**inputs)
        if run.mode != "factor":
            del prompt["up"]["inputs"]["size.scale"]
        prompt["in"] = {"class_type": "TestRandomSource", "inputs": {"index": index, "last": last}}
        found = machine(prompt)
        assert found is not None, (run, machine.errors)
        return found

    return make


def test_random_runs_through_the_one_node(host, ask):
    geometry, images = host.pack("teasr_core.image.resize"), host.pack("nodes.host.images")
    for index, run in enumerate(RUNS):
        found = ask(index)
        batch, height, width, channels = found.image.shape
        is_rgba = run.channels == 4 and index % 2 == 0  # otherwise the alpha comes as a mask
        assert (batch, channels) == (run.batch, 4 if is_rgba else 3), run
        assert run.size_is_right(width, height), (run, width, height)
        assert found.image.dtype == torch.float32
        assert bool(torch.isfinite(found.image).all()), run
        assert 0 <= float(found.image.min()) <= float(found.image.max()) <= 1, run
        assert found.mask.shape == (run.batch, height, width), run
        assert bool(found.mask.any()) <= (run.channels == 4), run
        if run.strength == 0:  # then the result is known: the resize, colour bled under the holes
            rgb, _ = images.rgb_and_alpha(run.picture().movedim(1, -1))
            resized = geometry.resize(rgb.contiguous(), geometry.TargetSize(width, height))
            restored = found.image.movedim(-1, 1)[:, :3]
            assert random_runs.border_artefact(restored, resized) <= 1e-6, run
            assert torch.equal(restored, resized), run
        if index % 4 == 0:  # again, and alone: the same pixels, bit for bit
            alone = ask(index, last=True)
            assert torch.equal(alone.image, found.image[-1:]), run
            assert torch.equal(alone.mask, found.mask[-1:]), run


def test_a_model_that_returns_its_input_leaves_no_border(host, builtin, ask, monkeypatch):
    """The transformer's last layer at zero: x̂ = z_lq in the residual form, so that the result must be the resize."""
    transformer = builtin.model.model.diffusion_model
    assert transformer.proj_out.weight.any()
    load = host.pack("teasr_core.weight_files.base_file").read_base

    def zeroed(path):
        base = load(path)
        for key in ("proj_out.weight", "proj_out.bias"):
            base.tensors[key] = torch.zeros_like(base.tensors[key])
        return base

    monkeypatch.setattr(host.pack("teasr_core.weight_files.base_file"), "read_base", zeroed)
    geometry, images = host.pack("teasr_core.image.resize"), host.pack("nodes.host.images")
    worst = 0.0
    for index, run in enumerate(RUNS[:30]):
        found = ask(index).image.movedim(-1, 1)[:, :3]
        rgb, _ = images.rgb_and_alpha(run.picture().movedim(1, -1))
        resized = geometry.resize(rgb.contiguous(), geometry.TargetSize(found.shape[-1], found.shape[-2]))
        worst = max(worst, float((found - resized).abs().max()))
        assert random_runs.border_artefact(found, resized) <= 1e-4, run
    print(f"largest difference from the resize: {worst:.1e}")
    assert worst <= 1e-4
