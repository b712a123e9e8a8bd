"""Results on the disk, for the grids and the metrics of whole sets. A file name holds all that decides its pixels."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from teasr_core.errors import InputError
from teasr_core.whole_file import nearest_existing, whole_file

from .scores import ResultKey


def check_folder(folder: Path) -> None:
    """Raise InputError where results could not be written. Call it before the work, which may take hours."""
    nearest = nearest_existing(folder)
    if not nearest.is_dir():
        raise InputError(f"evaluation: {nearest} is a file, expected a folder for the results; give another")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"evaluation: {nearest} cannot be written, expected a folder for the results; give another")


class ResultStore:
    """PNG files in `folder`/dataset/model-identity/steps/. The identity is a hash of all that decides the pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: ResultKey) -> Path:
        made_with = repr((key.model_id, key.seed, key.dtype, key.tile_px, key.color_fix))
        identity = hashlib.sha256(made_with.encode()).hexdigest()[:8]
        steps = f"{key.steps}_steps" if key.steps else "baseline"
        return self.folder / key.dataset / f"{key.model}-{identity}" / steps / f"{key.picture}-{key.picture_id[:8]}.png"

    def has(self, key: ResultKey) -> bool:
        return self.path(key).is_file()

    def read(self, key: ResultKey) -> np.ndarray:
        """(H, W, 3) uint8."""
        with Image.open(self.path(key)) as image:
            return np.array(image.convert("RGB"))

    def write(self, key: ResultKey, picture: np.ndarray) -> None:
        """Save a picture (H, W, 3) uint8 as a file that appears whole or not at all."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            Image.fromarray(picture).save(temporary, "PNG")

    def collect(self, keys: Sequence[ResultKey], folder: Path) -> None:
        """Copy these results into one new folder, each under the name of its picture."""
        folder.mkdir(parents=True)
        for key in keys:
            shutil.copyfile(self.path(key), folder / f"{key.picture}.png")
