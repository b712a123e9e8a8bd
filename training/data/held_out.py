"""The committed list of evaluation crops: how it was made, how it is read, and the pairs that it gives."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teasr_core.errors import InputError
from teasr_core.image.luma import gradient_map
from teasr_core.picture_files.read import read_rgb

from ..degradation.degrade import Degradation, degrade
from ..degradation.ops import to_uint8

CROP_PX = 512
CANDIDATES = 8
LIST_PATH = Path(__file__).with_name("eval_list.tsv")

_HEADER = f"""\
# One {CROP_PX}x{CROP_PX} evaluation crop per held-out photograph; x and y are the left and top edge in pixels.
# Rule: {CANDIDATES} candidates from numpy.random.default_rng([0, row]), x then y uniform over the offsets that fit and
# are not multiples of 8 (0 where the side is exactly {CROP_PX}); kept is the one of the highest mean gradient of luma.
# Not multiples of 8: the photographs are JPEG files, and a crop on their block grid would favour an 8x8 DCT model.
file\tx\ty
"""


@dataclass(frozen=True)
class EvalCrop:
    """The file name of a photograph, and the left and top edge of its crop in pixels."""

    file: str
    x: int
    y: int


def read_eval_list(path: str | Path = LIST_PATH) -> list[EvalCrop]:
    """Read a list of crops. Raises InputError for a missing file and for a line that is not file, x, y."""
    if not Path(path).is_file():
        raise InputError(f"evaluation list: found no file at {path}, expected a .tsv of file, x, y; give its path")
    lines = [line for line in Path(path).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    crops = []
    for line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != 3 or not (cells[1].isdigit() and cells[2].isdigit()):
            raise InputError(f"evaluation list {path}: found '{line}', expected file, x, y by tabs; correct the line")
        crops.append(EvalCrop(cells[0], int(cells[1]), int(cells[2])))
    return crops


def write_eval_list(photo_dir: str | Path, path: str | Path = LIST_PATH) -> None:
    """Choose a crop of each photograph in `photo_dir`, by name, and write the list. Raises as `choose_crop`."""
    rows = []
    for index, photo in enumerate(sorted(Path(photo_dir).glob("*.jpg"))):
        x, y = choose_crop(read_rgb(photo), index)
        rows.append(f"{photo.name}\t{x}\t{y}\n")
    Path(path).write_text(_HEADER + "".join(rows), "utf-8")


def choose_crop(photo: np.ndarray, index: int) -> tuple[int, int]:
    """The left and top edge of the crop of photograph number `index`, (H, W, 3) uint8, by the rule in _HEADER.

    Raises InputError for a photograph smaller than the crop.
    """
    height, width = photo.shape[:2]
    if min(height, width) < CROP_PX:
        raise InputError(f"evaluation crop: found {width}x{height} pixels, expected {CROP_PX} a side; leave it out")
    rng = np.random.default_rng([0, index])
    candidates = [(_offset(width, rng), _offset(height, rng)) for _ in range(CANDIDATES)]
    return max(candidates, key=lambda at: gradient_map(photo[at[1] : at[1] + CROP_PX, at[0] : at[0] + CROP_PX]).mean())


def _offset(side: int, rng: np.random.Generator) -> int:
    offsets = [offset for offset in range(side - CROP_PX + 1) if offset % 8] or [0]
    return offsets[int(rng.integers(len(offsets)))]


SCALE = 4


@dataclass(frozen=True, eq=False)
class EvalPair:
    """One picture: lr (128, 128, 3) and hq (512, 512, 3), uint8 RGB."""

    name: str
    lr: np.ndarray
    hq: np.ndarray


def load_eval_pairs(
    eval_dir: str | Path, preset: Degradation, seed: int = 0, list_path: str | Path = LIST_PATH
) -> list[EvalPair]:
    """The crops of the list, in its order, with degraded versions of a quarter of their size.

    The i-th picture is degraded with `numpy.random.default_rng([seed, i])`, so that it does not depend on the others.
    Raises InputError for a photograph that is missing, cannot be read or is smaller than its crop.
    """
    pairs = []
    for index, crop in enumerate(read_eval_list(list_path)):
        hq = _read_crop(Path(eval_dir), crop)
        rng = np.random.default_rng([seed, index])
        lr = to_uint8(degrade(hq.astype(np.float32) / np.float32(255.0), preset, SCALE, rng))
        pairs.append(EvalPair(Path(crop.file).stem, lr, hq))
    return pairs


def _read_crop(eval_dir: Path, crop: EvalCrop) -> np.ndarray:
    path = eval_dir / crop.file
    if not path.is_file():
        raise InputError(
            f"evaluation: found no photograph at {path}, expected those of the list; give the folder that holds them"
        )
    hq = read_rgb(path)[crop.y : crop.y + CROP_PX, crop.x : crop.x + CROP_PX]
    if hq.shape[:2] != (CROP_PX, CROP_PX):
        raise InputError(
            f"evaluation: {path} leaves {hq.shape[1]}x{hq.shape[0]} pixels at ({crop.x}, {crop.y}), expected "
            f"{CROP_PX} a side; use the photographs the list was made from"
        )
    return hq
