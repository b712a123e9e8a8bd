"""Prompts through ComfyUI's own executor, with a small photo as their source and an output that keeps what it gets."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def add_node(host, monkeypatch):
    """add_node(name, outputs, inputs, call): a node type for this test, made as ComfyUI's first ones are.

    outputs: the types of its sockets; none make an output node. inputs: name -> (type, options), as INPUT_TYPES has
    them. call: it gets the inputs by name and returns the outputs as a tuple.
    """

    def add(name, outputs, inputs, call):
        class Node:
            RETURN_TYPES = outputs
            OUTPUT_NODE = not outputs
            FUNCTION = "run"
            CATEGORY = "test"

            @classmethod
            def INPUT_TYPES(cls):  # noqa: N802, the host's name
                return {"required": inputs}

            def run(self, **values):
                return call(**values)

        monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, name, Node)

    return add


@pytest.fixture
def executor(host, assets, photo):
    """executor(cache): a PromptExecutor and what it did. `run(prompt)` returns the outputs of the node "out"."""
    results = []

    class Keep:
        """An output node that keeps what it gets."""

        RETURN_TYPES = ()
        OUTPUT_NODE = True
        FUNCTION = "keep"
        CATEGORY = "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802, the host's name
            return {"required": {"image": ("IMAGE",), "mask": ("MASK",), "report": ("STRING", {"forceInput": True})}}

        def keep(self, image, mask, report):
            results.append(SimpleNamespace(image=image, mask=mask, report=report))
            return {"ui": {}}

    class Source:
        """`count` of three pictures from `first` on, as RGB; beside them a mask, with a `hole` or empty."""

        RETURN_TYPES = ("IMAGE", "MASK")
        FUNCTION = "load"
        CATEGORY = "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            required = {"count": ("INT", {"default": 1}), "hole": ("BOOLEAN", {"default": False})}
            return {"required": required, "optional": {"first": ("INT", {"default": 0})}}

        def load(self, count, hole, first=0):
            mask = torch.zeros(1, *photo.shape[1:3])
            mask[:, 4:9, 4:9] = float(hole)
            return torch.cat([photo, photo.flip(2), 1 - photo])[first : first + count], mask

    class SourceList:
        """Two pictures of different sizes, as a list."""

        RETURN_TYPES = ("IMAGE",)
        OUTPUT_IS_LIST = (True,)
        FUNCTION = "load"
        CATEGORY = "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            return {"required": {}}

        def load(self):
            return ([photo, photo[:, :9, :14]],)

    mappings = host.nodes.NODE_CLASS_MAPPINGS
    added = {"TestKeep": Keep, "TestSource": Source, "TestSourceList": SourceList, **host.classes}
    mappings.update(added)
    stock = host.nodes_custom_sampler
    mappings.update(
        {
            cls.__name__: cls
            for cls in (stock.RandomNoise, stock.BasicGuider, stock.KSamplerSelect, stock.SamplerCustomAdvanced)
        }
    )

    def make(cache="RAM_PRESSURE"):
        executed, errors = [], []
        server = SimpleNamespace(
            client_id="test",
            last_node_id=None,
            send_sync=lambda event, data, _client: (
                executed.append(data["node"]) if event == "executing"
                else errors.append(data["exception_message"]) if event == "execution_error" else None
            ),
        )  # fmt: skip
        machine = host.execution.PromptExecutor(
            server,
            cache_type=host.execution.CacheType[cache],
            cache_args={"lru": 50, "ram": 0.1, "ram_inactive": 1e6},  # inactive results go at once, as by default
        )

        prompt_ids = itertools.count()

        def run(prompt):
            executed.clear(), errors.clear(), results.clear()
            asyncio.run(machine.execute_async(prompt, f"prompt {next(prompt_ids)}", {"client_id": "test"}, ["out"]))
            run.ran = sorted(class_of(prompt, machine, node) for node in executed)
            run.errors = list(errors)
            run.results = list(results)
            return results[0] if results else None

        return run

    yield make
    for name in added:
        mappings.pop(name)


@pytest.fixture
def upscaled(executor, add_node):
    """upscaled(image, **inputs): what TEASRUpscale makes of any IMAGE (B, H, W, C): `image`, `mask`, `report`."""
    go = executor()
    shown = {}
    add_node("TestPicture", ("IMAGE",), {"key": ("INT", {})}, lambda key: (shown[key],))

    def call(image, **inputs):
        shown[id(image)] = image
        prompt = upscale_prompt(**inputs)
        prompt["in"] = {"class_type": "TestPicture", "inputs": {"key": id(image)}}
        return go(prompt)

    return call


def class_of(prompt, machine, node):
    graph = prompt | machine.caches.outputs.dynprompt.ephemeral_prompt
    return graph[node]["class_type"]


def upscale_prompt(builtin=True, source=(), **inputs):
    """Source -> TEASRUpscale -> Keep; in fp32 through a wired TEASRLoadBuiltin unless `builtin` is False."""
    values = {"image": ["in", 0], "size": "factor", "size.scale": 2.0, "steps": 2, "step_mode": "manual", "seed": 7,
              "strength": 1.0, "color_fix": "wavelet"}  # fmt: skip
    prompt = {
        "in": {"class_type": "TestSource", "inputs": {"count": 1, "hole": False} | dict(source)},
        "up": {"class_type": "TEASRUpscale", "inputs": values | inputs},
        "out": {"class_type": "TestKeep", "inputs": {"image": ["up", 0], "mask": ["up", 1], "report": ["up", 2]}},
    }
    if builtin:
        prompt["load"] = {"class_type": "TEASRLoadBuiltin", "inputs": {"lora_strength": 1.0, "dtype": "fp32"}}
        prompt["up"]["inputs"] |= {"model": ["load", 0], "vae": ["load", 1], "conditioning": ["load", 2]}
    return prompt
