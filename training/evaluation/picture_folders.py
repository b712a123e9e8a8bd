"""Results that were made elsewhere: folders of pictures that stand in the tables beside our models.

A folder holds one file for each picture of the dataset: the same name without its ending, any kind that can be read,
and the size of the result. With several datasets each has a folder of its own in it, named like the dataset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teasr_core.errors import InputError
from teasr_core.picture_files.read import read_size
from teasr_core.whole_file import file_sha256

from ..data.photographs import images_by_stem, name_some
from .datasets import EvalDataset
from .models import check_names, split_name


@dataclass(frozen=True, eq=False)
class PictureFolder:
    """One folder.

    files: picture_id -> file, for every evaluated picture. model_id: a hash of the bytes of all these files.
    """

    name: str
    folder: Path
    model_id: str
    files: Mapping[str, Path]


def open_picture_folders(
    texts: Sequence[str], datasets: Sequence[EvalDataset], other_names: Sequence[str] = ()
) -> list[PictureFolder]:
    """Open the folders of `--pictures NAME=DIR ...` and check that they hold every picture of every dataset.

    Raises InputError for a malformed or repeated name, a folder or a picture that is missing, and a picture that
    cannot be read or has another size than the result must have.
    """
    named = [split_name(text, "--pictures", "NAME=DIR", "x4plus=results/x4plus") for text in texts]
    check_names([name for name, _ in named], "--pictures", other_names)
    return [_open(name, Path(folder), datasets) for name, folder in named]


def _open(name: str, folder: Path, datasets: Sequence[EvalDataset]) -> PictureFolder:
    files: dict[str, Path] = {}
    for dataset in datasets:
        files |= _files_of(name, _folder_of(name, folder, dataset, len(datasets)), dataset)
    digest = hashlib.sha256("".join(file_sha256(path) for path in files.values()).encode()).hexdigest()
    return PictureFolder(name, folder, digest[:16], files)


def _folder_of(name: str, folder: Path, dataset: EvalDataset, num_datasets: int) -> Path:
    own = folder / dataset.name
    if own.is_dir():
        return own
    if num_datasets > 1:
        raise InputError(
            f"--pictures {name}: found no folder {own}, expected one for each of the {num_datasets} datasets; "
            "make it, or evaluate one dataset at a time"
        )
    if not folder.is_dir():
        raise InputError(f"--pictures {name}: found no folder {folder}, expected one with pictures; check the path")
    return folder


def _files_of(name: str, folder: Path, dataset: EvalDataset) -> dict[str, Path]:
    """picture_id -> file, for every picture of the dataset."""
    by_stem = images_by_stem(folder)
    missing = [Path(picture.name) for picture in dataset.pictures if picture.name not in by_stem]
    if missing:
        raise InputError(
            f"--pictures {name}: {folder} lacks {len(missing)} of the {len(dataset.pictures)} pictures of "
            f"'{dataset.name}' ({name_some(missing)}); expected a file of the same name for each, make or rename them"
        )
    for picture in dataset.pictures:
        path, expected = by_stem[picture.name], (picture.size.width, picture.size.height)
        found = read_size(path)
        if found is None:
            raise InputError(f"--pictures {name}: {path} cannot be read as a picture; make it again")
        if found != expected:
            raise InputError(
                f"--pictures {name}: {path} has {found[0]}x{found[1]} px, expected {expected[0]}x{expected[1]}; "
                "make it again in that size"
            )
    return {picture.picture_id: by_stem[picture.name] for picture in dataset.pictures}
