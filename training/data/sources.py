"""The sources of a run (`data.folders`, `data.pairs`): their usable images, and what is left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teasr_core.errors import InputError

from ..config.shared import DataConfig
from .photographs import HR_FOLDER, LR_FOLDER, left_out_lines, list_pairs, list_source, name_some, scan_photographs

MARGIN_PX = 16  # around a crop, so that its borders are made from real content


@dataclass(frozen=True)
class Source:
    """Images that share a weight. low: the LR file for each HR file in `high`; None where LR is made by degradation."""

    name: str
    high: tuple[Path, ...]
    low: tuple[Path, ...] | None
    count: int  # files (pairs) found, usable or not
    skipped: tuple[str, ...]  # one line for each kind of file that is left out

    def lines(self) -> list[str]:
        """The lines that a run prints at its start."""
        kind = "images" if self.low is None else "pairs"
        head = f"data '{self.name}': {len(self.high)} of {self.count} {kind} usable"
        return [head, *(f"data '{self.name}': {line}" for line in self.skipped)]


def open_sources(config: DataConfig, crop_px: int) -> list[Source]:
    """Open the sources in the order of `data.weights`, each with the images that are large enough for `crop_px`.

    Raises InputError when there is no source, when one is missing or empty, when one with a weight has no usable
    image, and when no source has a usable image.
    """
    if not config.folders and not config.pairs:
        raise InputError("data.folders is empty: name at least one folder of photographs")
    sources = [_photographs(folder, crop_px) for folder in config.folders]
    sources += [_ready_pairs(folder, crop_px) for folder in config.pairs]
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


def data_summary(config: DataConfig, crop_sizes: Sequence[int]) -> list[str]:
    """The lines about the data of a run with these crops, each once. Raises the errors of `open_sources`."""
    lines = [
        line
        for crop_px in sorted(set(crop_sizes))
        for source in open_sources(config, crop_px)
        for line in source.lines()
    ]
    return list(dict.fromkeys(lines))


def _photographs(entry: str, crop_px: int) -> Source:
    scan = scan_photographs(list_source(entry), needed_px(crop_px))
    return Source(entry, scan.usable, None, scan.count, (*scan.skipped(), *left_out_lines(entry)))


def _ready_pairs(entry: str, crop_px: int) -> Source:
    pairs, unpaired = list_pairs(entry)
    sizes = {}
    for scan in (scan_photographs([pair[side] for pair in pairs]) for side in (0, 1)):
        sizes |= dict(zip(scan.usable, scan.sizes, strict=True))
    usable, reasons = [], {"without a partner": unpaired}
    for high, low in pairs:
        if high not in sizes or low not in sizes:
            reason = "unreadable"
        elif pair_scale(sizes[high], sizes[low]) is None:
            reason = "HR is no whole multiple of LR"
        elif min(sizes[high]) < needed_px(crop_px, is_pair=True):
            reason = f"smaller than {crop_px} px a side"
        else:
            usable.append((high, low))
            continue
        reasons.setdefault(reason, []).append(high)
    skipped = [f"skipped, {reason}: {len(paths)} ({name_some(paths)})" for reason, paths in reasons.items() if paths]
    skipped += [line for name in (HR_FOLDER, LR_FOLDER) for line in left_out_lines(str(Path(entry) / name))]
    return Source(entry, tuple(high for high, _ in usable), tuple(low for _, low in usable), len(pairs), tuple(skipped))


def pair_scale(high: tuple[int, ...], low: tuple[int, ...]) -> int | None:
    """How many times larger HR is than LR, both (a, b) pixels; None where it is no whole number."""
    scale = high[0] // low[0]
    return scale if scale >= 1 and tuple(high[:2]) == (low[0] * scale, low[1] * scale) else None
