"""What a user sees of the pack in ComfyUI's real frontend: templates, help, Chinese, the blueprint, the slider."""

import json
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
QUICK_START = ROOT / "workflows" / "teasr_quick_start.json"
HEADS = {"en": "When to use it", "zh": "什么时候用"}


def texts(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_the_template_browser_lists_our_workflows_with_their_thumbnails(frontend):
    report = frontend("templates", "teasr_quick_start")
    names = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert {card["name"] for card in report["listed"]} == names
    for card in report["listed"]:
        with Image.open(ROOT / "workflows" / f"{card['name']}.jpg") as thumbnail:
            # The frontend's own stand-in for a missing one has another size.
            assert card["thumbnails"] == [list(thumbnail.size)]
    assert "TEASRUpscale" in report["opened"]
    assert report["errors"] == []


@pytest.mark.parametrize("locale", HEADS)
def test_the_help_panel_shows_our_page(frontend, locale):
    report = frontend("help", "-", locale=locale)
    assert {"TEASRUpscale", "TEASRSampler", "TEASRStepSelector"} <= set(report["pages"])
    for node_id, page in report["pages"].items():
        assert not page["isFallback"], node_id
        assert HEADS[locale] in page["text"], node_id
        assert page["heading"], node_id
        for source, width in page["pictures"]:
            assert source.startswith("/extensions/teasr/docs/pictures/")
            assert width > 100, (node_id, source)
    assert any(page["pictures"] for page in report["pages"].values())
    assert report["errors"] == []


@pytest.mark.parametrize("locale", ["es", "fr", "ja", "ko", "ru", "zh"])  # the frontend does not offer German yet
def test_translated_names_are_shown(frontend, locale, shots):
    report = frontend("names", QUICK_START, locale=locale, use_vue=True)
    (shots / "names.png").rename(shots / f"names_{locale}.png")
    chosen = texts(locale)
    for node_id, node in report["nodes"].items():
        wanted = chosen[node_id]
        assert node["title"] == wanted["display_name"]
        labels = {key: entry["name"] for key, entry in wanted["inputs"].items()}
        shown = node["inputs"] | node["widgets"]
        shown.pop("control_after_generate", None)  # the frontend's own
        assert {name: labels[name.replace(".", "_")] for name in shown} == shown, node_id
        assert node["outputs"] == [entry["name"] for entry in wanted["outputs"].values()], node_id
    assert chosen["TEASRUpscale"]["display_name"] in report["titles"]  # in a saved workflow too
    assert report["errors"] == []


def test_english_names_are_the_schemas(frontend):
    report = frontend("names", QUICK_START, locale="en")
    for node_id, node in report["nodes"].items():
        assert node["title"] == texts("en")[node_id]["display_name"]
        assert node["outputs"] == [entry["name"] for entry in texts("en")[node_id]["outputs"].values()]


def test_the_blueprint_is_listed_and_runs(frontend, server):
    report = frontend("insert", "TEASR Restore", use_vue=True)
    assert report["pack"] == "custom_nodes.teasr"
    assert report["title"] == "TEASR Restore"
    assert report["inputs"][0] == "image"
    assert [name for name, _ in report["widgets"]][:4] == ["scale", "steps", "seed", "color_fix"]
    assert report["run"]["event"] == "execution_success", report["run"]
    assert report["errors"] == []


def test_dragging_the_slider_from_1_to_8_and_pressing_run_changes_the_picture(frontend, server):
    report = frontend("slider", QUICK_START, use_vue=True)
    first, second = report["first"], report["second"]
    assert first["event"] == second["event"] == "execution_success", report
    assert (first["steps"], second["steps"]) == (1, 8)
    [before], [after] = first["pixels"], second["pixels"]
    assert before[:2] == after[:2] == [96, 80]  # twice 48 x 40
    assert before != after
    assert report["errors"] == []


def test_the_quick_start_runs_in_app_mode(frontend, server):
    report = frontend("app", QUICK_START)
    assert report["opensAsGraph"] is True
    assert report["widgets"] == ["image", "scale", "steps", "strength"]
    assert report["run"]["event"] == "execution_success", report["run"]
    assert report["shown"] and set(report["shown"]) == {96}  # twice the picture's 48
    assert report["errors"] == []


def test_the_node_library_lists_us_among_the_upscalers(frontend):
    report = frontend("library", "TEASR")
    names = {entry["display_name"] for entry in texts("en").values() if "part)" not in entry["display_name"]}
    listed = {path[-1]: path[:-1] for path in report["paths"]}
    assert {listed[name] == ["image", "upscaling", "TEASR"] for name in names} == {True}
    assert report["errors"] == []
