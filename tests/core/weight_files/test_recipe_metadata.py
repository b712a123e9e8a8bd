"""The recipe in a LoRA file's metadata: absent in TEASR's own files, checked in all others."""

import pytest
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from teasr_core.errors import LoraFileError
from teasr_core.model.recipe import Recipe
from teasr_core.weight_files.lora_file import lora_metadata, read_lora
from teasr_core.weight_files.recipe_metadata import KEYS, read_recipe, recipe_metadata

OTHER = Recipe(
    condition_time="current",
    gelu="sigmoid",
    velocity_scale=0.75,
    start_time=1 / 3,
    start_encoder="second vae.safetensors",
    start_encoder_sha256="ab" * 32,
    fidelity_times=(1 / 3, 0.1, 0.0),
    tile_px=512,
    overlap_px=128,
    blend="border",
)


def test_teasrs_own_files_say_nothing_of_it(tmp_path):
    arguments = {"prediction": "velocity", "rank": 1, "targets": ["attn.to_q"], "base": "b", "base_fingerprint": "0"}
    plain = lora_metadata(**arguments, step=1, config={})
    assert plain == lora_metadata(**arguments, step=1, config={}, recipe=Recipe())
    assert not set(plain) & set(KEYS.values())
    assert read_lora(tiny.write_lora(tmp_path / "old.safetensors")).recipe == Recipe()


def test_round_trip():
    metadata = recipe_metadata(OTHER)
    assert metadata.keys() == set(KEYS.values()) and all(isinstance(value, str) for value in metadata.values())
    assert read_recipe("x", metadata) == OTHER


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teasr.time", "both"),
        ("teasr.gelu", "exact"),
        ("teasr.blend", ""),
        ("teasr.velocity_scale", "0"),
        ("teasr.velocity_scale", "NaN"),
        ("teasr.velocity_scale", "true"),
        ("teasr.start_time", "0"),
        ("teasr.start_time", "1.5"),
        ("teasr.start_time", "soon"),
        ("teasr.start_encoder", ""),
        ("teasr.start_encoder", "../secret.safetensors"),
        ("teasr.start_encoder", "C:\\secret.safetensors"),
        ("teasr.fidelity_times", "[0.5]"),
        ("teasr.fidelity_times", "[0.5, 2]"),
        ("teasr.fidelity_times", "0.5"),
        ("teasr.tile_px", "500"),
        ("teasr.tile_px", "-32"),
        ("teasr.overlap_px", "512"),
    ],
)
def test_an_impossible_value_is_refused(key, value):
    with pytest.raises(LoraFileError, match=r"^x: .*(get the file again|this version reads)") as caught:
        read_recipe("x", {**recipe_metadata(OTHER), key: value})
    assert "\n" not in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize("missing", ["teasr.start_time", "teasr.start_encoder", "teasr.start_encoder_sha256"])
def test_start_time_encoder_and_hash_go_together(missing):
    metadata = recipe_metadata(OTHER)
    del metadata[missing]
    with pytest.raises(LoraFileError, match="together with an encoder"):
        read_recipe("x", metadata)


@pytest.mark.parametrize("missing", ["teasr.tile_px", "teasr.overlap_px"])
def test_tile_and_overlap_go_together(missing):
    metadata = recipe_metadata(OTHER)
    del metadata[missing]
    with pytest.raises(LoraFileError, match="expected both"):
        read_recipe("x", metadata)


def test_a_residual_has_no_start(tmp_path):
    path = tiny.write_lora(tmp_path / "x.safetensors")
    save_file(load_file(path), path, metadata=tiny.lora_file_metadata() | recipe_metadata(OTHER))
    with pytest.raises(LoraFileError, match="predicts 'lq_residual'"):
        read_lora(path)


def test_fidelity_takes_the_nearest_time():
    assert [OTHER.lq_time(fidelity) for fidelity in (0, 0.24, 0.25, 0.5, 0.74, 0.75, 1)] == [
        1 / 3, 1 / 3, 0.1, 0.1, 0.1, 0.0, 0.0
    ]  # fmt: skip
    assert Recipe().lq_time(0.5) == 0


def test_tiles():
    assert OTHER.tiles_px((1024, 64)) == (512, 128) and Recipe().tiles_px((1024, 64)) == (1024, 64)
    assert OTHER.border(64, 16) == 24 and Recipe().border(64, 16) == 0
