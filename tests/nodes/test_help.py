"""R30: a help page for every node that a menu shows, in English and Chinese, where ComfyUI's frontend looks for it.

`web/docs/<id>/<language>.md`, then `web/docs/<id>.md`; both take pictures relative to `web/docs`.
"""

import importlib
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from helpers.comfy.locale_texts import all_inputs

DOCS = Path(__file__).parents[2] / "web" / "docs"
MAX_PICTURE_BYTES = 200_000
SECTIONS = {
    "en": ("When to use it", "Example", "Inputs", "What goes wrong"),
    "zh": ("什么时候用", "接线示例", "输入", "常见问题"),
}
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]*)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)]*)\)")


def page_path(node_id, language):
    return DOCS / f"{node_id}.md" if language == "en" else DOCS / node_id / f"{language}.md"


def input_ids(info):
    """Ids of a node's inputs; a nested one is `size.scale`."""
    combos = {key for key, _, options in all_inputs(info) if isinstance((options.get("options") or [0])[0], dict)}
    ids = set()
    for key, label, _ in all_inputs(info):
        combo = next((combo for combo in combos if key == f"{combo}_{label}"), None)
        ids.add(f"{combo}.{label}" if combo else key)
    return ids


def unmentioned(page, info):
    """Ids of inputs and outputs that the page does not name as `code`."""
    words = set(re.findall(r"`([^`\n]+)`", page))
    return sorted((input_ids(info) | set(info["output_name"])) - words)


def tabled(page, heading):
    """The ids in the first column of the table under `## heading`."""
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


@pytest.fixture(scope="module")
def public(host):
    """node id -> info, of the nodes that menus list."""
    infos = {node_id: node.GET_NODE_INFO_V1() for node_id, node in host.classes.items()}
    return {node_id: info for node_id, info in infos.items() if not info.get("dev_only")}


@pytest.mark.parametrize("language", SECTIONS)
def test_every_node_has_a_page_that_names_every_input_and_output(public, language):
    for node_id, info in public.items():
        page = page_path(node_id, language).read_text(encoding="utf-8")
        assert unmentioned(page, info) == [], node_id
        assert tabled(page, SECTIONS[language][2]) == input_ids(info), node_id
        headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
        assert [heading for heading in headings if heading in SECTIONS[language]] == list(SECTIONS[language]), node_id


def test_the_chinese_page_gives_the_name_that_the_node_shows(public):
    names = json.loads((DOCS.parents[1] / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    for node_id, info in public.items():
        page = page_path(node_id, "zh").read_text(encoding="utf-8")
        assert page.splitlines()[0] == f"# {names[node_id]['display_name']}"
        for name in input_ids(info):
            shown = names[node_id]["inputs"][name.replace(".", "_")]["name"]
            assert shown.lower() == name or f"`{name}` {shown}" in page, (node_id, name)


def test_a_page_is_headed_by_the_nodes_name(public, host):
    for node_id, info in public.items():
        title = page_path(node_id, "en").read_text(encoding="utf-8").splitlines()[0]
        assert title == f"# {info['display_name']}"


def test_an_input_left_out_is_found(public):
    page = page_path("TEASRColorFix", "en").read_text(encoding="utf-8")
    assert unmentioned(page.replace("`reference`", "reference"), public["TEASRColorFix"]) == ["reference"]
    page = page_path("TEASRCondition", "en").read_text(encoding="utf-8")
    assert unmentioned(page.replace("`size.px`", "`size`"), public["TEASRCondition"]) == ["size.px"]


def test_there_is_no_page_without_a_node(public):
    pages = {path.stem for path in DOCS.glob("*.md")}
    folders = {path.parent.name for path in DOCS.glob("*/*.md")}
    assert pages == folders == set(public)


def test_pictures_exist_are_small_and_are_all_shown():
    shown = set()
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]:
        for text, target in PICTURE.findall(path.read_text(encoding="utf-8")):
            assert text, f"{path.name}: a picture needs a text for those who cannot see it"
            assert (DOCS / target).is_file(), f"{path.name}: no {target}"
            shown.add(target)
    files = {f"pictures/{path.name}" for path in (DOCS / "pictures").iterdir()}
    assert shown == files
    for name in files:
        assert (DOCS / name).stat().st_size <= MAX_PICTURE_BYTES, name
        with Image.open(DOCS / name) as picture:
            picture.verify()


def test_links_lead_out_of_the_server():
    """The frontend opens a link as it stands, from the server's root: a relative one leads nowhere."""
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]:
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            assert target.startswith("https://"), f"{path.name}: {target}"


def test_comfyui_is_told_where_the_pages_are(host):
    pack = importlib.import_module(host.pack("nodes").__package__.partition(".")[0])
    assert (DOCS.parents[1] / pack.WEB_DIRECTORY).resolve() == DOCS.parent
