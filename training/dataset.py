"""Photographs -> (LQ, HQ) training crops. Sample i depends on (seed, i) alone, so a run resumes exactly.

A region a little larger than the crop is cut, jittered in scale, flipped and turned, degraded, brought back to its
size with the same Lanczos the restorer uses, and only then cropped at a random offset: so the borders are real
content and the LQ pixel grid falls at every phase of the token grid (SPEC 13).
"""

from __future__ import annotations

import signal
from collections import OrderedDict
from collections.abc import Generator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from teasr_core.errors import InputError
from teasr_core.geometry import TargetSize, resize

from .config import DataConfig
from .degradation import PRESETS, degrade

MARGIN_PX = 16
PHOTO_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def list_photographs(folders: Sequence[str]) -> list[Path]:
    """Sorted image files of the folders. InputError for no folder, a missing folder or one without images."""
    if not folders:
        raise InputError("data.folders is empty: name at least one folder of photographs")
    paths: list[Path] = []
    for folder in folders:
        root = Path(folder)
        if not root.is_dir():
            raise InputError(f"data.folders names '{folder}': there is no such folder")
        found = sorted(p for p in root.iterdir() if p.suffix.lower() in PHOTO_EXTENSIONS)
        if not found:
            raise InputError(f"data.folders names '{folder}': no image in it ({', '.join(sorted(PHOTO_EXTENSIONS))})")
        paths += found
    return paths


class PhotoCache:
    """Decoded photographs (H, W, 3) uint8 RGB, the least recently used dropped beyond `limit_mb`."""

    def __init__(self, paths: Sequence[Path], limit_mb: int) -> None:
        self.paths = list(paths)
        self.limit = limit_mb * 2**20
        self.size = 0
        self.images: OrderedDict[int, np.ndarray] = OrderedDict()

    def get(self, index: int) -> np.ndarray | None:
        """The photograph, or None when the file cannot be read as one."""
        if index in self.images:
            self.images.move_to_end(index)
            return self.images[index]
        bgr = cv2.imread(str(self.paths[index]), cv2.IMREAD_COLOR)
        if bgr is None:
            return None
        image = np.ascontiguousarray(bgr[:, :, ::-1])
        self.images[index] = image
        self.size += image.nbytes
        while self.size > self.limit and len(self.images) > 1:
            self.size -= self.images.popitem(last=False)[1].nbytes
        return image


class CropDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Item i: (lq, hq), two (3, crop_px, crop_px) float32 tensors in [0, 1]."""

    def __init__(self, config: DataConfig, crop_px: int, seed: int) -> None:
        self.config = config
        self.crop_px = crop_px
        self.seed = seed
        self.photos = PhotoCache(list_photographs(config.folders), config.cache_mb)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.seed, index])
        region_px = self.crop_px + 2 * MARGIN_PX
        hq = self._region(rng, region_px)  # (region, region, 3) float32
        preset = PRESETS[_pick(self.config.presets, rng)]
        scale = float(_pick(self.config.scales, rng))
        small = degrade(hq, preset, scale, rng)
        lq = resize(_to_tensor(small), TargetSize(region_px, region_px))[0]  # (3, region, region)
        x, y = rng.integers(0, 2 * MARGIN_PX + 1, size=2)
        window = (slice(None), slice(y, y + self.crop_px), slice(x, x + self.crop_px))
        return lq[window].contiguous(), _to_tensor(hq)[0][window].contiguous()

    def _region(self, rng: np.random.Generator, region_px: int) -> np.ndarray:
        """A square of the photographs, shrunk by the scale jitter, flipped and turned; float32 in [0, 1]."""
        for _ in range(64):  # unreadable or too small photographs are passed over
            photo = self.photos.get(int(rng.integers(len(self.photos.paths))))
            if photo is None or min(photo.shape[:2]) < region_px:
                continue
            zoom = rng.uniform(self.config.min_zoom, 1)
            side = min(round(region_px / zoom), *photo.shape[:2])
            y = int(rng.integers(photo.shape[0] - side + 1))
            x = int(rng.integers(photo.shape[1] - side + 1))
            region = photo[y : y + side, x : x + side]
            if side != region_px:
                region = cv2.resize(region, (region_px, region_px), interpolation=cv2.INTER_AREA)
            region = np.rot90(region, int(rng.integers(4)))
            if rng.random() < 0.5:
                region = region[:, ::-1]
            return np.ascontiguousarray(region, dtype=np.float32) / 255
        raise InputError(
            f"64 draws gave no readable photograph of at least {region_px} px a side: check data.folders or crop_px"
        )


def batches(
    config: DataConfig, crop_px: int, batch_size: int, seed: int, first_sample: int, count: int, workers: int
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """`count` batches (lq, hq), each (batch_size, 3, crop_px, crop_px), of samples first_sample, first_sample+1, ...

    Closing the generator ends its data processes.
    """
    dataset = CropDataset(config, crop_px, seed)
    indices = [range(first_sample + k * batch_size, first_sample + (k + 1) * batch_size) for k in range(count)]
    loader = DataLoader(
        dataset,
        batch_sampler=indices,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_quiet_worker,
    )
    yield from loader


def _quiet_worker(_worker: int) -> None:
    # A terminal signals the whole process group: the trainer saves and stops, its workers must live until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _pick(weights: dict[str, float] | object, rng: np.random.Generator) -> str:
    assert isinstance(weights, dict)
    names = sorted(weights)
    shares = np.array([weights[name] for name in names], dtype=np.float64)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # (1, 3, H, W)
