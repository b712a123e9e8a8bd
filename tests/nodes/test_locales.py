"""R30: every node speaks eight languages, and the English is the schema's own.

After a change of a tooltip: `TEASR_WRITE_LOCALE=1 python -m pytest tests/nodes/test_locales.py` writes the English file
anew; the others are translated by hand.
"""

import json
import os
import re
from pathlib import Path

import pytest

from helpers.comfy.locale_texts import english_texts, texts_of

LOCALES = Path(__file__).parents[2] / "locales"
TRANSLATIONS = ("de", "es", "fr", "ja", "ko", "ru", "zh")
LANGUAGES = ("en", *TRANSLATIONS)
KEPT = {"VAE", "Latent"}  # names that stay as they are
# Letters that a text of the language has; where it shares them with English, words that would be English.
LETTERS = {
    "ja": "[\u3040-\u30ff\u4e00-\u9fff]",
    "ko": "[\uac00-\ud7a3]",
    "ru": "[\u0400-\u04ff]",
    "zh": "[\u4e00-\u9fff]",
}
ENGLISH = re.compile(r"\b(the|this|is|with|and|of|it|by)\b")
# What vue-i18n takes for its own syntax: a message with one of these is shown broken or not at all.
SYNTAX = "{}@|"


@pytest.fixture(scope="module")
def schemas(host):
    """node id -> the entry its schema asks for."""
    return {node_id: english_texts(node.GET_NODE_INFO_V1()) for node_id, node in host.classes.items()}


def read(language):
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def missing_and_stale(found, wanted, path=""):
    """Keys of `wanted` that `found` lacks, and the other way round, as `path.to.key`."""
    missing = [f"missing {path}{key}" for key in wanted if key not in found]
    stale = [f"stale {path}{key}" for key in found if key not in wanted]
    for key in set(wanted) & set(found):
        if isinstance(wanted[key], dict):
            deeper = missing_and_stale(found[key], wanted[key], f"{path}{key}.")
            missing, stale = missing + deeper[0], stale + deeper[1]
    return sorted(missing), sorted(stale)


def test_the_english_texts_are_the_schemas(schemas):
    if os.environ.get("TEASR_WRITE_LOCALE"):
        text = json.dumps(schemas, ensure_ascii=False, indent=2) + "\n"
        (LOCALES / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")
    assert read("en") == schemas


def test_every_folder_is_a_language():
    assert sorted(path.name for path in LOCALES.iterdir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_nothing_is_untranslated_and_nothing_stale(schemas, language):
    missing, stale = missing_and_stale(read(language), schemas)
    # A key whose tooltips differ from choice to choice has one translated tooltip that names both.
    shared = {f"stale {node_id}.inputs.size_px.tooltip" for node_id in schemas}
    assert missing == []
    assert set(stale) <= shared


def test_the_comparison_bites():
    wanted = {"A": {"inputs": {"x": {"name": "x", "tooltip": "t"}}}}
    found = {"A": {"inputs": {"x": {"name": "x"}, "y": {"name": "y"}}}, "B": {}}
    assert missing_and_stale(found, wanted) == (["missing A.inputs.x.tooltip"], ["stale A.inputs.y", "stale B"])


def is_foreign(text, language):
    """Whether a text may be of this language: by its letters, or by having no English word."""
    if language in LETTERS:
        return bool(re.search(LETTERS[language], text))
    return not ENGLISH.search(text)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translation_is_of_its_language(language):
    english = {f"{node_id}.{where}": text for node_id, node in read("en").items() for where, text in texts_of(node)}
    for node_id, node in read(language).items():
        for where, text in texts_of(node):
            key = f"{node_id}.{where}"
            assert text in KEPT or is_foreign(text, language), f"{key}: {text}"
            if where.endswith(("tooltip", "description", "display_name")):
                assert text != english.get(key), key


def test_english_in_a_translation_is_seen():
    text = "This picture is restored; a batch is restored one by one."
    assert [language for language in TRANSLATIONS if is_foreign(text, language)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_holds_what_the_frontend_takes_for_syntax(language):
    for node_id, node in read(language).items():
        for where, text in texts_of(node):
            assert text.strip() == text != ""
            assert not set(SYNTAX) & set(text), f"{node_id}.{where}: {text}"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_one_input_has_one_name_everywhere(language):
    """`seed` on one node is `seed` on another; an image input may say which image it is."""
    names: dict[str, set[str]] = {}
    for node in read(language).values():
        for key, entry in node["inputs"].items():
            names.setdefault(key, set()).add(entry["name"])
    assert {key: found for key, found in names.items() if len(found) > 1} == {}


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_choices_are_named_in_the_translated_tooltips(host, language):
    """The frontend does not translate the choices of a combo, so that its tooltip must explain each."""
    texts = read(language)
    for node_id, node in host.classes.items():
        required = node.GET_NODE_INFO_V1()["input"]["required"]
        for name in {"color_fix", "mode", "step_mode"} & required.keys():
            combo = required[name]
            choices = combo[0] if isinstance(combo[0], list) else combo[1]["options"]
            tooltip = texts[node_id]["inputs"][name]["tooltip"]
            assert [choice for choice in choices if choice not in tooltip] == [], f"{node_id}.{name}"
