"""Models of an evaluation: each SPEC runs what it names, and its identity follows the files' bytes."""

import shutil

import numpy as np
import pytest
from safetensors.torch import save_file

from helpers.tiny import evaluation as tiny_eval
from helpers.tiny import model as tiny
from teasr_core.errors import InputError, LoraFileError, ModelFileError
from teasr_core.image.target_size import TargetSize
from teasr_core.weight_files import base_file
from training.evaluation.models import EvalSettings, parse_models


@pytest.fixture
def assets(tmp_path, monkeypatch):
    folder = tiny.write_assets(tmp_path / "assets")
    monkeypatch.setattr(base_file, "ASSETS", folder)
    return folder


def restored(model, steps=2, **settings):
    restore = model.load(EvalSettings(**settings))
    return restore(tiny_eval.smooth(12, 20, 0), TargetSize(40, 24), steps)


def test_each_spec_runs_what_it_names(tmp_path, assets):
    lora, base = tiny.write_lora(tmp_path / "lora+1.safetensors"), tiny.write_base(tmp_path / "base+1.safetensors")
    texts = ["a=builtin", "b=builtin-base", f"c={lora}", f"d={base}", f"e={base}+{lora}"]
    models = {model.name: model for model in parse_models(texts)}
    pictures = {name: restored(model) for name, model in models.items()}
    assert pictures["a"].shape == (24, 40, 3) and pictures["a"].dtype == np.uint8
    assert np.array_equal(pictures["a"], pictures["b"])  # no LoRA is shipped yet
    assert np.array_equal(pictures["b"], pictures["d"]) and np.array_equal(pictures["c"], pictures["e"])
    assert not np.array_equal(pictures["b"], pictures["c"])
    shutil.copy(lora, assets / base_file.LORA_NAME)
    with_shipped = parse_models(["a=builtin", "b=builtin-base"])
    assert np.array_equal(restored(with_shipped[0]), pictures["c"])
    assert np.array_equal(restored(with_shipped[1]), pictures["b"])


def test_the_settings_reach_the_model(assets):
    (model,) = parse_models([])
    assert (model.name, model.spec) == ("builtin", "builtin")
    first = restored(model)
    assert np.array_equal(first, restored(model))
    for settings in ({"seed": 1}, {"color_fix": "wavelet"}, {"dtype": "bf16"}):
        assert not np.array_equal(first, restored(model, **settings))
    assert not np.array_equal(first, restored(model, steps=3))


def test_the_identity_is_of_the_bytes(tmp_path, assets):
    base = tiny.write_base(tmp_path / "one.safetensors")
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    same = shutil.copy(base, tmp_path / "two.safetensors")
    other = tiny.write_base(tmp_path / "three.safetensors", **{"teasr.training": '{"steps": 9}'})
    one, two, three, both = parse_models([f"a={base}", f"b={same}", f"c={other}", f"d={base}+{lora}"])
    assert one.model_id == two.model_id
    assert len({one.model_id, three.model_id, both.model_id}) == 3
    assert set(both.hashes()) == {"base", "lora"} and both.hashes()["base"] == one.hashes()["base"]


def test_base_is_one_model_of_that_name(tmp_path, assets):
    base = tiny.write_base(tmp_path / "other.safetensors")
    (model,) = parse_models([], base)
    assert (model.name, model.base, model.lora) == ("base", base, None)
    with pytest.raises(InputError, match="both given"):
        parse_models(["a=builtin"], base)


def test_what_is_no_model_is_refused_before_anything_runs(tmp_path, assets):
    wide = tiny.QwenArchitecture(
        latent_channels=48, num_layers=3, num_heads=2, head_dim=32, rope_axes=(8, 12, 12), text_width=16
    )
    deep = tiny.write_lora(tmp_path / "deep.safetensors", wide)
    save_file(tiny.lora_weights(), tmp_path / "plain.safetensors")
    for texts, kind, match in (
        (["builtin"], InputError, "NAME=SPEC"),
        (["my model=builtin"], InputError, "NAME=SPEC"),
        (["a=builtin", "a=builtin-base"], InputError, "taken"),
        (["HQ=builtin"], InputError, "taken"),
        ([f"a={tmp_path}/none.safetensors"], ModelFileError, "no file"),
        ([f"a={tmp_path}/none+{deep}"], ModelFileError, "no file"),
        ([f"a={tmp_path}/plain.safetensors"], ModelFileError, "neither a TEASR base nor"),
        ([f"a={deep}"], LoraFileError, "architecture"),
    ):
        with pytest.raises(kind, match=match):
            parse_models(texts)
