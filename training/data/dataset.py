"""Photographs -> (LQ, HQ) training crops. Sample i depends on (seed, i) alone, so that a run resumes exactly.

A region a little larger than the crop is cut, jittered in scale, flipped and turned, degraded, enlarged to its former
size by the Lanczos filter of the restorer, and only then cropped at a random offset. So the borders have real content,
and the LQ pixel grid lies at every phase of the token grid (docs/decisions.md#evaluation-protocol). Ready
pairs are cut, flipped, turned and enlarged alike, but neither jittered nor degraded. A pair of factor 4 can also serve
for a smaller one (`data.pair_scales`): its HR is shrunk.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Generator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from teasr_core.cli.terminal import STOP_SIGNALS
from teasr_core.errors import InputError
from teasr_core.image.resize import resize
from teasr_core.image.target_size import TargetSize

from ..config.shared import DataConfig
from ..degradation.degrade import PRESETS, degrade
from .photographs import PhotoCache
from .sources import MARGIN_PX, needed_px, open_sources, pair_scale

DRAWS = 64  # photographs that are tried for one sample before unreadable files are an error


class CropDataset(Dataset[tuple[torch.Tensor, ...]]):
    """Item i: (lq, hq), two (3, crop_px, crop_px) float32 tensors in [0, 1].

    with_target: (lq, hq, target). The target is what another restorer made of LQ; a photograph without one is its own.
    The entries are the HQ files of all sources in order. Raises the InputError of `sources.open_sources`.
    """

    def __init__(self, config: DataConfig, crop_px: int, seed: int, with_target: bool = False) -> None:
        self.with_target = with_target
        self.config = config
        self.crop_px = crop_px
        self.seed = seed
        sources = open_sources(config, crop_px, with_target)
        self.counts = [len(source.high) for source in sources]
        high = [path for source in sources for path in source.high]
        low = [path for source in sources for path in source.low or ()]
        self.num_entries = len(high)
        self.first_pair = self.num_entries - len(low)  # pairs are the last sources
        paired = [(source, index) for source in sources if source.low for index in range(len(source.high))]
        targets = [source.target[index] if source.target else source.high[index] for source, index in paired]
        self.photos = PhotoCache(high + low + targets, config.cache_mb)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng([self.seed, index])
        for _ in range(DRAWS):
            entry = self._draw(rng)
            crops = self._made_pair(entry, rng) if entry < self.first_pair else self._ready_pair(entry, rng)
            if crops is not None:
                return crops
        raise InputError(
            f"{DRAWS} draws gave no readable photograph of at least {needed_px(self.crop_px)} px a side: "
            "check data.folders or crop_px"
        )

    def _draw(self, rng: np.random.Generator) -> int:
        """Draw an entry: any image with equal chance, or a source by its weight and then any image of it."""
        if not self.config.weights:
            return int(rng.integers(self.num_entries))
        shares = np.array(self.config.weights, dtype=np.float64)
        source = int(rng.choice(len(shares), p=shares / shares.sum()))
        return sum(self.counts[:source]) + int(rng.integers(self.counts[source]))

    def _made_pair(self, entry: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...] | None:
        """The crops of a photograph that is degraded to LQ; None when the file is damaged."""
        region_px = self.crop_px + 2 * MARGIN_PX
        hq = self._region(entry, rng, region_px)  # (region, region, 3) float32
        if hq is None:
            return None
        preset = PRESETS[_pick(self.config.presets, rng)]
        scale = float(_pick(self.config.scales, rng))
        small = degrade(hq, preset, scale, rng)
        return self._window(small, [hq, hq] if self.with_target else [hq], rng)

    def _region(self, entry: int, rng: np.random.Generator, region_px: int) -> np.ndarray | None:
        """A square of a photograph after scale jitter, flip and turn, float32 in [0, 1]; None for a damaged file."""
        photo = self.photos.get(entry)  # (H, W, 3) uint8
        if photo is None or min(photo.shape[:2]) < region_px:
            return None
        zoom = rng.uniform(self.config.min_zoom, 1)
        side = min(round(region_px / zoom), *photo.shape[:2])
        y = int(rng.integers(photo.shape[0] - side + 1))
        x = int(rng.integers(photo.shape[1] - side + 1))
        region = photo[y : y + side, x : x + side]
        if side != region_px:
            region = cv2.resize(region, (region_px, region_px), interpolation=cv2.INTER_AREA)
        return _turned([region], rng)[0]

    def _ready_pair(self, entry: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...] | None:
        """The crops of a ready pair; None when a file is damaged. Small pictures leave less margin around the crop."""
        number = entry - self.first_pair
        high = self.photos.get(entry)  # (s H, s W, 3) uint8
        low = self.photos.get(self.num_entries + number)  # (H, W, 3) uint8
        pairs = self.num_entries - self.first_pair
        target = self.photos.get(self.num_entries + pairs + number) if self.with_target else high  # (s H, s W, 3) uint8
        if high is None or low is None or target is None or target.shape != high.shape:
            return None
        own = pair_scale(high.shape, low.shape)
        if own is None or min(high.shape[:2]) < self.crop_px:
            return None
        scale = self._pair_scale(own, min(low.shape[:2]), rng)
        side = min(math.ceil((self.crop_px + 2 * MARGIN_PX) / scale), *low.shape[:2])  # LR pixels
        y = int(rng.integers(low.shape[0] - side + 1))
        x = int(rng.integers(low.shape[1] - side + 1))
        small = low[y : y + side, x : x + side]
        whole = [high, target] if self.with_target else [high]
        large = [image[y * own : (y + side) * own, x * own : (x + side) * own] for image in whole]
        if scale != own:
            large = [_shrunk(image, side * scale) for image in large]
        small, *large = _turned([small, *large], rng)
        return self._window(small, large, rng)

    def _pair_scale(self, own: int, low_px: int, rng: np.random.Generator) -> int:
        """The factor that a pair of the factor `own` serves for: one of `data.pair_scales` that its size allows."""
        fitting = {
            scale: weight
            for scale, weight in self.config.pair_scales.items()
            if int(scale) <= own and low_px * int(scale) >= self.crop_px and weight > 0
        }
        return int(_pick(fitting, rng)) if fitting else own

    def _window(
        self, small: np.ndarray, large: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Resize `small` (h, w, 3) to the size of those in `large` (R, R, 3), then cut all at one random offset."""
        side = large[0].shape[0]
        lq = resize(_to_tensor(small), TargetSize(side, side))[0]  # (3, R, R)
        x, y = rng.integers(0, side - self.crop_px + 1, size=2)
        window = (slice(None), slice(y, y + self.crop_px), slice(x, x + self.crop_px))
        return tuple(image[window].contiguous() for image in (lq, *(_to_tensor(one)[0] for one in large)))


def batches(
    config: DataConfig, crop_px: int, batch_size: int, seed: int, first_sample: int, count: int, workers: int,
    stride: int = 1, with_target: bool = False,
) -> Generator[tuple[torch.Tensor, ...], None, None]:  # fmt: skip
    """`count` batches (lq, hq) or (lq, hq, target) of samples first_sample, first_sample+1, ...

    Each tensor is (batch_size, 3, crop_px, crop_px).

    stride: yield only every stride-th batch, the share of one of several processes.
    The data processes end with the generator, however it ends. Raises the InputError of `CropDataset`.
    """
    dataset = CropDataset(config, crop_px, seed, with_target)
    starts = [first_sample + k * stride * batch_size for k in range(count)]
    indices = [range(start, start + batch_size) for start in starts]
    loader = DataLoader(
        dataset,
        batch_sampler=indices,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_quiet_worker,
    )
    iterator: Any = iter(loader)
    try:
        yield from iterator
    except InputError as error:  # from a data process, whose traceback is in the message
        raise InputError(str(error).rsplit(f"{InputError.__name__}: ", 1)[-1].strip()) from None
    finally:
        if workers:  # the traceback of an error keeps the iterator alive: the command would wait for its processes
            iterator._shutdown_workers()


def _quiet_worker(_worker: int) -> None:
    # A terminal signals the whole process group; the workers must live until the trainer has saved and stopped.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _pick(weights: dict[str, float] | object, rng: np.random.Generator) -> str:
    assert isinstance(weights, dict)
    names = sorted(weights)
    shares = np.array([weights[name] for name in names], dtype=np.float64)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """(R, R, 3) uint8 -> (side, side, 3) uint8, by Pillow's Lanczos filter."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.LANCZOS))


def _turned(images: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Turn the images (h, w, 3) uint8 by the same quarters and mirror all or none; float32 in [0, 1]."""
    quarters = int(rng.integers(4))
    turned = [np.rot90(image, quarters) for image in images]
    if rng.random() < 0.5:
        turned = [image[:, ::-1] for image in turned]
    return [np.ascontiguousarray(image, dtype=np.float32) / 255 for image in turned]


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # (1, 3, H, W)
