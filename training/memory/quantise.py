"""Packed forms of a frozen weight (out, in): as it is, block-scaled fp8, NF4. Plain torch, on any device.

They are the trainer's own, because they must be streamed from the host and unpacked alike in every dtype. The fp8 and
nf4 of `upscale --dtype` are those of diffusers and bitsandbytes, which give slightly different weights.

fp8: float8_e4m3fn in tiles of 128 x 128 with a scale each. The scales are powers of two, so that
unpacking is exact in every dtype and a weight is the same number in bf16 and in float64.
NF4: sixteen levels, the quantiles of a normal distribution, blocks of 64 with their largest magnitude in bf16; unpacked
in bf16. Source of the levels: Dettmers et al. 2023, "QLoRA", appendix E.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from teasr_core.errors import ModelFileError

FP8_TILE = 128
FP8_MAX = 448.0
SMALLEST_SCALE = 2.0**-126  # of tiles that are all zero
NF4_BLOCK = 64
_NF4_TABLE_BYTES = 256 * 2 * 2
_NF4_OFFSET = 0.9677083  # outermost quantile (QLoRA)

Packed = tuple[torch.Tensor, ...]


def pack(weight: torch.Tensor, precision: str) -> Packed:
    """Tensors that hold `weight` (out, in) in this precision, on its device.

    "bf16" and "file" keep it as it is, uncopied.

    Raises ModelFileError when the weight holds NaN or infinity.
    """
    weight = weight.detach()
    if precision in ("bf16", "file"):
        return (weight,)
    if not bool(torch.isfinite(weight).all()):
        raise ModelFileError(f"a weight of shape {tuple(weight.shape)} holds NaN or infinity: get the file again")
    return _pack_fp8(weight) if precision == "fp8" else _pack_nf4(weight)


def unpack(packed: Packed, precision: str, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """The weight (out, in) in `dtype`, a fresh tensor unless it was kept as it is in that dtype."""
    if precision in ("bf16", "file"):
        return packed[0].to(dtype)
    if precision == "fp8":
        return _unpack_fp8(packed, dtype)
    return _unpack_nf4(packed, shape).to(dtype)


def packed_bytes(shape: tuple[int, int], precision: str) -> int:
    """Bytes of `pack` for a weight (out, in) loaded in bf16; what a file packs has the bytes of its `Packing`."""
    out_features, in_features = shape
    numbers = out_features * in_features
    if precision in ("bf16", "file"):
        return 2 * numbers
    if precision == "fp8":
        return numbers + 4 * math.ceil(out_features / FP8_TILE) * math.ceil(in_features / FP8_TILE)
    return math.ceil(numbers / NF4_BLOCK) * (NF4_BLOCK // 2 + 2) + _NF4_TABLE_BYTES


def _pack_fp8(weight: torch.Tensor) -> Packed:
    out_features, in_features = weight.shape
    values = weight.float()
    padded = F.pad(values, (0, -in_features % FP8_TILE, 0, -out_features % FP8_TILE))
    tiles = padded.view(padded.shape[0] // FP8_TILE, FP8_TILE, -1, FP8_TILE)  # (rows, 128, columns, 128)
    largest = tiles.abs().amax(dim=(1, 3))  # (rows, columns)
    scale = torch.exp2(torch.ceil(torch.log2(largest / FP8_MAX))).clamp_min(SMALLEST_SCALE)
    # log2 may round down at a boundary: one more doubling where the largest would not fit
    scale = torch.where(largest > scale * FP8_MAX, 2 * scale, scale)
    codes = (values / _spread(scale, weight.shape)).to(torch.float8_e4m3fn)
    return codes, scale


def _unpack_fp8(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    codes, scale = packed
    out_features, in_features = codes.shape
    weight = codes.to(dtype)  # exact: every dtype of ours holds an e4m3 number
    if out_features % FP8_TILE or in_features % FP8_TILE:
        return weight.mul_(_spread(scale, codes.shape).to(dtype))
    tiles = weight.view(scale.shape[0], FP8_TILE, scale.shape[1], FP8_TILE)
    tiles.mul_(scale.to(dtype)[:, None, :, None])  # in place: no second full-size tensor
    return weight


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(rows, columns) of tiles -> (out, in)."""
    rows = scale.repeat_interleave(FP8_TILE, dim=0)[: shape[0]]
    return rows.repeat_interleave(FP8_TILE, dim=1)[:, : shape[1]]


def nf4_levels() -> torch.Tensor:
    """The sixteen levels (16,) float64, ascending from -1 to 1 with an exact 0: eight above it, seven below."""
    above = torch.special.ndtri(torch.linspace(_NF4_OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(_NF4_OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return levels / levels.max()


def _pack_nf4(weight: torch.Tensor) -> Packed:
    values = weight.float().flatten()
    blocks = F.pad(values, (0, -values.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
    largest = blocks.abs().amax(dim=1).to(torch.bfloat16)  # (blocks,)
    levels = nf4_levels().float().to(weight.device)
    scaled = blocks / torch.where(largest == 0, torch.ones_like(largest), largest).float()[:, None]
    index = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8).flatten()
    codes = index[0::2] * 16 + index[1::2]  # two to a byte
    low = levels.to(torch.bfloat16)
    pairs = torch.cartesian_prod(low, low)  # (256, 2): what a byte means
    return codes, largest, pairs


def _unpack_nf4(packed: Packed, shape: tuple[int, int]) -> torch.Tensor:
    codes, largest, pairs = packed
    values = F.embedding(codes.int(), pairs).view(-1, NF4_BLOCK)  # (blocks, 64) bf16
    values.mul_(largest[:, None])
    return values.flatten()[: shape[0] * shape[1]].view(shape)
