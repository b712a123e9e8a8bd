"""The graph that TEASRUpscale and TEASRCompareSteps expand into, up to the sampler.

One encode and one load serve any number of samplers behind them, and ComfyUI's cache keeps both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_execution.graph_utils import GraphBuilder

from ...teasr_core.errors import InputError
from ..inputs import size_values

Link = list[Any]


@dataclass(frozen=True)
class ModelWires:
    """The three wires that belong together; all None is the built-in model."""

    model: Link | None = None
    vae: Link | None = None
    conditioning: Link | None = None

    def are_given(self) -> bool:
        """Whether a model is wired; all three or none. InputError naming the missing one."""
        wires = {"model": self.model, "vae": self.vae, "conditioning": self.conditioning}
        missing = [name for name, link in wires.items() if link is None]
        if missing and len(missing) < len(wires):
            raise InputError(
                f"{' and '.join(name for name in wires if name not in missing)} wired, {' and '.join(missing)} not: "
                f"wire {' and '.join(missing)} too, or unplug the rest for the built-in model"
            )
        return not missing


def add_source(
    graph: GraphBuilder, image: Link, mask: Link | None, size: dict[str, Any], max_megapixels: float
) -> tuple[Link, Link]:
    """(resized IMAGE, MASK) at the target size: what needs no model."""
    source = graph.node("TEASRUpscaleInput", image=image, max_megapixels=max_megapixels, **size_values(size))
    source.set_input("mask", mask)
    return source.out(0), source.out(1)


@dataclass(frozen=True)
class Encoded:
    """A picture in the model's hands: what samplers and the decoder are wired to."""

    model: Link
    vae: Link
    conditioning: Link
    latent: Link

    def sampler_inputs(self) -> dict[str, Link]:
        return {"model": self.model, "conditioning": self.conditioning, "latent": self.latent}

    def add_decode(self, graph: GraphBuilder, sampled: Link, result: Any) -> None:
        """Decode `sampled` and wire it, latent and picture, into the node `result` of the graph."""
        decode = graph.node("TEASRUpscaleDecode", latent=sampled, vae=self.vae)
        result.set_input("decoded", decode.out(0))
        result.set_input("latent", decode.out(1))


def add_condition(graph: GraphBuilder, resized: Link, wires: ModelWires) -> Encoded:
    """Load the built-in model where none is wired, and encode."""
    if wires.are_given():
        model, vae, conditioning = wires.model, wires.vae, wires.conditioning
    else:
        builtin = graph.node("TEASRLoadBuiltin", lora_strength=1.0, dtype="auto")
        model, vae, conditioning = builtin.out(0), builtin.out(1), builtin.out(2)
    # `resized` is at the target size already, so that strength 0 needs no VAE: the factor is 1 from here on.
    condition = graph.node(
        "TEASRCondition",
        image=resized,
        vae=vae,
        conditioning=conditioning,
        max_megapixels=0.0,
        **size_values({"size": "factor", "scale": 1.0}),
    )
    return Encoded(model, vae, condition.out(0), condition.out(2))
