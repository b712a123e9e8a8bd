"""Which models an evaluation compares: `--model NAME=SPEC`, what SPEC may be, and the model behind it.

builtin       the shipped base with the shipped LoRA (the base alone while none is shipped)
builtin-base  the shipped base without LoRA
LORA          a TEASR LoRA file for the shipped base
BASE          a base file
BASE+LORA     both
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from teasr_core.device import DTYPES
from teasr_core.errors import InputError, ModelFileError
from teasr_core.image.levels import to_levels
from teasr_core.image.target_size import TargetSize
from teasr_core.restore import RestoreOptions, RestoreRequest
from teasr_core.restorer import Restorer
from teasr_core.sampling.schedule import manual_plan
from teasr_core.tiling import tile_in_latent
from teasr_core.weight_files import base_file
from teasr_core.weight_files.lora_file import LoraFile, check_base, read_lora
from teasr_core.weight_files.safetensors_reader import read_tensors
from teasr_core.whole_file import file_sha256

BUILTIN, BUILTIN_BASE = "builtin", "builtin-base"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# lr (h, w, 3) uint8, size of the result, number of steps -> (H, W, 3) uint8
RestoreFn = Callable[[np.ndarray, TargetSize, int], np.ndarray]


@dataclass(frozen=True)
class EvalSettings:
    """What decides a result beside the model and the picture. dtype: fp32 or bf16."""

    seed: int = 0
    dtype: str = "fp32"
    tile_px: int = 0
    color_fix: str = "off"


@dataclass(frozen=True)
class EvalModel:
    """A model by its files; lora None = the base alone. `model_id` is of the files' bytes, not of their names."""

    name: str
    spec: str
    base: Path
    lora: Path | None

    @property
    def model_id(self) -> str:
        """16 hexadecimal digits; the same files under other names give the same."""
        return hashlib.sha256("".join(self.hashes().values()).encode()).hexdigest()[:16]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file: "base", and "lora" where there is one."""
        files = {"base": self.base} | ({"lora": self.lora} if self.lora else {})
        return {role: file_sha256(path) for role, path in files.items()}

    def read(self) -> tuple[base_file.BaseFile, LoraFile | None]:
        """Both files, checked against each other. Errors as `read_base`, `read_lora` and `check_base`."""
        base = base_file.read_base(self.base)
        if self.lora is None:
            return base, None
        lora = read_lora(self.lora)
        check_base(lora, base.architecture, base.prediction, base.tensors)
        return base, lora

    def load(self, settings: EvalSettings) -> RestoreFn:
        """Build the model on the CPU. Errors as `read` and `build_velocity`."""
        base, lora = self.read()
        dtype = DTYPES[settings.dtype]
        velocity = base_file.build_velocity(base, lora, dtype=dtype)
        restorer = Restorer(base, velocity, dtype, recipe=velocity.recipe)

        def restore(lr: np.ndarray, size: TargetSize, steps: int) -> np.ndarray:
            image = torch.tensor(lr).permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
            options = RestoreOptions(size, color_fix=settings.color_fix)
            request = RestoreRequest(options, manual_plan(steps), settings.seed, tile_px=settings.tile_px)
            out = restorer.restore(image, request).image
            return np.ascontiguousarray(to_levels(out[0]).permute(1, 2, 0).numpy())  # (H, W, 3)

        return restore


def parse_models(texts: Sequence[str], base: Path | None = None) -> list[EvalModel]:
    """The models of `--model NAME=SPEC ...`, or of `--base FILE`, or the shipped one; every file is read and checked.

    Raises InputError for a malformed or repeated name and for both options at once; ModelFileError for the files.
    """
    if texts and base is not None:
        raise InputError("--base and --model are both given: expected one; write --model NAME=FILE for the base too")
    if base is not None:
        base_file.read_base(base)
        return [EvalModel("base", str(base), base, None)]
    models = [parse_model(text) for text in texts] or [resolve_model(BUILTIN, BUILTIN)]
    check_names([model.name for model in models], "--model")
    for model in models:
        model.read()
    return models


def check_settings(settings: EvalSettings, models: Sequence[EvalModel]) -> None:
    """Refuse now what a model would refuse after the baselines. InputError for a seed, tile or colour fix."""
    if settings.seed < 0:
        raise InputError(f"--seed is {settings.seed}: expected 0 or more")
    RestoreOptions(TargetSize(1, 1), color_fix=settings.color_fix)
    if settings.tile_px:
        for base, _ in (model.read() for model in models):
            tile_in_latent(settings.tile_px, 0, base.codec.downscale, base.architecture.block_multiple)


def parse_model(text: str) -> EvalModel:
    """The model of one NAME=SPEC. Raises the errors of `parse_models`."""
    return resolve_model(*split_name(text, "--model", "NAME=SPEC", "ours=builtin"))


def split_name(text: str, flag: str, form: str, example: str) -> tuple[str, str]:
    """Split NAME=VALUE. Raises InputError, which shows `form` and `example`, where there is no value or no such name.

    The name becomes a part of file names.
    """
    name, _, value = text.partition("=")
    if not value or not _NAME.fullmatch(name):
        raise InputError(
            f"{flag} is '{text}': expected {form}, the name of letters, digits, dot, dash and underscore, "
            f"such as {example}"
        )
    return name, value


def check_names(names: Sequence[str], flag: str, other_names: Sequence[str] = ()) -> None:
    """Raise InputError for a name that stands twice, is among `other_names` or is a baseline's.

    Upper and lower case count as the same, because names become files, which most systems do not tell apart by case.
    """
    taken = [name.lower() for name in (*names, *other_names)]
    for name in names:
        if taken.count(name.lower()) > 1 or name.lower() in ("bicubic", "lanczos", "hq"):
            raise InputError(f"{flag} {name}: the name is taken, expected one of its own for each; choose another")


def resolve_model(name: str, spec: str) -> EvalModel:
    """The files behind a SPEC. Raises ModelFileError where there is no such file or it is of another kind."""
    shipped = base_file.ASSETS / base_file.BASE_NAME
    if spec == BUILTIN:
        lora = base_file.ASSETS / base_file.LORA_NAME
        return EvalModel(name, spec, shipped, lora if lora.is_file() else None)
    if spec == BUILTIN_BASE:
        return EvalModel(name, spec, shipped, None)
    path = Path(spec)
    if path.is_file():
        metadata = read_tensors(path)[1]
        if metadata.get("teasr.kind") == "base":
            return EvalModel(name, spec, path, None)
        if "teasr.scope" in metadata:
            return EvalModel(name, spec, shipped, path)
        raise ModelFileError(f"--model {name}: {path.name} is neither a TEASR base nor a TEASR LoRA; give one of them")
    for cut in (index for index, character in enumerate(spec) if character == "+"):
        base, lora = Path(spec[:cut]), Path(spec[cut + 1 :])
        if base.is_file() and lora.is_file():
            return EvalModel(name, spec, base, lora)
    raise ModelFileError(
        f"--model {name}: found no file at {spec}, expected {BUILTIN}, {BUILTIN_BASE}, a base or LoRA file, "
        "or BASE+LORA; check the path"
    )
