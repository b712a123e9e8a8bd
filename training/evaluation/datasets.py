"""What an evaluation runs on: the committed list, pairs of folders, or photographs without an original.

list      a folder of the committed list's photographs; one dataset a preset, degraded by the evaluation protocol
stablesr  DIR/test_LR and DIR/test_HR, the layout of the field's test sets; same stem, same picture
pairs     DIR/LR and DIR/HR, or any two folders
lq        photographs alone, enlarged by a given factor: metrics without a reference only
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from teasr_core.errors import InputError
from teasr_core.image.target_size import MAX_SCALE, MIN_SCALE, TargetSize, size_by_factor
from teasr_core.picture_files.find import list_folder, reason_left_out
from teasr_core.picture_files.read import read_rgb

from ..data.held_out import SCALE, load_eval_pairs, read_eval_list
from ..data.photographs import HR_FOLDER, LR_FOLDER, images_by_stem
from ..degradation.degrade import PRESETS
from .protocol import FEW_PICTURES, FEW_PICTURES_FROM

LIST, STABLESR, PAIRS, LQ = "list", "stablesr", "pairs", "lq"

ReadFn = Callable[[], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, eq=False)
class EvalPicture:
    """One picture. read() gives lr (h, w, 3) and hq (H, W, 3) or None, uint8 RGB; picture_id is of their pixels."""

    name: str
    size: TargetSize
    scale: Fraction
    picture_id: str
    read: ReadFn


@dataclass(frozen=True)
class Skipped:
    """A file that is not part of the evaluation, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class EvalDataset:
    """Pictures under one name; the name is a part of file names."""

    name: str
    layout: str
    pictures: tuple[EvalPicture, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def has_hq(self) -> bool:
        return self.layout != LQ

    def pictures_at(self, steps: int) -> tuple[EvalPicture, ...]:
        """Those that run at this many steps: on the committed list, many steps run on the first few only."""
        is_few = self.layout == LIST and steps >= FEW_PICTURES_FROM
        return self.pictures[:FEW_PICTURES] if is_few else self.pictures

    def scale_text(self) -> str:
        """E.g. "x4", "x3/2", "x2 to x4"."""
        low, high = (pick(picture.scale for picture in self.pictures) for pick in (min, max))
        return f"x{low}" if low == high else f"x{low} to x{high}"


def list_datasets(folder: Path, presets: Sequence[str], seed: int = 0) -> list[EvalDataset]:
    """The committed crops of the photographs in `folder`, once for each preset. Errors as `load_eval_pairs`."""
    datasets = []
    for preset in presets:
        if preset not in PRESETS:
            raise InputError(f"--preset is '{preset}': expected {', '.join(PRESETS)}, or several with commas")
        pictures = []
        for pair in load_eval_pairs(folder, PRESETS[preset], seed):
            size = TargetSize(pair.hq.shape[1], pair.hq.shape[0])
            picture_id = _picture_id(size, pair.lr, pair.hq)
            read = partial(_given, pair.lr, pair.hq)
            pictures.append(EvalPicture(pair.name, size, Fraction(SCALE), picture_id, read))
        datasets.append(EvalDataset(preset, LIST, tuple(pictures)))
    return datasets


def paired_dataset(lr_folder: Path, hr_folder: Path, name: str, layout: str = PAIRS) -> EvalDataset:
    """Pairs of the same stem. Files that have no partner or cannot be read are skipped and named.

    Raises InputError for no pair at all, two files of one stem, and a pair whose sizes are not one factor apart.
    """
    low, high = images_by_stem(lr_folder), images_by_stem(hr_folder)
    skipped = [
        Skipped(mine[stem].name, f"no {stem}.* in {other.name}")
        for mine, theirs, other in ((low, high, hr_folder), (high, low, lr_folder))
        for stem in sorted(mine.keys() - theirs.keys())
    ]
    skipped += [*_left_out(lr_folder), *_left_out(hr_folder)]
    pictures = []
    for stem in sorted(low.keys() & high.keys()):
        try:
            lr, hq = read_rgb(low[stem]), read_rgb(high[stem])
        except InputError as error:
            skipped.append(Skipped(stem, str(error)))
            continue
        size = TargetSize(hq.shape[1], hq.shape[0])
        picture_id = _picture_id(size, lr, hq)
        read = partial(_read_pair, low[stem], high[stem])
        pictures.append(EvalPicture(stem, size, _factor(stem, lr, hq), picture_id, read))
    _check_any(pictures, skipped, f"{lr_folder} and {hr_folder}")
    return EvalDataset(name, layout, tuple(pictures), tuple(skipped))


def lq_dataset(folder: Path, scale: float, name: str) -> EvalDataset:
    """Photographs without originals, to be enlarged by `scale`. Unreadable files are skipped and named.

    Raises InputError for a folder without a readable picture and a scale outside 0.25..8.
    """
    pictures, skipped = [], _left_out(folder)
    for stem, path in sorted(images_by_stem(folder).items()):
        try:
            lr = read_rgb(path)
        except InputError as error:
            skipped.append(Skipped(path.name, str(error)))
            continue
        size = size_by_factor(lr.shape[1], lr.shape[0], scale)
        factor = Fraction(scale).limit_denominator(1000)
        pictures.append(EvalPicture(stem, size, factor, _picture_id(size, lr, None), partial(_read_alone, path)))
    _check_any(pictures, skipped, str(folder))
    return EvalDataset(name, LQ, tuple(pictures), tuple(skipped))


def open_datasets(
    folder: Path,
    presets: Sequence[str] | None = None,
    lr: Path | None = None,
    hr: Path | None = None,
    scale: float | None = None,
    seed: int = 0,
    name: str | None = None,
) -> list[EvalDataset]:
    """Find out the layout of `folder` and open it.

    lr and hr, given together, are folders inside it or anywhere; `scale` alone means photographs without originals.
    presets belong to the committed list (default: light). Raises InputError for options that do not go together.
    """
    name = _file_name(name or folder.resolve().name)
    layout = LQ if scale is not None else _layout(folder, lr, hr)
    if presets is not None and layout != LIST:
        raise InputError(f"--preset degrades the photographs of the list, {folder} is read as '{layout}': leave it out")
    if scale is not None and (lr or hr):
        raise InputError("--scale is for photographs without originals, --lr and --hr give a pair its factor: give one")
    if scale is not None:
        return [lq_dataset(folder, scale, name)]
    if lr is not None and hr is not None:
        return [paired_dataset(_inside(folder, lr), _inside(folder, hr), name)]
    if layout == STABLESR:
        return [paired_dataset(folder / LR_FOLDER, folder / HR_FOLDER, name, STABLESR)]
    if layout == PAIRS:
        return [paired_dataset(folder / "LR", folder / "HR", name)]
    return list_datasets(folder, presets or ["light"], seed)


def _layout(folder: Path, lr: Path | None, hr: Path | None) -> str:
    if not folder.is_dir():
        raise InputError(f"evaluation: found no folder at {folder}, expected one with pictures; check the path")
    if (lr is None) != (hr is None):
        raise InputError("evaluation: found one of --lr and --hr, expected both or neither; give the other folder")
    if lr is not None:
        return PAIRS
    if (folder / LR_FOLDER).is_dir() and (folder / HR_FOLDER).is_dir():
        return STABLESR
    if (folder / "LR").is_dir() and (folder / "HR").is_dir():
        return PAIRS
    if not any((folder / crop.file).is_file() for crop in read_eval_list()):
        raise InputError(
            f"evaluation: {folder} holds neither the photographs of the list, nor test_LR and test_HR, nor LR and HR; "
            "name the two folders by --lr and --hr, or give --scale for photographs without originals"
        )
    return LIST


def _inside(folder: Path, part: Path) -> Path:
    for path in (folder / part, part):
        if path.is_dir():
            return path
    raise InputError(f"evaluation: found no folder {folder / part} and none {part}, expected one of them; check it")


def _factor(stem: str, lr: np.ndarray, hq: np.ndarray) -> Fraction:
    across, down = Fraction(hq.shape[1], lr.shape[1]), Fraction(hq.shape[0], lr.shape[0])
    if across != down:
        raise InputError(
            f"evaluation: {stem} has LR {lr.shape[1]}x{lr.shape[0]} and HR {hq.shape[1]}x{hq.shape[0]}, factors "
            f"{across} across and {down} down, expected one factor both ways; crop the HR, or move the pair away"
        )
    if not MIN_SCALE <= across <= MAX_SCALE:
        raise InputError(
            f"evaluation: {stem} has the factor {across}, expected {MIN_SCALE:g} to {MAX_SCALE:g}; swap LR and HR?"
        )
    return across


def _left_out(folder: Path) -> list[Skipped]:
    return [Skipped(path.name, reason_left_out(path)) for path in list_folder(folder).others]


def _check_any(pictures: Sequence[EvalPicture], skipped: Sequence[Skipped], where: str) -> None:
    if not pictures:
        first = f", first {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise InputError(f"evaluation: found nothing usable in {where} ({len(skipped)} files skipped{first})")


def _picture_id(size: TargetSize, lr: np.ndarray, hq: np.ndarray | None) -> str:
    digest = hashlib.sha256(repr((size.width, size.height, lr.shape)).encode() + lr.tobytes())
    digest.update(b"" if hq is None else hq.tobytes())
    return digest.hexdigest()[:16]


def _file_name(text: str) -> str:
    """Letters, digits, dot, dash and underscore stay, so that the name can be a part of a file's."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text) or "dataset"


def _given(lr: np.ndarray, hq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return lr, hq


def _read_pair(lr: Path, hq: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_rgb(lr), read_rgb(hq)


def _read_alone(lr: Path) -> tuple[np.ndarray, None]:
    return read_rgb(lr), None
