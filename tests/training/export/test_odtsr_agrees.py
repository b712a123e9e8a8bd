"""An imported ODTSR on the command line's path: the latents and pictures of ODTSR's own code.

What its code made of the tiny model is recorded in data/odtsr.safetensors. `test_their_own_code` makes it anew where
the code was fetched; TEASR_WRITE_ODTSR=1 then writes the record again.
"""

import dataclasses
import os

import pytest
import torch
from safetensors.torch import save_file

from helpers import odtsr_code
from helpers.tiny import odtsr as tiny
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import load_qwen_restorer
from teasr_core.sampling.schedule import manual_plan

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5  # max |found - reference| / max |reference|, float32
CASES = [(tiles, fidelity) for tiles in tiny.SIDES for fidelity in tiny.FIDELITIES]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_files(tmp_path_factory.mktemp("odtsr"))


def load(files):
    return load_qwen_restorer(files.base, files.lora, files.vae, "fp32")


def restored(restorer, tiles, fidelity, steps=1):
    """(latent, picture, report) of the tiny picture."""
    side, seen = tiny.SIDES[tiles], []
    decode = restorer.base.codec.decode

    def keep(latent):
        seen.extend([latent.clone(), decode(latent)])
        return seen[1]

    options = RestoreOptions(TargetSize(side, side), color_fix="off", fidelity=fidelity)
    restorer.base.codec.decode = keep
    try:
        _, report = restorer.restore(tiny.picture(side), RestoreRequest(options, manual_plan(steps), tiny.SEED))
    finally:
        del restorer.base.codec.decode
    return *seen, report


@pytest.mark.parametrize(("tiles", "fidelity"), CASES)
def test_the_record_of_their_code(files, tiles, fidelity):
    latent, picture, report = restored(load(files), tiles, fidelity)
    record = tiny.recorded()
    errors = [
        tiny.difference(latent, record[f"{tiles} {fidelity} latent"]),
        tiny.difference(picture[..., ::3, ::3], record[f"{tiles} {fidelity} picture"]),
    ]
    print("relative error:", tiles, fidelity, errors)
    assert max(errors) <= TOLERANCE
    assert report.tiles == {"one tile": 1, "four tiles": 4}[tiles]


def test_their_own_code(tmp_path):
    """Saved by their saving code, imported, and run beside their `infer`."""
    theirs = odtsr_code.TheirGenerator()
    saved = theirs.save(tmp_path / "theirs")
    found, expected = torch.load(saved, weights_only=True), tiny.checkpoint()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items())
    restorer, record = load(tiny.write_files(tmp_path, saved)), {}
    for tiles, fidelity in [*CASES, ("four tiles", 0.0), ("four tiles", 0.37)]:
        latent, picture = theirs.infer(tiny.picture(tiny.SIDES[tiles]), fidelity)
        ours = restored(restorer, tiles, fidelity)
        errors = [tiny.difference(ours[0], latent), tiny.difference(ours[1], picture)]
        print("relative error beside their code:", tiles, fidelity, errors)
        assert max(errors) <= TOLERANCE
        if (tiles, fidelity) in CASES:
            record |= {f"{tiles} {fidelity} latent": latent, f"{tiles} {fidelity} picture": picture[..., ::3, ::3]}
    if os.environ.get("TEASR_WRITE_ODTSR"):
        save_file({key: value.contiguous() for key, value in record.items()}, tiny.RECORDED)
    recorded = tiny.recorded()
    assert recorded.keys() == record.keys()
    assert all(tiny.difference(recorded[key], value) <= TOLERANCE for key, value in record.items())


def test_their_tile_of_512_px_is_the_automatic_one(tmp_path):
    """The file as it is imported, on a picture that takes four of its tiles, beside their code with their own sizes."""
    theirs = odtsr_code.TheirGenerator()
    files = tiny.write_files(tmp_path, theirs.save(tmp_path / "theirs"), tile_px=512, overlap_px=128)
    side = 512 + 384
    picture = tiny.picture(side)
    latent, _ = theirs.infer(picture, 1.0, 512, 128)
    restorer, seen = load(files), []
    decode = restorer.base.codec.decode
    restorer.base.codec.decode = lambda z: seen.append(z.clone()) or decode(z)
    options = RestoreOptions(TargetSize(side, side), color_fix="off", fidelity=1.0)
    _, report = restorer.restore(picture, RestoreRequest(options, manual_plan(1), tiny.SEED))
    assert report.tiles == 4
    assert tiny.difference(seen[0], latent) <= TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"condition_time": "target"},
        {"gelu": "tanh"},
        {"velocity_scale": 1.0},
        {"start_time": 0.44},
        {"fidelity_times": (0.5, 0.5)},
        {"blend": "ramp"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_recipe_matters(files, change):
    """Without it the result is another one, by more than rounding."""
    restorer = load(files)
    restorer.recipe = restorer.velocity.recipe = dataclasses.replace(restorer.recipe, **change)
    latent = restored(restorer, "four tiles", 1.0)[0]
    error = tiny.difference(latent, tiny.recorded()["four tiles 1.0 latent"])
    print("without", change, error)
    assert error > 1e-4


def test_the_noise_half_of_the_lora_is_idle_and_the_condition_half_is_not(files):
    restorer = load(files)
    restorer.velocity.lora_strength = 0.0
    latent = restored(restorer, "one tile", 1.0)[0]
    assert tiny.difference(latent, tiny.recorded()["one tile 1.0 latent"]) > 1e-3


@pytest.mark.parametrize("steps", [2, 3])
def test_more_steps_start_where_the_one_step_starts(files, steps):
    """Algorithm 1 by hand, from the recipe's start time in equal steps."""
    restorer, record = load(files), []
    inner = restorer.velocity

    class Heard:
        recipe = inner.recipe

        def __call__(self, z_t, t_cur, z_lq, t_tar):
            v = inner(z_t, t_cur, z_lq, t_tar)
            record.append((z_t.clone(), float(t_cur[0]), v.clone()))
            return v

    restorer.velocity = Heard()
    latent = restored(restorer, "one tile", 1.0, steps)[0]
    times = [time for _, time, _ in record]
    start = restorer.recipe.start_time
    assert times == pytest.approx([start * (1 - i / steps) for i in range(steps)], abs=1e-7)
    assert torch.allclose(record[1][0], record[0][0] - start / steps * record[0][2], atol=1e-6)
    assert torch.allclose(latent, record[-1][0] - start / steps * record[-1][2], atol=1e-6)


def test_tiny_tensors_are_of_plain_numbers():
    """What the record was made of must be the same on every machine."""
    assert tiny.fixed("a", 3).tolist() == [1.6015625, -0.796875, 1.0859375]
