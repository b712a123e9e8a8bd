"""The sources of a run (`data.folders`, `data.pairs`): their usable images, and what is left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teasr_core.errors import InputError

from ..config.shared import DataConfig
from .photographs import (
    HR_FOLDER,
    LR_FOLDER,
    TARGET_FOLDER,
    images_by_stem,
    left_out_lines,
    list_pairs,
    list_source,
    name_some,
    scan_photographs,
)

MARGIN_PX = 16  # around a crop, so that its borders are made from real content


@dataclass(frozen=True)
class Source:
    """Images that share a weight. low: the LR file for each HR file in `high`; None where LR is made by degradation.

    target: the target picture for each in `high`; None where the photographs themselves are what is learnt.
    """

    name: str
    high: tuple[Path, ...]
    low: tuple[Path, ...] | None
    count: int  # files (pairs) found, usable or not
    skipped: tuple[str, ...]  # one line for each kind of file that is left out
    target: tuple[Path, ...] | None = None

    def lines(self) -> list[str]:
        """The lines that a run prints at its start."""
        kind = "images" if self.low is None else "pairs"
        head = f"data '{self.name}': {len(self.high)} of {self.count} {kind} usable"
        return [head, *(f"data '{self.name}': {line}" for line in self.skipped)]


def open_sources(config: DataConfig, crop_px: int, with_target: bool = False) -> list[Source]:
    """Open the sources in the order of `data.weights`, each with the images that are large enough for `crop_px`.

    with_target: also look for the target pictures of ready pairs.
    Raises InputError when there is no source, when one is missing or empty, when one with a weight has no usable
    image, when no source has a usable image, and when target pictures are needed and no source has any.
    """
    if not config.folders and not config.pairs:
        raise InputError("data.folders is empty: name at least one folder of photographs")
    sources = [_photographs(folder, crop_px) for folder in config.folders]
    sources += [_ready_pairs(folder, crop_px, with_target) for folder in config.pairs]
    if with_target and all(source.target is None for source in sources):
        raise InputError(
            f"a stage compares with target pictures, and no folder of data.pairs has a {TARGET_FOLDER} beside "
            f"{HR_FOLDER} and {LR_FOLDER}: add one with files of the same names, or leave out the target weights"
        )
    weights = config.weights or [1.0] * len(sources)
    unusable = [source for source, weight in zip(sources, weights, strict=True) if weight and not source.high]
    if unusable and (config.weights or len(unusable) == len(sources)):
        source = unusable[0]
        raise InputError(
            f"data '{source.name}' has no readable {'photograph' if source.low is None else 'pair'} of at least "
            f"{needed_px(crop_px, source.low is not None)} px a side among {source.count} ("
            f"{'; '.join(source.skipped)}): check data.folders, data.pairs or crop_px"
        )
    return sources


def needed_px(crop_px: int, is_pair: bool = False) -> int:
    """The smallest side of a photograph, or of the HR of a pair, that a crop can be cut from."""
    return crop_px if is_pair else crop_px + 2 * MARGIN_PX


def data_summary(config: DataConfig, crop_sizes: Sequence[int], with_target: bool = False) -> list[str]:
    """The lines about the data of a run with these crops, each once. Raises the errors of `open_sources`."""
    lines = [
        line
        for crop_px in sorted(set(crop_sizes))
        for source in open_sources(config, crop_px, with_target)
        for line in source.lines()
    ]
    return list(dict.fromkeys(lines))


def _photographs(entry: str, crop_px: int) -> Source:
    scan = scan_photographs(list_source(entry), needed_px(crop_px))
    return Source(entry, scan.usable, None, scan.count, (*scan.skipped(), *left_out_lines(entry)))


def _ready_pairs(entry: str, crop_px: int, with_target: bool) -> Source:
    pairs, unpaired = list_pairs(entry)
    folder = Path(entry) / TARGET_FOLDER
    targets = images_by_stem(folder) if with_target and folder.is_dir() else None
    sizes = {}
    for scan in map(scan_photographs, (*map(list, zip(*pairs, strict=True)), list((targets or {}).values()))):
        sizes |= dict(zip(scan.usable, scan.sizes, strict=True))
    usable, reasons = [], {"without a partner": unpaired}
    for high, low in pairs:
        if high not in sizes or low not in sizes:
            reason = "unreadable"
        elif pair_scale(sizes[high], sizes[low]) is None:
            reason = "HR is no whole multiple of LR"
        elif min(sizes[high]) < needed_px(crop_px, is_pair=True):
            reason = f"smaller than {crop_px} px a side"
        elif targets is not None and sizes.get(targets.get(high.stem)) != sizes[high]:
            reason = f"without a picture of HR's size in {TARGET_FOLDER}"
        else:
            usable.append((high, low))
            continue
        reasons.setdefault(reason, []).append(high)
    skipped = [f"skipped, {reason}: {len(paths)} ({name_some(paths)})" for reason, paths in reasons.items() if paths]
    folders = (HR_FOLDER, LR_FOLDER, *([TARGET_FOLDER] if targets is not None else []))
    skipped += [line for name in folders for line in left_out_lines(str(Path(entry) / name))]
    return Source(
        name=entry,
        high=tuple(high for high, _ in usable),
        low=tuple(low for _, low in usable),
        count=len(pairs),
        skipped=tuple(skipped),
        target=None if targets is None else tuple(targets[high.stem] for high, _ in usable),
    )


def pair_scale(high: tuple[int, ...], low: tuple[int, ...]) -> int | None:
    """How many times larger HR is than LR, both (a, b) pixels; None where it is no whole number."""
    scale = high[0] // low[0]
    return scale if scale >= 1 and tuple(high[:2]) == (low[0] * scale, low[1] * scale) else None
