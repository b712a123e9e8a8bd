"""`info FILE`: which kind of file this is and, for TEASR's own, what it was made for (R27)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelFileError
from ..model.recipe import Recipe
from ..weight_files.base_file import read_base
from ..weight_files.file_kind import CHECKPOINT_KEY, Kind, KindOfFile, detect
from ..weight_files.lora_file import fingerprint, read_lora
from ..weight_files.qwen_file import read_qwen
from ..weight_files.safetensors_reader import read_header
from ..weight_files.start_encoder import read_start_encoder
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
        for line in _recipe_lines(lora.recipe):
            write_line(line)
    elif found.kind is Kind.START_ENCODER:
        encoder = read_start_encoder(path)
        write_line(f"{path.name}: second VAE encoder of a TEASR LoRA, {len(encoder.tensors)} tensors")
        write_line(f"  hash          {encoder.sha256}")
    elif found.kind is Kind.CHECKPOINT:
        _tell_checkpoint(path)
    elif found.kind is not Kind.UNKNOWN:
        write_line(found.describe())
        for name, value in _details(found):
            write_line(f"  {name:<13} {value}")
    elif found.layout != "single file":
        raise ModelFileError(f"{found.describe()}: give a weight file or a model folder")
    else:
        raise ModelFileError(f"{path.name} is a safetensors file but no TEASR base or LoRA: it has no teasr metadata")
    return 0


def _recipe_lines(recipe: Recipe) -> list[str]:
    """How a LoRA is run, where that is not TEASR's own way."""
    plain = Recipe()
    lines = []
    if recipe.uses_start_latent:
        lines.append(f"  starts at     {recipe.start_time:.4g}, from the latent of {recipe.start_encoder}, with noise")
    if recipe.condition_time != plain.condition_time:
        lines.append(f"  condition     sees the {recipe.condition_time} time")
    if recipe.gelu != plain.gelu:
        lines.append(f"  activation    GELU by {recipe.gelu}")
    if recipe.velocity_scale != plain.velocity_scale:
        lines.append(f"  velocity      times {recipe.velocity_scale:.6g}")
    if recipe.fidelity_times:
        lines.append(
            f"  fidelity      noise on the condition, {recipe.lq_time(0):.4g} at 0 to {recipe.lq_time(1):.4g} at 1"
        )
    if recipe.tile_px:
        lines.append(f"  tiles         {recipe.tile_px} px, overlap {recipe.overlap_px} px, blended by {recipe.blend}")
    return lines


def _tell_checkpoint(path: Path) -> None:
    """What a checkpoint of the trainer holds, and the command that makes a file of it which the pack loads."""
    infos, metadata = read_header(path)
    try:
        state = json.loads(metadata[CHECKPOINT_KEY])
        step = int(state["step"])
    except (ValueError, KeyError, TypeError):
        raise ModelFileError(
            f"{path.name} is a training checkpoint with a damaged state: take the one before"
        ) from None
    trained = "a LoRA" if any(key.startswith("lora.") for key in infos) else "a whole base"
    size = path.stat().st_size / 2**20
    write_line(f"{path.name}: {Kind.CHECKPOINT.value}, {trained} at step {step}, {size:.1f} MiB")
    write_line("  it resumes a run; to restore with it, write it as a weight file first:")
    write_line(f'  python -m training export "{path}" {path.stem}_export.safetensors')


def _details(found: KindOfFile) -> Iterator[tuple[str, str]]:
    """What the first line leaves open: GGUF mixes formats, and int8 may be rotated."""
    if found.problem:
        yield "not read", found.problem
    if found.kind is not Kind.QWEN_TRANSFORMER or not (found.layout == "GGUF" or found.storage.startswith("int8")):
        return
    try:
        source = read_qwen(found.path)
    except ModelFileError as error:
        yield "not read", str(error)
        return
    formats = Counter(packing.describe() for packing in source.packings.values())
    counts = [f"{name} ({count})" for name, count in formats.most_common()]
    counts.append(f"numbers ({len(source.shapes) - len(source.packings)})")
    packed, unpacked = source.num_bytes
    yield "tensors", ", ".join(counts)
    yield "memory", f"{packed / 2**30:.2f} GiB as the file packs them, {unpacked / 2**30:.2f} GiB in bf16"
