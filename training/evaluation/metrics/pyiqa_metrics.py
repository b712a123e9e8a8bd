"""The field's metrics through the package `pyiqa`, with weights that are on the disk already; nothing is downloaded.

pyiqa downloads the files that it lacks as soon as a metric is built. Therefore the files of a metric are looked up
first, and it is built with the network switched off: if another version of the package reads another file, building
fails and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from teasr_core.errors import InputError

from .registry import Absent, Metric, Metrics, SetMetric

# Where the files lie: under `torch.hub.get_dir()`, but for timm's, which are in Hugging Face's cache (pyiqa 0.1.16).
HUB, HUGGING_FACE = "hub", "hugging face"


@dataclass(frozen=True)
class PyiqaMetric:
    """A metric of pyiqa: our key, its name in pyiqa, and the files that it reads as (place, name)."""

    key: str
    name: str
    files: tuple[tuple[str, str], ...]


VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k/model.safetensors"
PYIQA_METRICS = (
    PyiqaMetric(
        "lpips", "lpips",
        ((HUB, "checkpoints/alexnet-owt-7be5be79.pth"), (HUB, "pyiqa/LPIPS_v0.1_alex-df73285e.pth")),
    ),
    PyiqaMetric("dists", "dists", ((HUB, "checkpoints/vgg16-397923af.pth"), (HUB, "pyiqa/DISTS_weights-f5e65c96.pth"))),
    PyiqaMetric("fid", "fid", ((HUB, "pyiqa/pt_inception-2015-12-05-6726825d.pth"),)),
    PyiqaMetric("niqe_pyiqa", "niqe", ((HUB, "pyiqa/niqe_modelparameters.mat"),)),
    PyiqaMetric("musiq", "musiq", ((HUB, "pyiqa/musiq_koniq_ckpt-e95806b9.pth"),)),
    PyiqaMetric("maniqa_pipal", "maniqa-pipal", ((HUB, "pyiqa/MANIQA_PIPAL-ae6d356b.pth"), (HUGGING_FACE, VIT))),
    PyiqaMetric("clipiqa", "clipiqa", ((HUB, "clip/RN50.pt"),)),
)  # fmt: skip
ALL, NONE = "all", "none"


def pyiqa_metrics(names: str = ALL, hub: Path | None = None) -> Metrics:
    """Build the metrics of "lpips,dists,..." (pyiqa's names, "all" or "none"), and say why the others are absent.

    hub: torch's hub folder, by default `torch.hub.get_dir()`. Raises InputError for an unknown name.
    """
    chosen = _chosen(names)
    absent = [Absent(one.key, f"--pyiqa {names} leaves it out") for one in PYIQA_METRICS if one not in chosen]
    pictures, sets = [], []
    for one in chosen:
        reason = absence(one, hub)
        if reason is None:
            try:
                network = _build(one.name)
            # A third party's code on whatever the cache holds; any failure only means that this metric is absent.
            except Exception as error:
                reason = f"pyiqa could not build it from the files on the disk ({_one_line(error)})"
            else:
                metric_id = f"pyiqa {importlib.metadata.version('pyiqa')}"
                if one.name == "fid":
                    sets.append(SetMetric(one.key, metric_id, lambda a, b, net=network: _measure_set(net, a, b)))
                else:
                    pictures.append(Metric(one.key, metric_id, _measure(one.name, network)))
        if reason is not None:
            absent.append(Absent(one.key, reason))
    return Metrics(tuple(pictures), tuple(sets), tuple(absent))


def absence(metric: PyiqaMetric, hub: Path | None = None) -> str | None:
    """The reason why pyiqa cannot compute this metric without a download, or None."""
    if importlib.util.find_spec("pyiqa") is None:
        return "the package pyiqa is not installed"
    missing = missing_files(metric, hub)
    return f"its weights are not on the disk: {', '.join(missing)}" if missing else None


def missing_files(metric: PyiqaMetric, hub: Path | None = None) -> list[str]:
    """The missing files of a metric: "hub/..." in torch's hub folder, "hugging face/..." in Hugging Face's cache."""
    folder = hub or Path(torch.hub.get_dir())
    missing = []
    for place, name in metric.files:
        is_there = (folder / name).is_file() if place == HUB else _is_in_hugging_face_cache(name)
        if not is_there:
            missing.append(f"{place}/{name}")
    return missing


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Make every attempt of Python code in the block to resolve a name or open a connection an OSError.

    Hugging Face's client is set offline, because it would otherwise try for half a minute before it reads its cache.
    """
    from huggingface_hub import constants

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise OSError("found an attempt to download, expected the file on the disk; get it first")

    resolve, is_offline = socket.getaddrinfo, constants.HF_HUB_OFFLINE
    socket.getaddrinfo, constants.HF_HUB_OFFLINE = refuse, True
    socket.socket.connect = refuse  # shadows the C class's method, and is deleted again
    try:
        yield
    finally:
        socket.getaddrinfo, constants.HF_HUB_OFFLINE = resolve, is_offline
        del socket.socket.connect


def _chosen(names: str) -> list[PyiqaMetric]:
    if names in (ALL, NONE):
        return list(PYIQA_METRICS) if names == ALL else []
    known = {one.name: one for one in PYIQA_METRICS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise InputError(f"--pyiqa has '{unknown[0]}': expected {ALL}, {NONE}, or some of {','.join(known)}")
    return [one for one in PYIQA_METRICS if one.name in names.split(",")]


def _is_in_hugging_face_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache  # comes with diffusers

    repository, _, file = name.rpartition("/")
    return isinstance(try_to_load_from_cache(repository, file), str)


def _build(name: str) -> Any:
    import pyiqa

    with no_network(), contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng():
        return pyiqa.create_metric(name)


def _measure(name: str, network: Any):
    def measure(picture: np.ndarray, hq: np.ndarray | None) -> float:
        pictures = [_to_batch(one) for one in (picture, hq)[: 2 if network.metric_mode == "FR" else 1]]
        try:
            with torch.no_grad():
                value = float(network(*pictures))
        except Exception as error:  # such as a picture too small for the network's last layer
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            raise InputError(f"pyiqa {name}: no value for a picture of {size} ({_one_line(error)})") from None
        if not np.isfinite(value):
            raise InputError(f"pyiqa {name}: found {value}, expected a number; look at the picture")
        return value

    return measure


def _measure_set(network: Any, folder: Path, hq_folder: Path) -> float:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return float(network(str(folder), str(hq_folder), num_workers=0, verbose=False))
    except Exception as error:
        raise InputError(f"pyiqa fid: no value for this set ({_one_line(error)})") from None


def _to_batch(picture: np.ndarray | None) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    assert picture is not None
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255.0


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
