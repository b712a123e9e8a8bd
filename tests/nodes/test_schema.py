"""What is permanent: node ids, inputs, outputs and defaults (R25), and what every node owes its user (R30)."""

import inspect
import json

import pytest

SIZE = [("size", "COMFY_DYNAMICCOMBO_V3", None), ("max_megapixels", "FLOAT", 0.0)]
TILES = [("tile_px", "INT", 0), ("overlap_px", "INT", 0)]
OTHER_MODEL = [
    ("model", "MODEL", None),
    ("vae", "VAE", None),
    ("conditioning", "CONDITIONING", None),
    ("mask", "MASK", None),
]
FIDELITY, TOLERANCE = ("fidelity", "FLOAT", 0.0), ("tolerance", "FLOAT", 0.12)

# node -> (inputs as (id, type, default), outputs as (name, type)), in the order of the sockets.
NODES = {
    "TEASRLoadBuiltin": (
        [("lora_strength", "FLOAT", 1.0), ("dtype", "COMBO", "auto")],
        [("model", "MODEL"), ("vae", "VAE"), ("conditioning", "CONDITIONING")],
    ),
    "TEASRApplyLoRA": (
        [
            ("model", "MODEL", None),
            ("lora_name", "COMBO", None),
            ("lora_strength", "FLOAT", 1.0),
            ("allow_other_base", "BOOLEAN", False),
        ],
        [("model", "MODEL"), ("conditioning", "CONDITIONING")],
    ),
    "TEASRCondition": (
        [
            ("image", "IMAGE", None),
            ("vae", "VAE", None),
            ("conditioning", "CONDITIONING", None),
            *SIZE,
            ("negative", "CONDITIONING", None),
            ("model", "MODEL", None),
        ],
        [("conditioning", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT"), ("resized", "IMAGE")],
    ),
    "TEASRStepSelector": (
        [
            ("steps", "INT", 1),
            ("mode", "COMBO", "manual"),
            TOLERANCE,
            ("model", "MODEL", None),
            ("conditioning", "CONDITIONING", None),
            ("latent", "LATENT", None),
            ("seed", "INT", None),
        ],
        [("sigmas", "SIGMAS"), ("steps", "INT"), ("reason", "STRING")],
    ),
    "TEASRSampler": (
        [
            ("model", "MODEL", None),
            ("conditioning", "CONDITIONING", None),
            ("latent", "LATENT", None),
            ("sigmas", "SIGMAS", None),
            ("seed", "INT", 0),
            *TILES,
            ("negative", "CONDITIONING", None),
            FIDELITY,
        ],
        [("latent", "LATENT")],
    ),
    "TEASRUpscale": (
        [
            ("image", "IMAGE", None),
            *SIZE,
            ("steps", "INT", 1),
            ("step_mode", "COMBO", "manual"),
            ("seed", "INT", 0),
            ("strength", "FLOAT", 1.0),
            ("color_fix", "COMBO", "wavelet"),
            *TILES,
            ("color_strength", "FLOAT", 1.0),
            *OTHER_MODEL,
            FIDELITY,
            TOLERANCE,
            ("region", "MASK", None),
            ("grain", "FLOAT", 0.0),
        ],
        [("image", "IMAGE"), ("mask", "MASK"), ("report", "STRING")],
    ),
    "TEASRCompareSteps": (
        [
            ("image", "IMAGE", None),
            *SIZE,
            ("steps_list", "STRING", "1,2,4,8"),
            ("seed", "INT", 0),
            ("strength", "FLOAT", 1.0),
            ("color_fix", "COMBO", "wavelet"),
            *TILES,
            ("color_strength", "FLOAT", 1.0),
            *OTHER_MODEL,
            FIDELITY,
            ("grain", "FLOAT", 0.0),
        ],
        [("image", "IMAGE"), ("images", "IMAGE")],
    ),
    "TEASRColorFix": (
        [
            ("image", "IMAGE", None),
            ("reference", "IMAGE", None),
            ("color_fix", "COMBO", "wavelet"),
            ("color_strength", "FLOAT", 1.0),
            ("grain", "FLOAT", 0.0),
            ("grain_seed", "INT", 0),
        ],
        [("image", "IMAGE")],
    ),
}
HIDDEN = {
    "TEASRUpscaleInput",
    "TEASRUpscaleRegion",
    "TEASRUpscaleAutoSampler",
    "TEASRUpscaleDecode",
    "TEASRUpscaleOutput",
    "TEASRCompareStepsColumn",
    "TEASRCompareStepsGrid",
}


def all_inputs(info):
    required, optional = info["input"].get("required", {}), info["input"].get("optional", {})
    return {**required, **optional}


def test_the_pack_has_these_nodes_and_no_others(host):
    assert set(host.classes) == set(NODES) | HIDDEN


@pytest.mark.parametrize("node_id", NODES)
def test_ids_types_defaults_and_outputs_are_the_specs(host, node_id):
    inputs, outputs = NODES[node_id]
    info = host.node(node_id).GET_NODE_INFO_V1()
    found = [
        (name, "COMBO" if isinstance(spec[0], list) else spec[0], spec[1].get("default"))
        for name, spec in all_inputs(info).items()
    ]
    assert found == inputs
    assert list(zip(info["output_name"], info["output"], strict=True)) == outputs


@pytest.mark.parametrize("node_id", [*NODES, "TEASRUpscaleInput", "TEASRUpscaleAutoSampler"])
def test_schema_defaults_equal_function_defaults(host, node_id):
    node = host.node(node_id)
    parameters = inspect.signature(node.execute).parameters
    for name, spec in all_inputs(node.GET_NODE_INFO_V1()).items():
        default = spec[1].get("default")
        if default is not None:
            assert parameters[name].default == default, name
        elif name in node.GET_NODE_INFO_V1()["input"].get("optional", {}):
            assert parameters[name].default is None, name


@pytest.mark.parametrize("node_id", [*NODES, *sorted(HIDDEN)])
def test_every_input_has_a_tooltip_and_names_have_no_emoji(host, node_id):
    info = host.node(node_id).GET_NODE_INFO_V1()
    dynamic = [option for spec in all_inputs(info).values() for option in spec[1].get("options", [])]
    nested = {
        k: v
        for option in dynamic
        if isinstance(option, dict)
        for k, v in all_inputs({"input": option["inputs"]}).items()
    }
    for name, spec in (all_inputs(info) | nested).items():
        assert spec[1].get("tooltip"), name
    assert info["category"] == "image/upscaling/TEASR"
    assert info["description"]
    assert (info["display_name"] + info["description"]).isascii()


def test_only_the_node_that_most_people_use_is_among_the_essentials(host):
    """ComfyUI's own image nodes name the tab's group `Image Tools` in the same way."""
    found = {node_id: host.node(node_id).GET_NODE_INFO_V1().get("essentials_category") for node_id in NODES}
    assert {node_id: group for node_id, group in found.items() if group} == {"TEASRUpscale": "Image Tools"}


def test_the_size_combo_offers_five_modes_with_factor_4_first(host):
    options = all_inputs(host.node("TEASRUpscale").GET_NODE_INFO_V1())["size"][1]["options"]
    assert [(o["key"], sorted(all_inputs({"input": o["inputs"]}))) for o in options] == [
        ("factor", ["scale"]),
        ("shortest", ["px"]),
        ("longest", ["px"]),
        ("exact", ["height", "width"]),
        ("megapixels", ["mp"]),
    ]
    assert all_inputs({"input": options[0]["inputs"]})["scale"][1]["default"] == 4.0


@pytest.mark.parametrize("node_id", ["TEASRUpscale", "TEASRCompareSteps"])
def test_the_one_node_upscaler_shows_at_most_eight_widgets(host, node_id):
    sockets = {"IMAGE", "MODEL", "VAE", "CONDITIONING", "MASK"}
    inputs = all_inputs(host.node(node_id).GET_NODE_INFO_V1())
    visible = [name for name, spec in inputs.items() if spec[0] not in sockets and not spec[1].get("advanced")]
    # The size combo brings one widget of its own (two for `exact`), the seed its control.
    assert len(visible) + 2 <= 8, visible


def test_steps_is_a_slider_from_1_to_30_and_seed_is_64_bit(host):
    for node_id in ("TEASRUpscale", "TEASRStepSelector"):
        steps = all_inputs(host.node(node_id).GET_NODE_INFO_V1())["steps"][1]
        assert (steps["min"], steps["max"], steps["display"]) == (1, 30, "slider")
    for node_id in ("TEASRUpscale", "TEASRSampler"):
        seed = all_inputs(host.node(node_id).GET_NODE_INFO_V1())["seed"][1]
        assert (seed["min"], seed["max"], seed["control_after_generate"]) == (0, 2**64 - 1, True)


def test_what_came_after_the_first_release_is_optional_and_behind_the_older_widgets(host):
    """R25: an old prompt validates without it, an old graph's widget values keep their places."""
    for node_id, names in {
        "TEASRUpscale": ["fidelity", "tolerance", "region", "grain"],
        "TEASRCompareSteps": ["fidelity", "grain"],
        "TEASRColorFix": ["grain", "grain_seed"],
        "TEASRSampler": ["fidelity"],
        "TEASRStepSelector": ["tolerance", "model", "conditioning", "latent", "seed"],
    }.items():
        assert list(host.node(node_id).GET_NODE_INFO_V1()["input"]["optional"])[-len(names) :] == names
    seed = host.node("TEASRStepSelector").GET_NODE_INFO_V1()["input"]["optional"]["seed"][1]
    assert seed["forceInput"] is True  # a wire, no third widget


def test_the_parts_of_the_upscaler_are_not_in_the_menus(host):
    for node_id in HIDDEN:
        assert host.node(node_id).GET_NODE_INFO_V1()["dev_only"] is True


def test_schemas_survive_json(host):
    for node in host.classes.values():
        assert json.loads(json.dumps(node.GET_NODE_INFO_V1()))
