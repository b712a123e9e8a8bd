"""Writes the table of docs/results/real_photographs.md and its pictures from an evaluation of real photographs.

    python -m training eval REAL_LQ OUT --scale 2 --steps 1 --model built-in=builtin --color-fix wavelet \\
        --niqe-params F --save-pictures
    python scripts/make_real_page.py OUT

Each photograph is shown as one detail, resized by Lanczos and restored, pixel for pixel. The text above `MARK` in the
page is kept; it is written by hand. Run the script again, with a new OUT, when the built-in model changes. Who took the
photographs: docs/pictures/CREDITS.md.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.make_pictures import save, to_tensor  # noqa: E402 (the packages need not be installed)
from teasr_core.image.labelled_sheet import Cell, comparison_grid  # noqa: E402
from teasr_core.sampling.schedule import steps_text  # noqa: E402

PAGE, PICTURES = ROOT / "docs" / "results" / "real_photographs.md", ROOT / "docs" / "pictures"
MARK = "<!-- scripts/make_real_page.py writes everything below this line. -->"
BEFORE, MODEL = "lanczos", "built-in"
SIDE = 224  # of a detail, in pixels of the result
ROWS = 5  # details to a sheet
SHEET_BYTES = 450_000

# photograph -> (what is seen, centre of the detail in pixels of the result)
DETAILS: Mapping[str, tuple[str, int, int]] = {
    "cam_07_olympus-pen-e-p3": ("print", 784, 660),
    "cam_12_sony-dsc-hx5v-2": ("text", 744, 410),
    "cam_08_ricoh-dc-3z-normal-res": ("text, dusk", 594, 144),
    "cam_06_nikon-e950": ("stone, brick", 242, 826),
    "cam_03_htc-desire": ("paving", 532, 1428),
    "cam_09_ricoh-rdc5300": ("leaves", 670, 492),
    "cam_14_trust-powercam-zoom-lcd-710": ("garden", 1456, 832),
    "cam_13_traveler-sx330z": ("flowers", 950, 522),
    "cam_11_sanyo-vpcsx550": ("salad", 584, 440),
    "cam_00_fujifilm-dx-10": ("food", 560, 660),
    "cam_02_hp-photosmart-735": ("night", 500, 860),
    "cam_10_sanyo-sr6": ("dusk", 330, 276),
    "cam_05_nikon-d5000": ("train", 1014, 542),
    "cam_04_kodak-dc240": ("fur", 354, 556),
    "cam_01_fujifilm-mx1700": ("sand", 648, 474),
}


class Evaluated:
    """What `eval` left in a folder: pictures, and NIQE by (model, steps, photograph)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["metric"] == "niqe" and row["value"]]
        self.niqe = {(row["model"], int(row["steps"]), row["picture"]): float(row["value"]) for row in rows}
        self.steps = sorted({steps for model, steps, _ in self.niqe if model == MODEL})
        if not self.steps:
            raise SystemExit(f"error: {folder} holds no NIQE of a model named {MODEL}: run the command above")

    def detail(self, model: str, steps: int, photograph: str, x: int, y: int) -> torch.Tensor:
        """(1, 3, SIDE, SIDE) around (x, y), or as near to it as the picture allows."""
        step_folder = f"{steps}_steps" if steps else "baseline"
        found = list(self.folder.glob(f"pictures/*/{model}-*/{step_folder}/{photograph}-*.png"))
        if len(found) != 1:
            raise SystemExit(f"error: {len(found)} pictures of {photograph} by {model}, expected 1: use a new folder")
        with Image.open(found[0]) as image:
            pixels = np.asarray(image.convert("RGB"))
        left, top = (min(max(0, at - SIDE // 2), size - SIDE) for at, size in ((x, pixels.shape[1]), (y, len(pixels))))
        return to_tensor(pixels[top : top + SIDE, left : left + SIDE])


def sheet(evaluated: Evaluated, photographs: list[str]) -> torch.Tensor:
    """A row for each photograph: Lanczos, then every number of steps, with the NIQE of the whole picture."""
    rows = []
    for name in photographs:
        subject, x, y = DETAILS[name]
        columns = [(BEFORE, 0, f"{subject}: Lanczos x2"), *((MODEL, n, steps_text(n)) for n in evaluated.steps)]
        row = []
        for model, steps, label in columns:
            note = f"NIQE {evaluated.niqe[model, steps, name]:.2f}"
            row.append(Cell(evaluated.detail(model, steps, name, x, y), label, note))
        rows.append(row)
    return comparison_grid(rows)


def tables(evaluated: Evaluated, sheets: list[str]) -> str:
    """The Markdown below `MARK`: NIQE of each photograph, then the sheets of details."""
    columns = [("bicubic", 0), (BEFORE, 0), *((MODEL, n) for n in evaluated.steps)]
    heads = ["bicubic", "Lanczos", *(steps_text(n) for n in evaluated.steps)]
    lines = [f"| photograph | detail | {' | '.join(heads)} |", f"| --- | --- |{' --- |' * len(columns)}"]
    for name, (subject, _, _) in sorted(DETAILS.items()):
        values = [f"{evaluated.niqe[model, steps, name]:.2f}" for model, steps in columns]
        lines.append(f"| {name} | {subject} | {' | '.join(values)} |")
    means = [np.mean([evaluated.niqe[model, steps, name] for name in DETAILS]) for model, steps in columns]
    lines.append(f"| mean | | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    lines += [f"\n![details]({path})" for path in sheets]
    return "\n".join(lines) + "\n"


def main() -> int:
    if len(sys.argv) != 2:
        print("error: no evaluation: make_real_page.py OUT", file=sys.stderr)
        return 2
    evaluated = Evaluated(Path(sys.argv[1]))
    names, sheets = list(DETAILS), []
    for start in range(0, len(names), ROWS):
        path = PICTURES / f"real_details_{start // ROWS + 1}.jpg"
        save(sheet(evaluated, names[start : start + ROWS]), path, SHEET_BYTES)
        sheets.append(f"../pictures/{path.name}")
    by_hand, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"error: {PAGE} lacks the line {MARK}: put it above the table")
    PAGE.write_text(f"{by_hand}{MARK}\n\n{tables(evaluated, sheets)}", encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
