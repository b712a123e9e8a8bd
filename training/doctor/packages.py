"""The packages that the trainer needs, and whether this Python has them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .finding import MISSING, NOTE, OK, Finding

OLDEST_PYTHON = (3, 10)
OLDEST_COMFYUI = "0.17.0"


@dataclass(frozen=True)
class Package:
    """A module, the distributions that contain it (the first is the one to install), and what it is for."""

    module: str
    distributions: tuple[str, ...]
    oldest: str  # version, or empty
    purpose: str

    @property
    def install(self) -> str:
        return f'pip install "{self.distributions[0]}{f">={self.oldest}" if self.oldest else ""}"'


_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


PACKAGES = (
    Package("torch", ("torch",), "2.11", "everything"),
    Package("numpy", ("numpy",), "1.26", "everything"),
    Package("PIL", ("pillow",), "11", "pictures"),
    Package("safetensors", ("safetensors",), "0.6", "weight files"),
    Package("diffusers", ("diffusers",), "0.38", "the transformer outside ComfyUI"),
    Package("cv2", _OPENCV, "4.10", "photographs and their degradation"),
    Package("scipy", ("scipy",), "1.13", "blur kernels, NIQE"),
    Package("tqdm", ("tqdm",), "4.66", "progress bars"),
    Package("pydantic", ("pydantic",), "2", "configs"),
    Package("tomli", ("tomli",), "2", "configs, with a Python before 3.11"),
    Package("accelerate", ("accelerate",), "1.0", "distill, several GPUs, Qwen-Image outside ComfyUI"),
    Package("peft", ("peft",), "0.18", "distill: the LoRA's start"),
    Package("transformers", ("transformers",), "4.57", "cache-prompt"),
    Package("lpips", ("lpips",), "0.1.4", "the perceptual loss, the metric LPIPS"),
    Package("torchvision", ("torchvision",), "0.26", "lpips"),
    Package("bitsandbytes", ("bitsandbytes",), "", "optim.kind = adamw-8bit, NF4 weights"),
    Package("prodigyopt", ("prodigyopt",), "1.1.2", "optim.kind = prodigy"),
    Package("tensorboard", ("tensorboard",), "2.16", "run.trackers"),
    Package("wandb", ("wandb",), "0.31", "run.trackers with wandb"),
    Package("trackio", ("trackio",), "0.43", "run.trackers with trackio"),
    Package("matplotlib", ("matplotlib",), "3.9", "the plot of eval"),
    Package("pyiqa", ("pyiqa",), "", "more metrics in eval (MUSIQ, MANIQA, DISTS, FID)"),
    Package("skimage", ("scikit-image",), "0.24", "the picture of demo"),
    Package("pillow_heif", ("pillow-heif",), "1.0", "photographs in HEIC"),
    Package("pillow_jxl", ("pillow-jxl-plugin",), "1.3", "photographs in JPEG XL"),
    Package("psutil", ("psutil",), "5.9", "measuring memory"),
)


ALWAYS = ("torch", "numpy", "PIL", "safetensors", "diffusers", "cv2", "scipy", "tqdm", "pydantic")


def python_finding(version: Sequence[int]) -> Finding:
    found, oldest = (".".join(map(str, v)) for v in (version, OLDEST_PYTHON))
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return Finding(OK, "python", found)
    return Finding(MISSING, "python", f"{found}, expected {oldest} or newer", f"install Python {oldest} or newer")


def package_finding(package: Package, is_needed: bool) -> Finding:
    """Whether a package is installed, new enough and, if needed, can be imported. Importing others could take long."""
    lacking = MISSING if is_needed else NOTE
    if importlib.util.find_spec(package.module) is None:
        if package.module == "tomli" and not is_needed:
            return Finding(OK, "tomli", "not needed: this Python has tomllib")
        return Finding(lacking, package.module, f"not installed: {package.purpose}", package.install)
    version = next(_versions(package), "")
    if version and package.oldest and numbers(version) < numbers(package.oldest):
        text = f"{version}, expected {package.oldest} or newer: {package.purpose}"
        return Finding(lacking, package.module, text, package.install)
    if is_needed:
        try:
            importlib.import_module(package.module)
        except Exception as error:  # a broken installation raises anything
            cause = " ".join(str(error).split()) or type(error).__name__
            return Finding(MISSING, package.module, f"{version} does not import ({cause})", package.install)
    return Finding(OK, package.module, f"{version or 'version unknown'}: {package.purpose}")


def comfyui_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The version of the checkout at COMFYUI_PATH; nothing where it is not set. Training never needs ComfyUI."""
    if not environment.get("COMFYUI_PATH"):
        return
    path = Path(environment["COMFYUI_PATH"]).expanduser()
    fix = f"set COMFYUI_PATH to a checkout of ComfyUI {OLDEST_COMFYUI} or newer"
    try:
        text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        yield Finding(NOTE, "comfyui", f"no checkout at {path}: tests/nodes, tests/host", fix)
        return
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    version = found.group(1) if found else ""
    if not version or numbers(version) < numbers(OLDEST_COMFYUI):
        text = f"{version or 'unknown version'} at {path}, expected {OLDEST_COMFYUI} or newer"
        yield Finding(NOTE, "comfyui", text, fix)
    else:
        yield Finding(OK, "comfyui", f"{version} at {path}")


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers, by which versions compare: "2.11.0+cu130" -> (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = tuple(int(part) for part in match.group().split(".")) if match else ()
    return parts + (0,) * (3 - len(parts))


def _versions(package: Package) -> Iterator[str]:
    for distribution in package.distributions:
        try:
            yield importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
