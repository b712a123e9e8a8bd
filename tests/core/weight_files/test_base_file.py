"""Base files: round trip, damaged ones refused; the shipped model when it is there."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from teasr_core.errors import LoraFileError, ModelFileError
from teasr_core.weight_files import base_file
from teasr_core.weight_files.base_file import (
    BASE_NAME,
    LORA_NAME,
    base_metadata,
    build_velocity,
    read_base,
    shipped_base,
    shipped_lora,
)
from teasr_core.weight_files.lora_file import PROMPT_KEY, read_lora

MAX_MIB = 48


@pytest.fixture
def path(tmp_path):
    return tiny.write_base(tmp_path / BASE_NAME)


def rewrite(path, change=lambda tensors: None, **metadata):
    tensors = load_file(path)
    change(tensors)
    wanted = base_metadata(tiny.ARCHITECTURE, "lq_residual", True, tiny.codec(), {}) | metadata
    save_file(tensors, path, metadata={k: v for k, v in wanted.items() if v is not None})
    return path


def refused(call, path):
    with pytest.raises(ModelFileError) as caught:
        call(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_round_trip(path):
    base = read_base(path)
    assert base.architecture == tiny.ARCHITECTURE
    assert (base.prediction, base.use_dtc, base.training) == ("lq_residual", True, {"steps": 0})
    assert torch.equal(base.codec.mean, tiny.codec().mean)  # JSON keeps every bit of a float32
    assert torch.equal(base.codec.std, tiny.codec().std)
    assert torch.equal(base.prompt_embeds, tiny.prompt_embeds())
    wanted = tiny.base_weights()
    assert set(base.tensors) == set(wanted)
    assert all(torch.equal(base.tensors[key], value) for key, value in wanted.items())


def output(velocity):
    z_t, z_lq = tiny.latents()
    return velocity(z_t, torch.tensor([1.0, 0.5]), z_lq, torch.tensor([0.0, 0.2]))


def test_the_velocity_of_a_file_is_the_models(path):
    assert torch.equal(output(build_velocity(read_base(path))), output(tiny.velocity()))


def test_the_files_adapter_and_prompt_are_used(tmp_path, path):
    lora = read_lora(tiny.write_lora(tmp_path / LORA_NAME))
    base = read_base(path)
    velocity = build_velocity(base, lora, 0.7)
    assert torch.equal(velocity.prompt_embeds, lora.prompt_embeds)
    wanted = tiny.velocity(use_lora=True, lora_strength=0.7)
    wanted.prompt_embeds = lora.prompt_embeds
    assert float((output(velocity) - output(wanted)).abs().max()) < 0.1  # the file's adapter is bf16
    assert float((output(velocity) - output(build_velocity(base))).abs().max()) > 0.1


def test_the_ablation_flag_is_read(path):
    rewrite(path, **{"teasr.use_dtc": "false"})
    velocity = build_velocity(read_base(path))
    assert velocity.use_dtc is False


def test_building_in_bf16_prints_no_warning(path, caplog):
    velocity = build_velocity(read_base(path), dtype=torch.bfloat16)
    assert velocity.transformer.dtype == torch.bfloat16
    assert caplog.records == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", None), ("kind", "lora"), ("format", "2"), ("codec", None), ("config", None), ("prediction", None),
        ("training", None), ("use_dtc", None), ("prediction", "x0"), ("codec", "{"), ("codec", "[]"), ("config", "[]"),
        ("codec", '{"kind": "vae"}'), ("codec", '{"kind": "dct4", "mean": [0, 1], "std": [1, 1]}'),
        ("codec", '{"kind": "dct4"}'), ("config", '{"num_layers": 2}'), ("use_dtc", "maybe"), ("use_dtc", "1"),
        ("config", json.dumps(tiny.ARCHITECTURE.to_json() | {"rope_axes": [8, 12, 13]})),
        ("config", json.dumps(tiny.ARCHITECTURE.to_json() | {"rope_axes": 3})),
        ("training", "[1]"), ("condition_encoder", '{"width": Infinity, "blocks": 1}'),
        ("codec", json.dumps({"kind": "dct4", "mean": [0] * 48, "std": [0] * 48})),
        ("codec", json.dumps({"kind": "dct4", "mean": [[0, 1]] * 48, "std": [1] * 48})),
        ("codec", json.dumps({"kind": "dct4", "mean": [float("nan")] * 48, "std": [1] * 48})),
    ],
)  # fmt: skip
def test_damaged_metadata_is_refused(path, key, value):
    refused(read_base, rewrite(path, **{f"teasr.{key}": value}))


@pytest.mark.parametrize("name", [name for name in tiny.ARCHITECTURE.to_json() if name != "rope_axes"])
@pytest.mark.parametrize("value", [[1], -1, 0, 2.0, "2", True, None], ids=str)
def test_impossible_sizes_are_named(path, name, value):
    config = json.dumps(tiny.ARCHITECTURE.to_json() | {name: value})
    error = refused(read_base, rewrite(path, **{"teasr.config": config}))
    assert f"{name} is {value!r}: expected a whole number above 0" in error


@pytest.mark.parametrize("axes", [[16, 16], [32, 0, 0], [8.0, 12, 12], ["8", "12", "12"], "abc", {"8": 12}, None])
def test_impossible_rope_axes_are_named(path, axes):
    config = json.dumps(tiny.ARCHITECTURE.to_json() | {"rope_axes": axes})
    assert "rope_axes is " in refused(read_base, rewrite(path, **{"teasr.config": config}))


@pytest.mark.parametrize("shape", [None, (16,), (3, 17)])
def test_a_wrong_prompt_embedding_is_refused(path, shape):
    def change(tensors):
        del tensors[PROMPT_KEY]
        if shape is not None:
            tensors[PROMPT_KEY] = torch.ones(shape)

    refused(read_base, rewrite(path, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("img_in.weight"),
        lambda tensors: tensors.update({"img_in.extra": torch.ones(1)}),
        lambda tensors: tensors.update({"img_in.weight": torch.ones(64, 191)}),
    ],
    ids=["missing", "unknown", "other shape"],
)
def test_a_file_that_does_not_hold_its_model_is_refused(path, change):
    base = read_base(rewrite(path, change))
    assert "img_in" in refused(lambda _path: build_velocity(base), path)


@pytest.mark.parametrize("damage", ["pickle", "truncated", "empty", "lora", "ordinary"])
def test_other_files_are_refused(path, damage):
    if damage == "pickle":
        torch.save(tiny.base_weights(), path)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "lora":
        tiny.write_lora(path)
    else:
        save_file(tiny.base_weights(), path)
    refused(read_base, path)


# The shipped files


def test_a_missing_base_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(base_file, "ASSETS", tmp_path)
    with pytest.raises(ModelFileError, match="install the pack again"):
        shipped_base()


def test_a_base_alone_is_fine_and_a_foreign_lora_beside_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(base_file, "ASSETS", tiny.write_assets(tmp_path))
    base = shipped_base()
    assert shipped_lora(base) is None
    tiny.write_lora(tmp_path / LORA_NAME)
    assert shipped_lora(base).rank == tiny.RANK
    tiny.write_lora(tmp_path / LORA_NAME, **{"teasr.base_fingerprint": "0" * 64})
    with pytest.raises(LoraFileError):
        shipped_lora(base)


@pytest.fixture
def shipped():
    if not (base_file.ASSETS / BASE_NAME).exists():
        pytest.skip(f"{BASE_NAME} is not in teasr_core/assets yet: it comes from `python -m training export`")
    return shipped_base()


def test_shipped_base_is_whole_and_small(shipped):
    names = [BASE_NAME, LORA_NAME]
    size = sum((base_file.ASSETS / name).stat().st_size for name in names if (base_file.ASSETS / name).exists())
    assert size <= MAX_MIB * 2**20
    assert all(tensor.dtype == torch.bfloat16 for tensor in shipped.tensors.values())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in shipped.tensors.values())
    build_velocity(shipped, shipped_lora(shipped))
