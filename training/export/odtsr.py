"""`import-odtsr`: a checkpoint of ODTSR as a TEASR LoRA file and the file of its second VAE encoder.

ODTSR (Fang et al., arXiv 2511.17138; code RedMediaTech/ODTSR, read at its commit 0baa083) restores in one step with
Qwen-Image and a LoRA on the condition tokens. Its own scripts fix what the checkpoint does not hold, and that becomes
the file's recipe (docs/decisions.md#odtsr).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from teasr_core.codec.qwen_vae import LATENT_MEAN
from teasr_core.errors import ModelFileError
from teasr_core.model.branch_lora import BLOCK_TARGETS, DEAD_IN_LAST_BLOCK, READABLE_TARGETS, target_paths
from teasr_core.model.recipe import Recipe
from teasr_core.weight_files.lora_file import UNKNOWN_BASE, lora_metadata, lora_tensors, parse_lora
from teasr_core.weight_files.pickle_reader import read_pickled_tensors
from teasr_core.weight_files.qwen_vae_file import encoder_shapes
from teasr_core.weight_files.start_encoder import comfy_encoder_key, hash_tensors

LORA_KEY = re.compile(r"pipe\.dit\.(?P<path>.+)\.lora_(?P<half>[AB])(?P<branch>[12])\.weight")
ENCODER_PREFIX = "pipe.new_vae."
BASE_NAME = "Qwen-Image"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# What their scripts fix: a schedule of 1000 times, shifted exponentially and stretched to end at 0.02; the index where
# the one step starts; tiles of 64 latent pixels, three quarters of one apart.
SCHEDULE_STEPS, SHIFT_MU, TERMINAL_TIME = 1000, 0.8, 0.02
START_INDEX = 750
TILE_PX, OVERLAP_PX = 512, 128


@dataclass(frozen=True)
class Imported:
    """A checked checkpoint, as tensors under the names of our files.

    Attributes:
        pairs: `{path}.lora_A.weight` (r, in) and `.lora_B.weight` (out, r) of the condition half.
        encoder: the second encoder, by ComfyUI's names.
        rank, num_layers: of the LoRA and of the transformer it is for.
        left_out: why keys are not used -> how many there are.
        has_busy_noise_half: whether the noise half, which their code multiplies by 0, is not 0 itself.
    """

    pairs: Mapping[str, torch.Tensor]
    encoder: Mapping[str, torch.Tensor]
    rank: int
    num_layers: int
    left_out: Mapping[str, int]
    has_busy_noise_half: bool


def schedule_times() -> list[float]:
    """The 1000 times of their `FlowMatchScheduler(exponential_shift_mu=0.8, shift_terminal=0.02)`, falling from 1.

    The arithmetic is float32 in the order of theirs, so that the times are theirs to the bit.
    """
    linear = torch.linspace(1.0, 0.0, SCHEDULE_STEPS + 1)[:-1]
    shifted = math.exp(SHIFT_MU) / (math.exp(SHIFT_MU) + (1 / linear - 1))
    distance = 1 - shifted
    return (1 - distance / (distance[-1] / (1 - TERMINAL_TIME))).tolist()


def odtsr_recipe(encoder_name: str, encoder_sha256: str) -> Recipe:
    """How ODTSR's scripts run its checkpoint."""
    times = schedule_times()
    start = times[START_INDEX]
    return Recipe(
        condition_time="current",
        gelu="sigmoid",
        # Their one step is as long as the start time rounded to bf16, in training as in inference.
        velocity_scale=float(torch.tensor(start).bfloat16()) / start,
        start_time=start,
        start_encoder=encoder_name,
        start_encoder_sha256=encoder_sha256,
        fidelity_times=(*times[START_INDEX:], 0.0),
        tile_px=TILE_PX,
        overlap_px=OVERLAP_PX,
        blend="border",
    )


def read_checkpoint(path: Path) -> Imported:
    """Read a .pth that ODTSR's `save_ckpt` wrote; only plain tensors are unpickled.

    ModelFileError where it is no such file, is incomplete, or holds anything that is not expected.
    """
    stored = _load(path)
    lora, encoder, unknown = {}, {}, []
    for key, value in stored.items():
        match = LORA_KEY.fullmatch(key)
        if match:
            lora[match["path"], match["half"], match["branch"]] = value
        elif key.startswith(f"{ENCODER_PREFIX}encoder."):
            encoder[key.removeprefix(ENCODER_PREFIX)] = value
        else:
            unknown.append(key)
    if unknown or not lora or not encoder:
        raise ModelFileError(
            f"{path.name}: {len(lora)} tensors of a LoRA, {len(encoder)} of a second VAE encoder, {len(unknown)} "
            f"others {sorted(unknown)[:2]}: expected ODTSR's keys 'pipe.dit.*.lora_A1.weight' and "
            "'pipe.new_vae.encoder.*' and no others; give the checkpoint net_gen_iter_*.pth"
        )
    pairs, rank, num_layers, left_out = _condition_half(path.name, lora)
    busy = any(bool(value.any()) for (_, half, branch), value in lora.items() if (half, branch) == ("B", "1"))
    return Imported(pairs, _comfy_encoder(path.name, encoder), rank, num_layers, left_out, busy)


def import_tensors(
    imported: Imported,
    source: str,
    encoder_name: str,
    prompt_embeds: torch.Tensor | None = None,
    base_fingerprint: str = UNKNOWN_BASE,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of the LoRA file; they were read back by `parse_lora`.

    source, encoder_name: the names of the checkpoint and of the second encoder's file. prompt_embeds: (T, text_width).
    """
    recipe = odtsr_recipe(encoder_name, hash_tensors(imported.encoder))
    metadata = lora_metadata(
        prediction="velocity", rank=imported.rank, targets=READABLE_TARGETS, base=BASE_NAME,
        base_fingerprint=base_fingerprint, step=0,
        config={"imported": {"from": "ODTSR", "file": source, "left_out": dict(imported.left_out)}}, recipe=recipe,
    )  # fmt: skip
    dtype = torch.float32 if any(v.dtype != torch.bfloat16 for v in imported.pairs.values()) else torch.bfloat16
    tensors = lora_tensors(imported.pairs, prompt_embeds, dtype=dtype)
    parse_lora(source, tensors, metadata)  # a file that could not be read is not written
    return tensors, metadata


def _load(path: Path) -> dict[str, torch.Tensor]:
    stored = read_pickled_tensors(path, "the checkpoint net_gen_iter_*.pth of ODTSR")
    for key, value in stored.items():
        if value.dtype not in DTYPES:
            raise ModelFileError(f"{path.name}: '{key}' is {value.dtype}, expected bf16, fp16 or fp32")
        if not bool(torch.isfinite(value).all()):
            raise ModelFileError(f"{path.name}: '{key}' holds NaN or infinity: take another checkpoint")
    return stored


def _condition_half(
    name: str, lora: Mapping[tuple[str, str, str], torch.Tensor]
) -> tuple[dict[str, torch.Tensor], int, int, dict[str, int]]:
    """(pairs, rank, number of blocks, keys that are left out). Every layer must have both halves of both branches."""
    paths = {path for path, _, _ in lora}
    blocks = {int(match[1]) for path in paths if (match := re.match(r"transformer_blocks\.(\d+)\.", path))}
    num_layers = max(blocks, default=-1) + 1
    dead = {f"transformer_blocks.{num_layers - 1}.{target}" for target in DEAD_IN_LAST_BLOCK}
    wanted = set(target_paths(num_layers, READABLE_TARGETS)) | dead
    missing, unknown = sorted(wanted - paths), sorted(paths - wanted)
    lonely = [
        f"{path}.lora_{half}{branch}" for path in sorted(paths & wanted) for half in "AB" for branch in "12"
        if (path, half, branch) not in lora
    ]  # fmt: skip
    if missing or unknown or lonely or not blocks:
        raise ModelFileError(
            f"{name}: {len(missing)} of {len(wanted)} adapted layers are missing {missing[:2]}, {len(unknown)} are "
            f"unknown {unknown[:2]}, {len(lonely)} halves are missing {lonely[:2]}: expected "
            f"{', '.join(BLOCK_TARGETS)} of {num_layers} blocks and img_in, each with lora_A1, B1, A2 and B2; take "
            "another checkpoint"
        )
    rank = lora["img_in", "A", "2"].shape[0]
    for path in sorted(wanted):
        shapes = {half + branch: tuple(lora[path, half, branch].shape) for half in "AB" for branch in "12"}
        if (
            shapes["A1"] != shapes["A2"]
            or shapes["B1"] != shapes["B2"]
            or not _is_pair(shapes["A2"], shapes["B2"], rank)
        ):
            raise ModelFileError(
                f"{name}: '{path}' has shapes {shapes}: expected (rank, in) and (out, rank) twice, of rank {rank}"
            )
    pairs = {
        f"{path}.lora_{half}.weight": lora[path, half, "2"]
        for path in target_paths(num_layers, READABLE_TARGETS) for half in "AB"
    }  # fmt: skip
    left_out = {
        "the noise half, which ODTSR multiplies by 0 (lora_A1, lora_B1)": 2 * len(wanted),
        "condition tokens of the last block, which nothing reads (lora_A2, lora_B2)": 2 * len(dead),
    }
    return pairs, rank, num_layers, left_out


def _is_pair(a: tuple[int, ...], b: tuple[int, ...], rank: int) -> bool:
    return len(a) == len(b) == 2 and a[0] == b[1] == rank


def _comfy_encoder(name: str, encoder: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The second encoder by ComfyUI's names. It must hold every causal convolution, and may hold all of the encoder."""
    first, last = encoder.get("encoder.conv_in.weight"), encoder.get("encoder.conv_out.weight")
    if first is None or last is None or first.ndim != 5 or last.ndim != 5:
        raise ModelFileError(f"{name} lacks conv_in or conv_out of the second VAE encoder: take another checkpoint")
    if last.shape[0] != 2 * len(LATENT_MEAN):
        raise ModelFileError(
            f"{name}: its second VAE encoder has {last.shape[0] // 2} channels, expected {len(LATENT_MEAN)}"
        )
    shapes, convolutions = encoder_shapes(first.shape[0])
    missing = sorted(key for key in convolutions if key not in encoder)
    wrong = sorted(key for key, value in encoder.items() if shapes.get(key) != tuple(value.shape))
    if missing or wrong:
        raise ModelFileError(
            f"{name}: of the second VAE encoder {len(missing)} convolutions are missing {missing[:2]}, {len(wrong)} "
            f"tensors are unknown or of another shape {wrong[:2]}: expected the encoder of Qwen-Image's VAE"
        )
    return {comfy_encoder_key(key): value for key, value in encoder.items()}


def summary_lines(imported: Imported) -> list[str]:
    """What was left out, and what a reader should know, one sentence a line."""
    lines = [f"left out {count} tensors: {why}" for why, count in imported.left_out.items()]
    if imported.has_busy_noise_half:
        lines.append(
            "warning: the noise half is not zero, although ODTSR's code, which multiplies it by 0, could not have "
            "trained it: if another program made this checkpoint, the LoRA is not what it was there"
        )
    return lines
