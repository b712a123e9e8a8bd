"""`info FILE`: which kind of file this is and, for TEASR's own, what it was made for (R27)."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFileError
from ..weight_files.base_file import read_base
from ..weight_files.file_kind import Kind, detect
from ..weight_files.lora_file import fingerprint, read_lora
from .terminal import write_line


def info(path: Path) -> int:
    found = detect(path)
    if found.kind is Kind.TEASR_BASE:
        base = read_base(path)
        count = sum(t.numel() for t in base.tensors.values())
        size = path.stat().st_size / 2**20
        write_line(f"{path.name}: TEASR base model, {count / 1e6:.1f} M parameters, {size:.1f} MiB")
        write_line(f"  architecture  {base.architecture}")
        write_line(f"  prediction    {base.prediction}, dual timestep {'on' if base.use_dtc else 'off'}")
        if base.codec.condition_encoder is not None:
            write_line(f"  encoder       of the LQ image: {base.codec.condition_encoder.description()}")
        write_line(f"  fingerprint   {fingerprint(base.tensors)}")
        for key, value in base.training.items():
            write_line(f"  {key:<13} {value}")
    elif found.kind is Kind.TEASR_LORA:
        lora = read_lora(path)
        count = sum(t.numel() for t in lora.tensors.values())
        write_line(f"{path.name}: TEASR LoRA, rank {lora.rank}, {count / 1e6:.1f} M parameters, step {lora.step}")
        write_line(f"  base          {lora.base} ({lora.base_fingerprint})")
        write_line(f"  targets       {', '.join(lora.targets)}")
        write_line(f"  prediction    {lora.prediction}")
    elif found.kind is not Kind.UNKNOWN:
        write_line(found.describe())
    elif found.layout != "single file":
        raise ModelFileError(f"{found.describe()}: give a weight file or a model folder")
    else:
        raise ModelFileError(f"{path.name} is a safetensors file but no TEASR base or LoRA: it has no teasr metadata")
    return 0
