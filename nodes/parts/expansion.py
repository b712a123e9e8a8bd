"""The graph that TEASRUpscale and TEASRCompareSteps expand into, up to the sampler.

One load and one encode serve any number of samplers behind them, and ComfyUI's cache keeps both.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ...teasr_core.errors import InputError
from ..inputs import CATEGORY, size_values

Link = list[Any]


def part_schema(
    node_id: str, name: str, owner: str, inputs: list[io.Input], outputs: list[io.Output], is_input_list: bool = False
) -> io.Schema:
    """The schema of a node that only expansions use: menus do not list it."""
    return io.Schema(
        node_id=node_id,
        display_name=name,
        category=CATEGORY,
        description=f"{owner} makes this node while it runs; it is not meant to be placed by hand.",
        is_dev_only=True,
        is_input_list=is_input_list,
        inputs=inputs,
        outputs=outputs,
    )


@dataclass(frozen=True)
class ModelWires:
    """The three wires that belong together. Where none of them is given, the built-in model is used."""

    model: Link | None = None
    vae: Link | None = None
    conditioning: Link | None = None

    def __post_init__(self) -> None:
        wires = {"model": self.model, "vae": self.vae, "conditioning": self.conditioning}
        missing = [name for name, link in wires.items() if link is None]
        if missing and len(missing) < len(wires):
            raise InputError(
                f"{' and '.join(name for name in wires if name not in missing)} wired, {' and '.join(missing)} not: "
                f"wire {' and '.join(missing)} too, or unplug the rest for the built-in model"
            )


@dataclass(frozen=True)
class Encoded:
    """A picture in the model's hands: what samplers and the decoder are wired to."""

    model: Link
    vae: Link
    conditioning: Link
    latent: Link

    def sampler_inputs(self) -> dict[str, Link]:
        return {"model": self.model, "conditioning": self.conditioning, "latent": self.latent}


class Expansion:
    """A graph that begins with one picture at its target size.

    image: link to the picture as it came. resized, mask: links to it and its mask at the target size.
    encoded: links to the encoded picture and its model, or None where the graph needs no model.
    """

    def __init__(
        self,
        wires: ModelWires,
        image: Link,
        mask: Link | None,
        size: dict[str, Any],
        max_megapixels: float,
        needs_model: bool,
        region: Link | None = None,
    ) -> None:
        self.graph = GraphBuilder()
        source = self.graph.node("TEASRUpscaleInput", image=image, max_megapixels=max_megapixels, **size_values(size))
        source.set_input("mask", mask)
        self.image, self.resized, self.mask = image, source.out(0), source.out(1)
        self.encoded = self._encode(wires, source.out(2), size, max_megapixels) if needs_model else None
        self.wires = wires
        if self.encoded is not None and region is not None:
            self.encoded = self._restrict(self.encoded, region, image)

    def add_selector(self, **inputs: Any) -> Link:
        """Add the node that gives the times of the steps. It must know a wired MODEL, whose LoRA may start below 1."""
        selector = self.graph.node("TEASRStepSelector", **inputs)
        if self.wires.model is not None:
            selector.set_input("model", self.wires.model)
        return selector.out(0)

    def add_result(self, part: str, grain: float, seed: int, **inputs: Any) -> Any:
        """Add the node `part`, which takes `decoded_inputs` and turns the decoded picture into the result.

        The seed is that of the grain: without grain another seed need not run the part again.
        """
        return self.graph.node(
            part,
            resized=self.resized,
            mask=self.mask,
            source=self.image,
            grain=grain,
            seed=seed if grain > 0 else 0,
            **inputs,
        )

    def add_decode(self, encoded: Encoded, sampled: Link, result: Any) -> None:
        """Decode `sampled`, and wire the latent and the picture into the node `result`."""
        decode = self.graph.node("TEASRUpscaleDecode", latent=sampled, vae=encoded.vae)
        result.set_input("decoded", decode.out(0))
        result.set_input("latent", decode.out(1))

    def _restrict(self, encoded: Encoded, region: Link, image: Link) -> Encoded:
        """The same picture, of which only the region is restored."""
        part = self.graph.node(
            "TEASRUpscaleRegion", latent=encoded.latent, region=region, image=image, resized=self.resized
        )
        return dataclasses.replace(encoded, latent=part.out(0))

    def _encode(self, wires: ModelWires, opaque: Link, size: dict[str, Any], max_megapixels: float) -> Encoded:
        """Add the nodes that load the built-in model, unless another one is wired, and encode the picture.

        It is resized there once more, since the condition encoder must know how large it was.
        """
        model, vae, conditioning = wires.model, wires.vae, wires.conditioning
        if model is None or vae is None or conditioning is None:
            builtin = self.graph.node("TEASRLoadBuiltin", lora_strength=1.0, dtype="auto")
            model, vae, conditioning = builtin.out(0), builtin.out(1), builtin.out(2)
        condition = self.graph.node(
            "TEASRCondition",
            image=opaque,
            vae=vae,
            conditioning=conditioning,
            max_megapixels=max_megapixels,
            **size_values(size),
        )
        if wires.model is not None:  # its LoRA may have a second VAE encoder
            condition.set_input("model", model)
        return Encoded(model, vae, condition.out(0), condition.out(2))
