"""Findings about the machine: torch and its devices, memory, disk, and the model that comes with the pack."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teasr_core.whole_file import nearest_existing

from .finding import MISSING, NOTE, OK, Finding

if TYPE_CHECKING:
    import torch

GIB = 2**30
LITTLE_DISK_GIB = 2.0
_TORCH_PAGE = "https://pytorch.org/get-started/locally"


def findings() -> Iterator[Finding]:
    """Examine torch's build, each device, memory and disk. Where torch is missing, its package finding says so."""
    try:
        import torch
    except Exception:
        yield memory_finding()
        yield disk_finding(Path())
        return
    builds = (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip))
    build = next((f"{name} {version}" for name, version in builds if version), "no GPU support")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        fix = f"install the build for your GPU: {_TORCH_PAGE}"
        yield Finding(NOTE, "build", f"torch {torch.__version__}, {build}, but there is an NVIDIA driver", fix)
    else:
        yield Finding(OK, "build", f"torch {torch.__version__}, {build}, {torch.get_num_threads()} CPU threads")
    yield from _devices()
    yield memory_finding()
    yield disk_finding(Path())


def _devices() -> Iterator[Finding]:
    import torch

    from teasr_core.device import choose_dtype, dtype_name, matmul_seconds

    cpu = torch.device("cpu")
    times = matmul_seconds()
    ratio = times[torch.bfloat16] / times[torch.float32]
    yield Finding(
        OK, "cpu", f"bf16 takes {ratio:.2f} of the time of fp32: dtype auto is {dtype_name(choose_dtype('auto', cpu))}"
    )
    if not torch.accelerator.is_available():
        yield Finding(NOTE, "accelerator", "torch finds none: the built-in model does without, Qwen-Image needs one",
                      _TORCH_PAGE)  # fmt: skip
        return
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    for index in range(torch.accelerator.device_count()):
        yield _accelerator(torch.device(kind.type, index))


def _accelerator(device: torch.device) -> Finding:
    import torch

    from teasr_core.device import choose_dtype, dtype_name

    module = torch.get_device_module(device)
    name = module.get_device_name(device) if hasattr(module, "get_device_name") else device.type
    try:
        free, total = torch.accelerator.get_memory_info(device)
    except (RuntimeError, NotImplementedError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        return Finding(
            NOTE, str(device), f"{name}, but it does not answer ({cause})", "end the other programs that use it"
        )
    memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return Finding(OK, str(device), f"{name}, {memory}, dtype auto is {dtype_name(choose_dtype('auto', device))}")


def host_memory() -> Any:
    """psutil's memory of the host in bytes, with `available` and `total`; None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory()


def memory_finding() -> Finding:
    memory = host_memory()
    if memory is None:
        return Finding(NOTE, "memory", "unknown without psutil", "pip install psutil")
    return Finding(OK, "memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")


def disk_finding(folder: Path) -> Finding:
    """The free space on the disk where `folder` is or will be."""
    usage = shutil.disk_usage(nearest_existing(folder))
    text = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {folder.absolute()}"
    if usage.free / GIB < LITTLE_DISK_GIB:
        return Finding(NOTE, "disk", text, "make room: checkpoints need it")
    return Finding(OK, "disk", text)


def builtin_finding(is_needed: bool) -> Finding:
    """Read the shipped model and name it."""
    from teasr_core.errors import TeasrError

    try:
        from teasr_core.weight_files import base_file
        from teasr_core.weight_files.lora_file import fingerprint

        base = base_file.shipped_base()
        lora = base_file.shipped_lora(base)
        print_ = fingerprint(base.tensors)[:12]
    except TeasrError as error:
        return Finding(MISSING if is_needed else NOTE, "built-in", str(error), "install the pack again")
    except ImportError as error:
        return Finding(NOTE, "built-in", f"cannot be read here ({error})", "see the packages above")
    text = f"{base.path.name} reads, fingerprint {print_}"
    return Finding(OK, "built-in", text + (f", with {lora.name}" if lora is not None else ", no LoRA beside it"))
