"""R25: a graph saved with the first release, never edited since (tests/frozen), opens and asks for the same prompt."""

import pytest

from helpers.comfy import frozen_v1

# Widgets that came after the first release. An old graph opens with their defaults, which do nothing.
ADDED_WIDGETS = {
    "TEASRUpscale": {"grain": 0},
    "TEASRCompareSteps": {"grain": 0},
    "TEASRColorFix": {"grain": 0, "grain_seed": 0},
}


@pytest.mark.parametrize("use_vue", [False, True], ids=["classic", "nodes 2.0"])
def test_the_first_releases_graph_opens_and_becomes_its_prompt(frontend, server, shots, use_vue):
    frozen_v1.install(server)
    graph = frozen_v1.FOLDER / "v1_workflow.json"
    report = frontend("check", graph, use_vue=use_vue, output=shots / f"frozen_{use_vue}.png")
    assert report["missing"] == report["red"] == report["unwired"] == report["errors"] == []
    prompt = frozen_v1.read("v1_prompt.json")
    found = {node: (entry["class_type"], entry["inputs"]) for node, entry in report["prompt"].items()}
    expected = {node: (entry["class_type"], entry["inputs"]) for node, entry in prompt.items()}
    assert found == {node: (kind, inputs | ADDED_WIDGETS.get(kind, {})) for node, (kind, inputs) in expected.items()}
