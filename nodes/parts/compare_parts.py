"""The ends of TEASRCompareSteps' graph: a column for each number of steps, and the sheet of all columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ...teasr_core.image.labelled_sheet import Cell, comparison_grid
from ...teasr_core.image.luma import mean_gradient
from ...teasr_core.sampling.schedule import steps_text
from ..host.images import from_host, to_host
from ..inputs import steps_input
from ..run.run_notes import notes_of
from .expansion import part_schema
from .upscale_parts import aligned, decoded_inputs, result_image

Columns = io.Custom("TEASR_COLUMNS")


@dataclass(frozen=True, eq=False)
class Column:
    """All pictures at one number of steps.

    images[k] (B, H, W, 3) is the k-th item of the wire's list, seconds[k] the sampling times of its B images.
    """

    steps: int
    images: tuple[torch.Tensor, ...]
    seconds: tuple[tuple[float, ...], ...]


class TEASRCompareStepsColumn(io.ComfyNode):
    """Does what TEASRUpscaleOutput does, and keeps the pictures together with the time that sampling took."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return part_schema(
            "TEASRCompareStepsColumn",
            "TEASR Compare Steps (column part)",
            "TEASRCompareSteps",
            is_input_list=True,
            inputs=[
                Columns.Input("before", optional=True, tooltip="These are the columns to the left."),
                steps_input(),
                *decoded_inputs(),
            ],
            outputs=[Columns.Output(display_name="columns")],
        )

    @classmethod
    def execute(
        cls,
        steps: list[int],
        resized: list[torch.Tensor],
        before: Sequence[tuple[Column, ...]] = ((),),
        decoded: list[torch.Tensor] | None = None,
        latent: list[dict[str, Any]] | None = None,
        **options: list[Any],
    ) -> io.NodeOutput:
        inputs = {"resized": resized, "decoded": decoded or [None], "latent": latent or [{}], **options}
        runs = aligned(inputs)
        seconds = tuple(notes_of(run.pop("latent")).image_seconds for run in runs)
        images = tuple(result_image(**run) for run in runs)
        return io.NodeOutput((*before[0], Column(steps[0], images, seconds)))


class TEASRCompareStepsGrid(io.ComfyNode):
    """Gives one labelled sheet of all columns for each picture, and the pictures themselves."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return part_schema(
            "TEASRCompareStepsGrid",
            "TEASR Compare Steps (grid part)",
            "TEASRCompareSteps",
            inputs=[Columns.Input("columns", tooltip="The sheet shows all of these columns.")],
            outputs=[io.Image.Output(display_name="image"), io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, columns: tuple[Column, ...]) -> io.NodeOutput:
        """Gives a list for each output, with an item for each picture or batch on the wire, as TEASRUpscale does."""
        items = range(len(columns[0].images))
        return io.NodeOutput([sheets(columns, k) for k in items], [results(columns, k) for k in items])


def sheets(columns: Sequence[Column], k: int) -> torch.Tensor:
    """The labelled sheets of the images of item k, (B, H', W', 3)."""
    batch = len(columns[0].images[k])
    rows = [[cell(column, k, index) for column in columns] for index in range(batch)]
    grids = [comparison_grid([row]) for row in rows]
    width = max(grid.shape[-1] for grid in grids)  # a caption that is wider than its picture widens its sheet
    return to_host(torch.cat([torch.nn.functional.pad(grid, (0, width - grid.shape[-1]), value=1.0) for grid in grids]))


def cell(column: Column, k: int, index: int) -> Cell:
    """One image at one number of steps, with its sampling time and its sharpness."""
    image = from_host(column.images[k][index : index + 1].cpu(), "image")  # (1, 3, H, W)
    seconds = column.seconds[k]
    time = f"{seconds[index]:.2f} s" if seconds else "no model"
    return Cell(image, steps_text(column.steps), f"{time}, sharpness {mean_gradient(image):.2f}")


def results(columns: Sequence[Column], k: int) -> torch.Tensor:
    """Item k at every number of steps (columns x B, H, W, 3): all numbers of the first image, then of the second."""
    return torch.stack([column.images[k] for column in columns], dim=1).flatten(0, 1)
