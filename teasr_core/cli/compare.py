"""`compare`: one labelled picture of several step counts: LQ resized | 1 | 2 | 4 | 8 steps, a row for each image."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import InputError, TeasrError
from ..image.alpha import bleed_rgb
from ..image.labelled_sheet import TEXT_PX, Cell, comparison_grid, sheet_pixels
from ..image.luma import mean_gradient
from ..image.resize import resize
from ..image.target_size import TargetSize
from ..memory import refuse_out_of_memory
from ..picture_files.find import list_folder, name_left_out
from ..picture_files.fit import fit_picture
from ..picture_files.picture import Picture
from ..picture_files.read import load_picture
from ..picture_files.write import check_output, save_picture
from ..restore import RestoreOptions
from ..restorer import Restorer
from ..sampling.schedule import manual_plan, parse_steps, steps_text
from ..whole_file import FileNames
from .exit_codes import DONE, SOME_FAILED
from .jobs import check_originals, make_folder, no_image
from .options import one_line
from .progress import Progress
from .request import (
    check_options,
    enough_for,
    enough_to_read,
    expected_size,
    load_model,
    restore_options,
    restore_picture,
    size_note,
    target_size,
)


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square of the result, in its pixels."""

    x: int
    y: int
    side: int

    def check(self, size: TargetSize) -> None:
        if self.x + self.side > size.width or self.y + self.side > size.height:
            raise InputError(
                f"--crop {self.x},{self.y},{self.side} leaves the result of {size.width} x {size.height} pixels: "
                "choose a square inside it"
            )

    def of(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) -> (1, 3, side, side)."""
        return image[..., self.y : self.y + self.side, self.x : self.x + self.side]


def compare(args: argparse.Namespace) -> int:
    """Restore every image at every step count, draw the sheet, save the results where asked."""
    check_options(args)
    steps = parse_steps(args.steps)
    crop = parse_crop(args.crop)
    sources, left_out = find_sources(args.input)
    sizes = [expected_size(path, args) for path in sources]
    check_output(args.output, False, args.overwrite, sheet_size(sizes, len(steps) + 1, args.columns, crop))
    saved = plan_saved(sources, steps, args.images, args.overwrite)
    check_originals(sources, [args.output, *saved.values()])
    # Of one image all counts are one piece of work: its share of the bar is their sum.
    work = [None if size is None else float(size.width * size.height) for size in sizes]
    progress = Progress(work, sum(steps), not args.quiet)
    for note in left_out:
        progress.say(note, sys.stderr)
    comparison = Comparison(args, steps, crop, saved, progress)
    rows: list[list[Cell]] = []
    failed = 0
    try:
        for source in sources:
            progress.start(source.name)
            try:
                with enough_to_read(source):
                    picture, options = comparison.prepare(source)
            except TeasrError as error:
                failed += 1
                _refuse(source, error, is_alone=len(sources) == 1, progress=progress)
                continue
            comparison.load()  # its errors are not the image's
            try:
                with enough_for(options.size):
                    rows.append(comparison.row(source, picture, options))
            except TeasrError as error:
                failed += 1
                _refuse(source, error, is_alone=len(sources) == 1, progress=progress)
            del picture  # before the next is read
    finally:
        progress.close()
    if not rows:
        raise InputError(f"none of the {len(sources)} images could be restored (named above): no grid is written")
    width = args.columns or max(len(row) for row in rows)
    wrapped = [row[k : k + width] for row in rows for k in range(0, len(row), width)]
    with refuse_out_of_memory("for the grid", "use --crop, a smaller size, fewer images or fewer --steps"):
        save_picture(Picture(comparison_grid(wrapped)), args.output, args.quality, args.overwrite)
    count = f"{len(rows)} image{'s' if len(rows) > 1 else ''}"
    progress.say(f"wrote {args.output}: LQ | {' | '.join(map(str, steps))} steps, {count}")
    if failed:
        progress.complain(f"error: {failed} of {len(sources)} images failed (named above): the others are in the grid")
    return SOME_FAILED if failed else DONE


class Comparison:
    """One image after another through one model at several step counts."""

    def __init__(
        self,
        args: argparse.Namespace,
        steps: tuple[int, ...],
        crop: Crop | None,
        saved: dict[tuple[Path, int], Path],
        progress: Progress,
    ) -> None:
        self.args, self.steps, self.crop, self.saved, self.progress = args, steps, crop, saved, progress
        self.restorer: Restorer | None = None
        self.has_warned = self.is_warm = False

    def prepare(self, source: Path) -> tuple[Picture, RestoreOptions]:
        picture = load_picture(source, self.args.allow_large_input)
        height, width = picture.rgb.shape[-2:]
        size = target_size(self.args, width, height)
        if self.crop is not None:
            self.crop.check(size)
        if self.saved:
            picture = fit_picture(picture, self.saved[source, self.steps[0]])
            if picture.note is not None:
                self.progress.say(f"note: {one_line(source.name)}: {one_line(picture.note)}", sys.stderr)
        return picture, restore_options(self.args, size)

    def load(self) -> Restorer:
        if self.restorer is None:
            self.restorer = load_model(self.args)
            self.progress.begin_clock()
        return self.restorer

    def warm_up(self, picture: Picture, options: RestoreOptions) -> None:
        """An accelerator's first run is slow for reasons of its own, which are no property of the first step count."""
        restorer = self.load()
        if not self.is_warm and restorer.device.type != "cpu":
            restore_picture(restorer, picture, options, manual_plan(1), self.args)
        self.is_warm = True

    def row(self, source: Path, picture: Picture, options: RestoreOptions) -> list[Cell]:
        """The plain resize, then each step count with its time and the sharpness of what is shown."""
        restorer = self.load()
        note = size_note(source.name, picture, options.size)
        if note is not None and not self.has_warned:
            self.has_warned = True
            self.progress.say(note, sys.stderr)
        self.warm_up(picture, options)
        rgb = picture.rgb if picture.alpha is None else bleed_rgb(picture.rgb, picture.alpha)
        resized = self._shown(resize(rgb, options.size))
        height, width = picture.rgb.shape[-2:]
        size = f"{width}x{height} to {options.size.width}x{options.size.height}"
        sharpness = mean_gradient(resized)
        # Cells are kept to the end: bytes of what is shown, not views that would keep every whole result.
        cells = [Cell(sheet_pixels(resized), f"{_short(source.name)}, resized", f"{size}, sharpness {sharpness:.2f}")]
        for count in self.steps:
            plan = manual_plan(count)
            restored, report = restore_picture(restorer, picture, options, plan, self.args, self.progress)
            self.progress.done_steps += count
            shown = self._shown(restored.rgb)
            sharpness = mean_gradient(shown)
            note = f"{report.total_seconds:.2f} s, sharpness {sharpness:.2f}"
            cells.append(Cell(sheet_pixels(shown), steps_text(count), note))
            if self.args.images is not None:
                make_folder(self.args.images)
                save_picture(restored, self.saved[source, count], self.args.quality, self.args.overwrite)
            self.progress.say(f"{source}: {report.line()} | sharpness {sharpness:.2f}")
        return cells

    def _shown(self, image: torch.Tensor) -> torch.Tensor:
        return image if self.crop is None else self.crop.of(image)


def sheet_size(
    sizes: Sequence[TargetSize | None], pictures: int, columns: int | None, crop: Crop | None
) -> tuple[int, int]:
    """About the (width, height) of the sheet: found too large for its format before hours of work, not after."""
    across = min(columns or pictures, pictures)
    known = [size for size in sizes if size is not None]
    widest = max((crop.side if crop else size.width for size in known), default=1)
    heights = [(crop.side if crop else size.height) + 2 * TEXT_PX for size in known]
    return across * widest, max(1, sum(heights) * -(-pictures // across))


def parse_crop(text: str | None) -> Crop | None:
    if text is None:
        return None
    try:
        x, y, side = (int(part) for part in text.split(","))
    except ValueError:
        x = y = side = -1
    if min(x, y) < 0 or side < 1:
        raise InputError(f"--crop is '{text}': expected X,Y,SIZE in pixels of the result, such as 100,40,256")
    return Crop(x, y, side)


def find_sources(inputs: list[Path]) -> tuple[list[Path], list[str]]:
    """Images as named, folders as what they hold; each once. And a line for each folder with files that are left out.

    InputError for what is missing or empty.
    """
    found: dict[Path, None] = {}
    notes: list[str] = []
    for path in inputs:
        if not path.is_dir():
            found[path] = None
            continue
        files = list_folder(path)
        if not files.images:
            raise no_image(path, files)
        found.update(dict.fromkeys(files.images))
        if note := name_left_out(files.others, path):
            notes.append(f"note: {path}: {note}")
    return list(found), notes


def plan_saved(
    sources: list[Path], steps: tuple[int, ...], folder: Path | None, overwrite: bool
) -> dict[tuple[Path, int], Path]:
    """Where each result goes: `NAME_steps4.png`, which holds whatever the input held. Empty without a folder."""
    if folder is None:
        return {}
    saved: dict[tuple[Path, int], Path] = {}
    names = FileNames()
    for source in sources:
        for count in steps:
            target = folder / f"{source.stem}_steps{count}.png"
            if names.add(target) is not None:
                raise InputError(f"two images are called {source.stem}: rename one, so that both can be saved")
            check_output(target, has_alpha=True, overwrite=overwrite, is_folder_ours=True)
            saved[source, count] = target
    return saved


def _refuse(source: Path, error: TeasrError, is_alone: bool, progress: Progress) -> None:
    if is_alone:
        raise error
    progress.complain(f"error: {one_line(source.name)}: {one_line(error)}")


def _short(name: str, limit: int = 32) -> str:
    return one_line(name if len(name) <= limit else f"{name[: limit - 3]}...")
