"""LR/HR pairs from photographs, in the layout of StableSR's test sets: OUT/test_HR and OUT/test_LR, equal names.

The i-th file, by name, is degraded with `numpy.random.default_rng([seed, i])`, so that a pair depends neither on
whether the other files can be used nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from teasr_core.cli.progress import progress_bar
from teasr_core.errors import InputError
from teasr_core.picture_files.formats import expected_formats
from teasr_core.picture_files.picture import Picture
from teasr_core.picture_files.read import read_rgb
from teasr_core.picture_files.write import save_picture
from teasr_core.whole_file import FileNames, nearest_existing, write_whole

from ..degradation.degrade import PRESETS, degrade
from ..degradation.ops import to_uint8
from .held_out import SCALE, EvalPair, load_eval_pairs
from .photographs import HR_FOLDER, LR_FOLDER, images_by_stem, left_out_lines

TABLE_NAME = "pairs.tsv"
MAX_PAIR_SCALE = 16


@dataclass(frozen=True)
class PairOptions:
    """How pairs are made. crop_px: the side of the central HR crop; None keeps the whole picture."""

    preset: str = "light"
    seed: int = 0
    scale: int = 4
    crop_px: int | None = None
    workers: int = 1
    use_overwrite: bool = False

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"--preset is '{self.preset}': expected {' or '.join(PRESETS)}")
        if not 1 <= self.scale <= MAX_PAIR_SCALE:
            raise InputError(f"--scale is {self.scale}: expected a whole number from 1 to {MAX_PAIR_SCALE}")
        if self.crop_px is not None and (self.crop_px < 1 or self.crop_px % self.scale):
            raise InputError(f"--crop-px is {self.crop_px}: expected a multiple of the scale, {self.scale}")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}: expected 0 or more")
        if self.workers < 1:
            raise InputError(f"--workers is {self.workers}: expected at least 1")


@dataclass(frozen=True)
class Job:
    """One pair to make. make() returns HR (s h, s w, 3) and LR (h, w, 3), uint8; `index` is a part of the seed."""

    name: str
    index: int
    make: Callable[[], tuple[np.ndarray, np.ndarray]]


class SkippedError(Exception):
    """No pair can be made of this photograph; the text says why."""


@dataclass(frozen=True)
class PairsReport:
    """The names of the pairs that were written, and (file, reason) of each photograph that was left out."""

    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def make_pairs(
    source: Path, output: Path, options: PairOptions, list_path: Path | None = None, show_progress: bool = False
) -> PairsReport:
    """Write test_HR/NAME.png, test_LR/NAME.png (8 bits) and pairs.tsv under `output`.

    source: a folder or one image; with `list_path`, the folder of an evaluation list's photographs, whose LR is then
    that of `load_eval_pairs`. Unreadable and too small files are passed over, but not those of a list.
    Raises InputError for nothing to do, for outputs that exist (unless `options.use_overwrite`) and for a place that
    cannot be written.
    """
    jobs = _list_jobs(source, list_path, options) if list_path is not None else _jobs(source, options)
    _check_outputs(output, [job.name for job in jobs], options.use_overwrite)
    written, skipped = [], []
    pool = ThreadPoolExecutor(options.workers)  # the work is in OpenCV and NumPy, which run beside each other
    try:
        reasons = pool.map(lambda job: _write_pair(job, output), jobs)
        with progress_bar(len(jobs), show_progress) as bar:
            for job, reason in zip(jobs, reasons, strict=True):
                bar.set_description_str(job.name, refresh=False)
                if reason is None:
                    written.append(job)
                else:
                    skipped.append((job.name, reason))
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    if not written:
        raise InputError(f"{source}: nothing usable among {len(jobs)}, first {skipped[0][0]}: {skipped[0][1]}")
    _write_table(output / TABLE_NAME, written, options)
    return PairsReport(tuple(job.name for job in written), tuple(skipped))


def central_crop(picture: np.ndarray, scale: int, crop_px: int | None) -> np.ndarray:
    """The middle of a picture (H, W, 3): crop_px a side, or as much as `scale` divides.

    Raises SkippedError when the picture is too small.
    """
    height, width = picture.shape[:2]
    rows, columns = (height - height % scale, width - width % scale) if crop_px is None else (crop_px, crop_px)
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise SkippedError(f"{width}x{height} px, smaller than {crop_px or scale} px a side")
    y, x = (height - rows) // 2, (width - columns) // 2
    return picture[y : y + rows, x : x + columns]


def degrade_uint8(hq: np.ndarray, preset: str, scale: int, seed: int, index: int) -> np.ndarray:
    """Degrade HR (H, W, 3) uint8 to LR (H / scale, W / scale, 3) uint8, as pair number `index` of this seed."""
    rng = np.random.default_rng([seed, index])
    return to_uint8(degrade(hq.astype(np.float32) / np.float32(255.0), PRESETS[preset], scale, rng))


def _jobs(source: Path, options: PairOptions) -> list[Job]:
    if not source.exists():
        raise InputError(f"{source} does not exist: give an image or a folder of images")
    files = images_by_stem(source) if source.is_dir() else {source.stem: source}
    if not files:
        left_out = "".join(f" ({line})" for line in left_out_lines(str(source)))
        raise InputError(f"{source} holds no image{left_out}: expected {expected_formats()} files")

    def make(path: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            picture = read_rgb(path)  # (H, W, 3)
        except InputError as error:
            raise SkippedError(f"unreadable: {error}") from None
        hq = central_crop(picture, options.scale, options.crop_px)
        return hq, degrade_uint8(hq, options.preset, options.scale, options.seed, index)

    return [Job(stem, index, partial(make, path, index)) for index, (stem, path) in enumerate(files.items())]


def _list_jobs(folder: Path, list_path: Path, options: PairOptions) -> list[Job]:
    if options.scale != SCALE or options.crop_px is not None:
        raise InputError(f"--list fixes the crops and the scale {SCALE}: leave out --crop-px and --scale")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the one with the photographs of the list")
    pairs = load_eval_pairs(folder, PRESETS[options.preset], options.seed, list_path)
    names = [pair.name for pair in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{list_path} names '{twice}' twice: both pairs would have one name")
    return [Job(pair.name, index, partial(_given, pair)) for index, pair in enumerate(pairs)]


def _check_outputs(output: Path, names: Sequence[str], use_overwrite: bool) -> None:
    existing = nearest_existing(output)
    if not existing.is_dir():
        raise InputError(f"{existing} is a file: give a folder for the pairs")
    known = FileNames()
    for name in names:
        if (other := known.add(output / HR_FOLDER / f"{name}.png")) is not None:
            raise InputError(f"{other.stem} and {name} would both become {other.name}: rename one")
    taken = [path for path in _outputs(output, names) if path.exists()]
    if taken and not use_overwrite:
        raise InputError(
            f"{len(taken)} outputs exist already, first {taken[0]}: give another folder or pass --overwrite"
        )
    try:
        for folder in (HR_FOLDER, LR_FOLDER):
            (output / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made ({error.strerror}): give a folder that can be written") from None


def _outputs(output: Path, names: Sequence[str]) -> Iterator[Path]:
    yield output / TABLE_NAME
    for name in names:
        yield output / HR_FOLDER / f"{name}.png"
        yield output / LR_FOLDER / f"{name}.png"


def _write_pair(job: Job, output: Path) -> str | None:
    """Write one pair. Returns the reason where the photograph is left out, otherwise None."""
    try:
        hq, lr = job.make()
    except SkippedError as error:
        return str(error)
    _save(hq, output / HR_FOLDER / f"{job.name}.png")
    _save(lr, output / LR_FOLDER / f"{job.name}.png")
    return None


def _given(pair: EvalPair) -> tuple[np.ndarray, np.ndarray]:
    return pair.hq, pair.lr


def _save(pixels: np.ndarray, path: Path) -> None:
    rgb = torch.from_numpy(pixels.astype(np.float32) / np.float32(255.0)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    save_picture(Picture(rgb), path, overwrite=True)  # whole or not at all; existing outputs were refused before


def _write_table(path: Path, jobs: Sequence[Job], options: PairOptions) -> None:
    lines = ["name\tseed\tindex\tpreset\tscale"]
    lines += [f"{job.name}\t{options.seed}\t{job.index}\t{options.preset}\t{options.scale}" for job in jobs]
    write_whole(("\n".join(lines) + "\n").encode(), path)
