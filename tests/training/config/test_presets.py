"""Shipped presets are found by name in any folder, and a file of the user's goes before them."""

from pathlib import Path

import pytest

from training.config.distill import load_distill_config
from training.config.presets import PRESETS, config_file

SHIPPED = sorted(path.relative_to(PRESETS).as_posix() for path in PRESETS.glob("*/*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_preset_is_found_by_its_names_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spelling in (name, name.removesuffix(".toml"), f"training/configs/{name}"):
        assert config_file(spelling) == PRESETS / name


def test_a_file_of_that_name_goes_before_the_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "first.toml").write_text("")
    assert config_file("distill/first.toml") == Path("distill/first.toml")


def test_what_is_neither_stays_the_name_that_was_given():
    assert config_file("distill/none.toml") == Path("distill/none.toml")


def test_a_bare_word_for_a_list_is_a_list_of_one():
    config = load_distill_config(
        config_file("distill/smoke"), ["data.folders=C:\\my photos", "run.preview_images=a.png"]
    )
    assert config.data.folders == ("C:\\my photos",) and config.run.preview_images == ("a.png",)
    config = load_distill_config(config_file("distill/smoke"), ["data.folders=['a', 'b']"])
    assert config.data.folders == ("a", "b")


def test_a_text_from_the_command_line_stays_a_plain_text():
    config = load_distill_config(config_file("distill/smoke"), ["run.output_dir=runs/mine"])
    assert type(config.run.output_dir) is str and config.run.output_dir == "runs/mine"
    assert all(type(folder) is str for folder in config.data.folders)
