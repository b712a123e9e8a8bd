"""Makes the pictures of the help pages and the thumbnails of the workflows with the built-in model.

    python scripts/make_pictures.py PHOTOGRAPHS [NAME ...]

PHOTOGRAPHS is the folder of held-out photographs that training/data/eval_list.tsv names; what is shown is a part
of a crop of that list, made four times smaller by the light degradation, and restored. NAME makes one picture alone.
Run it again when the built-in model changes. Who took the photographs: docs/pictures/CREDITS.md.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from teasr_core.image.labelled_sheet import Cell, comparison_grid  # noqa: E402
from teasr_core.image.levels import to_levels  # noqa: E402
from teasr_core.image.region import make_region  # noqa: E402
from teasr_core.image.resize import resize  # noqa: E402
from teasr_core.image.target_size import TargetSize  # noqa: E402
from teasr_core.restore import RestoreOptions, RestoreRequest  # noqa: E402
from teasr_core.restorer import Restorer, load_restorer  # noqa: E402
from teasr_core.sampling.auto_steps import AutoSteps  # noqa: E402 (the packages need not be installed)
from teasr_core.sampling.schedule import StepPlan, manual_plan, steps_text  # noqa: E402
from training.data.held_out import SCALE, EvalPair, load_eval_pairs  # noqa: E402
from training.degradation.presets import PRESETS  # noqa: E402

HELP, THUMBNAILS = ROOT / "web" / "docs" / "pictures", ROOT / "workflows"
HELP_BYTES, THUMBNAIL_BYTES = 200_000, 60_000
THUMBNAIL_PX = 320  # a card of the template browser is square
QUALITIES = (92, 86, 80, 72, 64)
ONE_STEP = manual_plan(1)


@dataclass(frozen=True)
class Part:
    """A square of a held-out crop: `px` pixels of the low-quality picture from its left and top edge."""

    photograph: str
    left: int
    top: int
    px: int = THUMBNAIL_PX // SCALE


FLOWERS = Part("gb82_004_flowers-lossless", 24, 14)
PAINT = Part("solus_120_white-and-multicolored", 20, 30)
NEBULA = Part("qubes_139_nasa-pia15985", 30, 24)
PLATE = Part("food_512_tomato-flavored-hamburger-macaroni", 40, 52, 48)
LEAVES = Part("gb82_004_flowers-lossless", 44, 40)
DESERT = Part("pop_063_jared-evans-119758", 24, 44)
BLOCKS = Part("wp_650_abstract-geometric-art", 30, 30)
DECK = Part("elem_034_jonas-nilsson-lee", 24, 34)


class Studio:
    """The photographs and the model, read once."""

    def __init__(self, photographs: Path) -> None:
        self.pairs: dict[str, EvalPair] = {pair.name: pair for pair in load_eval_pairs(photographs, PRESETS["light"])}
        self.restorer: Restorer = load_restorer()

    def low(self, part: Part) -> torch.Tensor:
        """(1, 3, px, px)"""
        lr = self.pairs[part.photograph].lr
        return to_tensor(lr[part.top : part.top + part.px, part.left : part.left + part.px])

    def original(self, part: Part) -> torch.Tensor:
        """(1, 3, 4 px, 4 px)"""
        hq, (top, left), side = self.pairs[part.photograph].hq, (part.top * SCALE, part.left * SCALE), part.px * SCALE
        return to_tensor(hq[top : top + side, left : left + side])

    def enlarged(self, part: Part) -> torch.Tensor:
        return resize(self.low(part), TargetSize(part.px * SCALE, part.px * SCALE))

    def restored(self, part: Part, plan: StepPlan | AutoSteps) -> torch.Tensor:
        """At the command line's defaults."""
        size = TargetSize(part.px * SCALE, part.px * SCALE)
        image, report = self.restorer.restore(self.low(part), RestoreRequest(RestoreOptions(size), plan))
        print(report.line())
        return image


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def before_after(studio: Studio, part: Part, plan: StepPlan | AutoSteps = ONE_STEP) -> torch.Tensor:
    """One picture, its left half the plain resize, its right half restored, a white line between them."""
    image = studio.restored(part, plan)
    middle = image.shape[-1] // 2
    image[..., :middle] = studio.enlarged(part)[..., :middle]
    image[..., middle - 1 : middle + 1] = 1.0
    return image


def side_by_side(studio: Studio, part: Part) -> torch.Tensor:
    left, right = studio.enlarged(part), studio.restored(part, ONE_STEP)
    return comparison_grid([[Cell(left, "plain resize"), Cell(right, "1 step")]])


def steps_sheet(studio: Studio, part: Part) -> torch.Tensor:
    cells = [Cell(studio.enlarged(part), "plain resize")]
    cells += [Cell(studio.restored(part, manual_plan(n)), steps_text(n)) for n in (1, 2, 4, 8)]
    return comparison_grid([cells[:3], [*cells[3:], Cell(studio.original(part), "original")]])


def quarters(studio: Studio, parts: tuple[Part, ...]) -> torch.Tensor:
    """Four smaller before-and-after pictures in one."""
    small = [before_after(studio, part) for part in parts]
    rows = [torch.cat(small[k : k + 2], dim=3) for k in (0, 2)]
    return torch.cat(rows, dim=2)


def four_steps(studio: Studio, part: Part) -> torch.Tensor:
    """A square of four labelled results; each cell is a strip, as high as the labels leave room for."""
    cells = []
    for n in (1, 2, 4, 8):
        middle = studio.restored(part, manual_plan(n))[..., 78:202, 88:232]  # (1, 3, 124, 144)
        cells.append(Cell(middle.contiguous(), steps_text(n)))
    return comparison_grid([cells[:2], cells[2:]])


def lifted(studio: Studio, part: Part) -> torch.Tensor:
    """One picture, darkened by four stops and brightened again: the left half through 8 bits, the right through 16."""
    image = studio.restored(part, ONE_STEP)
    dark = image / 16
    middle = image.shape[-1] // 2
    image[..., :middle] = to_levels(dark)[..., :middle] / 255 * 16
    image[..., middle:] = to_levels(dark, 16)[..., middle:] / 65535 * 16
    image[..., middle - 1 : middle + 1] = 1.0
    return image.clamp(0, 1)


def in_a_region(studio: Studio, part: Part) -> torch.Tensor:
    """One picture, restored inside a disc alone; a thin white ring shows where it ends."""
    side = part.px * SCALE
    axis = torch.arange(side) + 0.5 - side / 2
    distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt() / side  # (side, side)
    size = TargetSize(side, side)
    region = make_region((distance < 0.36).float()[None, None], size, size)
    request = RestoreRequest(RestoreOptions(size), ONE_STEP, region=region)
    image, report = studio.restorer.restore(studio.low(part), request)
    print(report.line())
    image[..., (distance - 0.36).abs() < 1 / side] = 1.0
    return image


def half(part: Part) -> Part:
    return Part(part.photograph, part.left + part.px // 4, part.top + part.px // 4, part.px // 2)


# file -> (largest size in bytes, how it is made)
PICTURES: dict[Path, tuple[int, Callable[[Studio], torch.Tensor]]] = {
    HELP / "before_after.jpg": (HELP_BYTES, partial(side_by_side, part=FLOWERS)),
    HELP / "steps.jpg": (HELP_BYTES, partial(steps_sheet, part=PLATE)),
    THUMBNAILS / "teasr_quick_start.jpg": (THUMBNAIL_BYTES, partial(before_after, part=FLOWERS)),
    THUMBNAILS / "teasr_16bit.jpg": (THUMBNAIL_BYTES, partial(lifted, part=DESERT)),
    THUMBNAILS / "teasr_building_blocks.jpg": (
        THUMBNAIL_BYTES,
        partial(before_after, part=NEBULA, plan=manual_plan(2)),
    ),
    THUMBNAILS / "teasr_4k_tiled.jpg": (THUMBNAIL_BYTES, partial(before_after, part=DECK)),
    THUMBNAILS / "teasr_batch_folder.jpg": (
        THUMBNAIL_BYTES,
        partial(quarters, parts=tuple(half(part) for part in (FLOWERS, DESERT, BLOCKS, PAINT))),
    ),
    THUMBNAILS / "teasr_step_comparison.jpg": (THUMBNAIL_BYTES, partial(four_steps, part=LEAVES)),
    THUMBNAILS / "teasr_adaptive_steps.jpg": (THUMBNAIL_BYTES, partial(before_after, part=LEAVES, plan=AutoSteps())),
    THUMBNAILS / "teasr_region.jpg": (THUMBNAIL_BYTES, partial(in_a_region, part=FLOWERS)),
    THUMBNAILS / "teasr_before_after.jpg": (THUMBNAIL_BYTES, partial(before_after, part=BLOCKS)),
}


def save(image: torch.Tensor, path: Path, max_bytes: int) -> None:
    """As JPEG, of the best of QUALITIES that fits `max_bytes`; SystemExit when none does."""
    pixels = to_levels(image[0]).permute(1, 2, 0).numpy()
    for quality in QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) <= max_bytes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"{path.relative_to(ROOT)}: {pixels.shape[1]} x {pixels.shape[0]}, {len(data)} bytes")
            return
    raise SystemExit(f"error: {path.name} takes more than {max_bytes} bytes at every quality: show a smaller part")


def main() -> int:
    if len(sys.argv) < 2:
        print("error: no photographs: make_pictures.py PHOTOGRAPHS [NAME ...]", file=sys.stderr)
        return 2
    names = set(sys.argv[2:]) or {path.stem for path in PICTURES}
    unknown = names - {path.stem for path in PICTURES}
    if unknown:
        print(f"error: no picture {sorted(unknown)}: there are {sorted(p.stem for p in PICTURES)}", file=sys.stderr)
        return 2
    studio = Studio(Path(sys.argv[1]))
    for path, (max_bytes, make) in PICTURES.items():
        if path.stem in names:
            save(make(studio), path, max_bytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
