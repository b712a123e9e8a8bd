"""R25: prompts of the first release, never edited since (tests/frozen), on the real server: they run, and right."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers.comfy import frozen_v1
from helpers.comfy import server as comfy_server

SAME_MODEL_DB = 45.0  # another machine's arithmetic; bf16 for fp32 is 63 and more
OTHER_MODEL_DB = 17.0  # a model trained anew restores the same scene; 20.3 dB and more was seen
SIZES = {
    "blocks": (72, 86),
    "upscale": (50, 70),
    "mask": (50, 70),
    "auto": (80, 96),
    "steps": (93, 112),
    "plain": (60, 72),
    "required_blocks": (80, 96),
    "required_upscale": (80, 96),
    "required_steps": (80, 96),
}


def psnr(found, expected):
    error = np.square(found.astype(float) - expected.astype(float)).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def pictures(server, run):
    """name -> the saved pictures as (H, W, 3) arrays, in order."""
    assert run.error is None, run.error
    found = {}
    for image in run.images:
        name = image["filename"].removeprefix("frozen_v1_").rsplit("_", 2)[0]
        path = server.folder / "output" / image["filename"]
        found.setdefault(name, []).append(np.asarray(Image.open(path).convert("RGB")))
    return found


@pytest.fixture(scope="module")
def ask(server):
    """ask(name, fresh=..., **changes): run a frozen prompt, inputs of the class changed; `fresh` empties all caches."""
    frozen_v1.install(server)

    def run(name, fresh=False, **changes):
        prompt = frozen_v1.read(f"{name}.json")
        for entry in prompt.values():
            entry["inputs"] |= changes.get(entry["class_type"], {})
        if fresh:
            comfy_server.forget(server)
        return server.run(prompt)

    return run


@pytest.fixture(scope="module")
def full(ask):
    return ask("v1_prompt")


@pytest.fixture(scope="module")
def required(ask):
    return ask("v1_required_prompt")


def floor_db():
    known = frozen_v1.read("v1_pictures.json")
    return SAME_MODEL_DB if known["weights"] == frozen_v1.weights_hash() else OTHER_MODEL_DB


def expected(name, index):
    return np.asarray(Image.open(frozen_v1.FOLDER / "v1_pictures" / f"{name}_{index}.png").convert("RGB"))


def test_every_picture_has_its_size_and_looks_as_it_did(server, full, required):
    found = pictures(server, full) | pictures(server, required)
    grid = found.pop("grid")
    assert grid[0].shape[1] > 2 * 112  # two columns; its labels name times
    assert {name: images[0].shape[:2] for name, images in found.items()} == SIZES
    assert (len(found["steps"]), len(found["required_steps"])) == (2, 2)
    for name, images in found.items():
        for index, image in enumerate(images):
            value = psnr(image, expected(name, index))
            print(f"{name} {index}: {value:.1f} dB")
            # In `auto` the number of steps may differ with the number format, which a timing chooses.
            assert value >= (OTHER_MODEL_DB if name == "auto" else floor_db()), (name, index)


def test_the_reports_say_what_was_run(full):
    reports = [output["text"][0] for node, output in full.outputs.items() if node in ("13", "18")]
    assert len(reports) == 2
    upscale, auto = sorted(reports, key=lambda text: "auto" in text)
    for part in ("70x50", "tiles", "2 steps", "fp32", "encode ", "sample ", "decode ", "peak "):
        assert part in upscale
    assert "96x80" in auto
    assert "auto" in auto


def test_strength_0_is_the_plain_resize(server, full):
    """Known without any model: Lanczos, as Pillow has it, where the picture is opaque."""
    source = Image.open(frozen_v1.FOLDER / "v1_source.png").convert("RGB")
    resized = np.asarray(source.resize((72, 60), Image.Resampling.LANCZOS))
    assert psnr(pictures(server, full)["plain"][0], resized) > 40


def test_the_same_pixels_again_from_a_cold_start(server, ask, required):
    again = pictures(server, ask("v1_required_prompt", fresh=True))
    for name, images in pictures(server, required).items():
        for first, second in zip(images, again[name], strict=True):
            if "blocks" in name:  # its number format is fixed
                assert np.array_equal(first, second), name
            else:
                assert psnr(first, second) >= SAME_MODEL_DB, name


def test_an_optional_input_at_its_default_is_as_if_it_were_not_there(server, ask, required):
    """What an old prompt does not name keeps the old behaviour: the frozen defaults, spelled out, change no pixel."""
    schema = frozen_v1.read("v1_schema.json")
    spelled = {
        node: {
            name: fact["default"] for name, fact in facts["inputs"].items() if fact["optional"] and "default" in fact
        }
        for node, facts in schema.items()
    }
    assert json.dumps(spelled).count('"fidelity": 0.0') == 3
    again = pictures(server, ask("v1_required_prompt", **spelled))
    for name, images in pictures(server, required).items():
        assert all(np.array_equal(a, b) for a, b in zip(images, again[name], strict=True)), name


@pytest.mark.parametrize(
    "changes",
    [{"TEASRUpscale": {"steps": 3}}, {"TEASRUpscale": {"seed": 8}}, {"TEASRUpscale": {"color_fix": "off"}}],
    ids=["steps", "seed", "color_fix"],
)
def test_the_comparison_sees_another_meaning(server, ask, changes):
    """Bite: one input read as another value falls under the floor of the same model."""
    found = pictures(server, ask("v1_prompt", **changes))["upscale"][0]
    value = psnr(found, expected("upscale", 0))
    print(f"{changes}: {value:.1f} dB")
    assert value < SAME_MODEL_DB
