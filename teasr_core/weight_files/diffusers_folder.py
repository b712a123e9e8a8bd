"""Folders as diffusers saves them: a model with its parts, or one part with config.json and its shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError

PART_NAMES = ("transformer", "vae")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def component_folder(path: Path, part: str) -> Path | None:
    """The folder of `part` at `path`: `path`/`part` of a whole model, `path` itself when it is a part; else None."""
    if (path / part / "config.json").is_file():
        return path / part
    return path if (path / "config.json").is_file() else None


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. ModelFileError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise ModelFileError(f"{path} is no readable JSON ({cause}): download it again") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{path} is no JSON object: download it again")
    return values


def shard_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of one part, sorted: all that its index names, or its one file.

    ModelFileError when a file the index names is missing, or there is none, or several without an index.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"), key=lambda path: (len(path.name), path.name))
    if indices:  # the shortest name is the one without a variant such as .fp16
        names = read_json(indices[0]).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ModelFileError(f"{indices[0]} has no weight_map: download it again")
        files = [folder / str(name) for name in sorted(set(names.values()))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise ModelFileError(
                f"{folder} lacks {len(missing)} of {len(files)} files its index names, first {missing[0]}: download "
                "them"
            )
        return tuple(files)
    files = sorted(folder.glob("*.safetensors"))
    if (folder / WEIGHTS) in files:
        return (folder / WEIGHTS,)
    if len(files) == 1:
        return (files[0],)
    found = f"{len(files)} safetensors files and no index" if files else "no safetensors file"
    if any(folder.glob("*.bin")):
        found += " but pickles (.bin), which can run code"
    raise ModelFileError(f"{folder} holds {found}: expected {WEIGHTS}, or shards with their index")
