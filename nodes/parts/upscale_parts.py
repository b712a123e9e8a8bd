"""The two ends of TEASRUpscale's graph and its decoder. They are nodes because ComfyUI's cache keeps nodes' results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ...teasr_core.image.alpha import resize_alpha
from ...teasr_core.image.region import Region, decode_in_box
from ...teasr_core.image.resize import resize
from ...teasr_core.restore import RestoreOptions, postprocess
from ..host.images import between_nodes, from_host, rgb_and_alpha, size_of, to_host, with_alpha_of
from ..host.running import show_on_node
from ..host.sockets import check_latent
from ..inputs import (
    color_fix_input,
    color_strength_input,
    grain_input,
    max_megapixels_input,
    seed_input,
    size_input,
    strength_input,
    target_size,
)
from ..run.region import region_of
from ..run.run_notes import NOTES_KEY, RunNotes, notes_of
from ..run.vae import BuiltinVae, HostVae, picture_vae
from .expansion import part_schema


class TEASRUpscaleInput(io.ComfyNode):
    """Does what comes before the model: it splits off the transparency and resizes to the exact target size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return part_schema(
            "TEASRUpscaleInput",
            "TEASR Upscale (input part)",
            "TEASRUpscale",
            inputs=[
                io.Image.Input("image", tooltip="This is the picture; a fourth channel is its alpha."),
                io.Mask.Input("mask", optional=True, tooltip="This is its transparency, 1 = transparent."),
                size_input(),
                max_megapixels_input(),
            ],
            outputs=[
                io.Image.Output(display_name="resized"),
                io.Mask.Output(display_name="mask"),
                io.Image.Output(display_name="opaque", tooltip="This is the picture as it came, without transparency."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        size: dict[str, Any],
        max_megapixels: float = 0.0,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        rgb, alpha = rgb_and_alpha(image, mask)
        target = target_size(size, max_megapixels, image.shape[2], image.shape[1])
        resized = resize(rgb, target)  # (B, 3, H', W')
        if alpha is None:
            out_mask = torch.zeros(len(resized), target.height, target.width)
        else:
            out_mask = 1 - resize_alpha(alpha.contiguous(), target)[:, 0]  # (B, H', W'), 1 = transparent
        return io.NodeOutput(to_host(resized), between_nodes(out_mask), to_host(rgb))


class TEASRUpscaleDecode(io.ComfyNode):
    """Decodes image by image, in tiles if they are needed, and notes the time for the report.

    Of an image with a region, only the rectangle around it is decoded; the rest is black.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return part_schema(
            "TEASRUpscaleDecode",
            "TEASR Upscale (decode part)",
            "TEASRUpscale",
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler gives it."),
                io.Vae.Input("vae", tooltip="This is the VAE that belongs to the model."),
            ],
            outputs=[io.Image.Output(display_name="image"), io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], vae: Any) -> io.NodeOutput:
        samples = check_latent(latent)["samples"]
        pictures = picture_vae(vae, notes_of(latent).recipe)
        started = time.perf_counter()
        image = decoded(pictures, samples, region_of(latent))  # (B, 3, H, W)
        notes = notes_of(latent).after("decode", started, vae_tile_px=pictures.tile_px)
        return io.NodeOutput(to_host(image), {**latent, NOTES_KEY: notes})


def decoded(pictures: HostVae | BuiltinVae, samples: torch.Tensor, region: Region | None) -> torch.Tensor:
    """(B, C, 1, h, w) -> (B, 3, H, W) in [0, 1]: all of it, or what the region needs."""
    if region is None:
        return pictures.decode(samples)
    downscale = pictures.vae.spacial_compression_decode()
    images = enumerate(samples.split(1))
    return torch.cat([decode_in_box(pictures.decode, one, region.of_image(k), downscale) for k, one in images])


def decoded_inputs() -> list[io.Input]:
    """What a node takes that turns a decoded picture into the result."""
    return [
        io.Image.Input("resized", tooltip="This is the picture at the target size."),
        io.Image.Input("decoded", optional=True, tooltip="This is the restored picture; at strength 0 there is none."),
        io.Latent.Input("latent", optional=True, tooltip="This latent was decoded; it tells how it was sampled."),
        strength_input(),
        color_fix_input(),
        color_strength_input(use_advanced=True),
        io.Mask.Input("mask", optional=True, tooltip="This is the picture's transparency at the target size."),
        io.Image.Input("source", optional=True, tooltip="This is the picture before it was resized."),
        grain_input(),
        seed_input(),
    ]


class TEASRUpscaleOutput(io.ComfyNode):
    """Does what comes after the model: crop, colour fix, strength and the line of the report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return part_schema(
            "TEASRUpscaleOutput",
            "TEASR Upscale (output part)",
            "TEASRUpscale",
            is_input_list=True,
            inputs=[
                *decoded_inputs(),
                io.String.Input("shown_on", default="", tooltip="This node in the graph shows the report."),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="mask"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(
        cls,
        resized: list[torch.Tensor],
        mask: list[torch.Tensor],
        decoded: list[torch.Tensor] | None = None,
        latent: list[dict[str, Any]] | None = None,
        shown_on: Sequence[str] = ("",),
        **options: list[Any],
    ) -> io.NodeOutput:
        """Takes lists, and gives a list for each output as TEASRUpscale's outputs need it."""
        inputs = {"resized": resized, "mask": mask, "decoded": decoded or [None], "latent": latent or [{}], **options}
        images, masks, reports = zip(*(with_report(**run) for run in aligned(inputs)), strict=True)
        show_on_node("\n".join(reports), shown_on[0])
        return io.NodeOutput(list(images), list(masks), list(reports))


def aligned(inputs: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Lists of inputs as the inputs of each run. By ComfyUI's own rule, the last item stands for missing ones."""
    count = max(len(values) for values in inputs.values())
    return [{name: values[min(k, len(values) - 1)] for name, values in inputs.items()} for k in range(count)]


def with_report(
    resized: torch.Tensor, mask: torch.Tensor, latent: dict[str, Any], **options: Any
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """(image, mask, report line) of one picture or batch. `options` are those of `result_image`."""
    image = result_image(resized, mask=mask, region=region_of(latent), **options)
    notes = RunNotes(tiles=0) if options["decoded"] is None else notes_of(latent)
    notes = dataclasses.replace(notes, size=size_of(resized))
    return image, mask, notes.report().line()


def result_image(
    resized: torch.Tensor,
    decoded: torch.Tensor | None,
    strength: float = 1.0,
    color_fix: str = "wavelet",
    color_strength: float = 1.0,
    mask: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    grain: float = 0.0,
    seed: int = 0,
    region: Region | None = None,
) -> torch.Tensor:
    """IMAGE of the size of `resized`, (B, H, W, 4) where the source has four channels and else (B, H, W, 3).

    Without `decoded` no model ran, and the colours are those of `resized`. InputError for numbers out of range, even
    then.
    """
    image = resized
    options = RestoreOptions(size_of(resized), strength, color_fix, color_strength, grain=grain, grain_seed=seed)
    if decoded is not None:
        measured = rgb_and_alpha(source)[0] if source is not None and grain > 0 else None
        planes = from_host(decoded, "image"), from_host(resized, "resized")
        image = to_host(postprocess(*planes, options, region, measured))
    return with_alpha_of(image, source, mask)
