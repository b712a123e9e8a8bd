"""How each metric of an evaluation is computed, and why a metric is absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from teasr_core.errors import InputError
from teasr_core.image.luma import psnr_y
from teasr_core.whole_file import file_sha256

from .columns import Column, column
from .niqe import load_niqe_model, niqe
from .pictures import flat_gradient, gmsd, grid_peak, mean_gradient, ssim_y

LPIPS_MIN_PX = 32

# (picture, original or None), both (H, W, 3) uint8 -> value. Raises InputError where the metric has no value.
MeasureFn = Callable[[np.ndarray, "np.ndarray | None"], float]


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric of one picture. metric_id: what it is computed with, so that no score of another version is reused."""

    key: str
    metric_id: str
    measure: MeasureFn

    @property
    def column(self) -> Column:
        return column(self.key)


@dataclass(frozen=True, eq=False)
class SetMetric:
    """A metric of a whole set. measure: (folder of results, folder of originals), PNG files of equal names -> value."""

    key: str
    metric_id: str
    measure: Callable[[Path, Path], float]


@dataclass(frozen=True)
class Absent:
    """A metric that is not computed, and the reason."""

    metric: str
    reason: str


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics that an evaluation computes, and those that are absent."""

    pictures: tuple[Metric, ...]
    sets: tuple[SetMetric, ...] = ()
    absent: tuple[Absent, ...] = ()

    def of(self, has_hq: bool) -> tuple[Metric, ...]:
        """The metrics of one picture that can be computed with (or without) an original."""
        return tuple(metric for metric in self.pictures if has_hq or not metric.column.needs_hq)

    def absent_from(self, has_hq: bool) -> tuple[Absent, ...]:
        """The absent metrics; without originals the full-reference metrics are among them."""
        if has_hq:
            return self.absent
        lost = [metric.key for metric in (*self.pictures, *self.sets) if column(metric.key).needs_hq]
        return self.absent + tuple(Absent(key, "it needs the originals, and there are none") for key in lost)


def own_metrics(niqe_params: Path | None = None, lpips_backbone: Path | None = None) -> Metrics:
    """PSNR-Y, SSIM-Y, GMSD, gradients, the peak of the patch grid; NIQE and LPIPS-squeeze where their files are given.

    Raises InputError for a file that is missing or of another kind.
    """
    with_hq = {"psnr_y": psnr_y, "ssim_y": ssim_y, "gmsd": gmsd, "flat_gradient": flat_gradient}
    metrics = [Metric(key, "1", _against_hq(function)) for key, function in with_hq.items()]
    metrics.append(Metric("hq_flat_gradient", "1", _hq_flat_gradient))
    metrics += [Metric("gradient", "1", lambda a, _: mean_gradient(a)), Metric("grid_peak", "1", _grid_peak)]
    absent = []
    if niqe_params is None:
        absent.append(Absent("niqe", "--niqe-params gives no file"))
    else:
        load_niqe_model(niqe_params)
        metrics.append(Metric("niqe", file_sha256(niqe_params)[:16], lambda a, _: niqe(a, niqe_params)))
    if lpips_backbone is None:
        absent.append(Absent("lpips_squeeze", "--lpips-backbone gives no file"))
    else:
        metrics.append(_lpips_squeeze(lpips_backbone))
    return Metrics(tuple(metrics), absent=tuple(absent))


def _against_hq(function: Callable[[np.ndarray, np.ndarray], float]) -> MeasureFn:
    def measure(picture: np.ndarray, hq: np.ndarray | None) -> float:
        assert hq is not None  # Metrics.of
        return function(picture, hq)

    return measure


def _hq_flat_gradient(picture: np.ndarray, hq: np.ndarray | None) -> float:
    assert hq is not None
    return flat_gradient(hq, hq)


def _grid_peak(picture: np.ndarray, hq: np.ndarray | None) -> float:
    return grid_peak(picture)


def _lpips_squeeze(backbone: Path) -> Metric:
    from ...objective.lpips import LpipsSqueeze  # the package `lpips` is an extra

    network = LpipsSqueeze(backbone)

    def measure(picture: np.ndarray, hq: np.ndarray) -> float:
        if min(picture.shape[:2]) < LPIPS_MIN_PX:
            raise InputError(
                f"LPIPS-squeeze: found {picture.shape[1]}x{picture.shape[0]} pixels, expected {LPIPS_MIN_PX} a side; "
                "use a larger picture"
            )
        a, b = (torch.tensor(one).permute(2, 0, 1)[None].float() / 127.5 - 1.0 for one in (picture, hq))
        with torch.no_grad():
            return float(network(a, b))  # (1, 3, H, W) each

    return Metric("lpips_squeeze", file_sha256(backbone)[:16], _against_hq(measure))
