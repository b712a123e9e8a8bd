"""The block formats of GGUF in plain torch, on any device: bytes in, float32 out.

A row of a weight is cut into blocks of 32 or 256 weights, and a block is a few bytes: one or two half-precision scales
and the codes; in the "K" formats each group of 16 or 32 codes has a small scale (and minimum) of its own beside them.
Source of the layouts: ggml's ggml-common.h, and its package `gguf` (`gguf.quants`), whose results are the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .packed import Packing, chunks

# The levels of the 4-bit formats IQ4_NL and IQ4_XS.
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class GgufPacking(Packing):
    """One tensor: the weight's bytes as they stand in the file, uint8 of any shape."""

    def unpack(self, tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        form = BLOCK_FORMATS[self.format]
        blocks = tensors[0].reshape(-1, form.num_bytes)  # (blocks, bytes)
        weight = torch.empty(len(blocks), form.weights, dtype=dtype, device=blocks.device)
        for rows in chunks(len(blocks), form.weights, blocks.device):
            weight[rows] = form.decode(blocks[rows])
        return weight.view(self.shape)


@dataclass(frozen=True)
class BlockFormat:
    """A block of `weights` numbers takes `num_bytes`; decode: (n, num_bytes) uint8 -> (n, weights) float32."""

    weights: int
    num_bytes: int
    decode: Callable[[torch.Tensor], torch.Tensor]


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The half-precision number at byte `at` of each block: (n, 1) float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _shifted(codes: torch.Tensor, shifts: list[int], mask: int) -> torch.Tensor:
    """(n, ..., k) bytes -> (n, ..., len(shifts), k): each byte's bits above every shift, as many as `mask` has."""
    return torch.stack([(codes >> shift) & mask for shift in shifts], dim=-2)


def _signed(codes: torch.Tensor, offset: int) -> torch.Tensor:
    return (codes.to(torch.int8) - offset).float()


def _fifth_bits(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """(n, 32): bit j of the four bytes at `at`, moved to where the fifth bit of code j belongs."""
    bits = torch.stack([(blocks[:, at : at + 4] >> bit) & 1 for bit in range(8)], dim=-1)  # (n, 4, 8)
    return (bits << 4).flatten(1)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    codes = _shifted(blocks[:, 2:], [0, 4], 15).flatten(1)  # (n, 32)
    return _half(blocks, 0) * _signed(codes, 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    codes = _shifted(blocks[:, 4:], [0, 4], 15).flatten(1)  # (n, 32)
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    codes = _shifted(blocks[:, 6:], [0, 4], 15).flatten(1) | _fifth_bits(blocks, 2)  # (n, 32)
    return _half(blocks, 0) * _signed(codes, 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    codes = _shifted(blocks[:, 8:], [0, 4], 15).flatten(1) | _fifth_bits(blocks, 4)  # (n, 32)
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()  # (n, 32)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    codes = _shifted(blocks[:, 16:80].reshape(-1, 2, 32), [0, 2, 4, 6], 3)  # (n, 2, 4, 32)
    scale = _half(blocks, 80) * (blocks[:, :16] & 15).float()  # (n, 16)
    least = _half(blocks, 82) * (blocks[:, :16] >> 4).float()
    return _grouped(codes, scale, least)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _shifted(blocks[:, 32:96].reshape(-1, 2, 32), [0, 2, 4, 6], 3)  # (n, 2, 4, 32)
    high = _shifted(blocks[:, :32], list(range(8)), 1).reshape(low.shape)
    small = _shifted(blocks[:, 96:104], [0, 4], 15).flatten(1)  # (n, 16): the low four of six bits
    large = _shifted(blocks[:, 104:108], [0, 2, 4, 6], 3).flatten(1)
    scale = _half(blocks, 108) * _signed(small | (large << 4), 32)
    return _grouped((low | (high << 2)).to(torch.int8) - 4, scale)


def _six_bit_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 12) bytes of Q4_K and Q5_K -> eight scales and eight minima of six bits, (n, 8) float32 each."""
    first, second, third = scales[:, :4], scales[:, 4:8], scales[:, 8:]
    scale = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    least = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scale.float(), least.float()


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, least = _six_bit_scales(blocks[:, 4:16])
    codes = _shifted(blocks[:, 16:].reshape(-1, 4, 32), [0, 4], 15)  # (n, 4, 2, 32)
    return _grouped(codes, _half(blocks, 0) * scale, _half(blocks, 2) * least)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, least = _six_bit_scales(blocks[:, 4:16])
    low = _shifted(blocks[:, 48:].reshape(-1, 4, 32), [0, 4], 15)  # (n, 4, 2, 32)
    high = _shifted(blocks[:, 16:48], list(range(8)), 1).reshape(low.shape)
    return _grouped(low | (high << 4), _half(blocks, 0) * scale, _half(blocks, 2) * least)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _shifted(blocks[:, :128].reshape(-1, 2, 64), [0, 4], 15).reshape(-1, 2, 4, 32)
    high = _shifted(blocks[:, 128:192].reshape(-1, 2, 32), [0, 2, 4, 6], 3)  # (n, 2, 4, 32)
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()  # (n, 16)
    return _grouped((low | (high << 4)).to(torch.int8) - 32, scale)


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _iq4_values(blocks[:, 2:]).flatten(1)  # (n, 32)


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    small = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], dim=-1).flatten(
        1
    )  # (n, 8): the low four of six bits
    large = torch.stack([(blocks[:, 2:4] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(1)
    scale = _half(blocks, 0) * _signed(small | (large << 4), 32)  # (n, 8)
    return _grouped(_iq4_values(blocks[:, 8:].reshape(-1, 8, 16)), scale)


def _iq4_values(codes: torch.Tensor) -> torch.Tensor:
    levels = torch.tensor(IQ4_LEVELS, dtype=torch.float32, device=codes.device)
    return levels[_shifted(codes, [0, 4], 15).int()]  # (n, ..., 2, 16)


def _grouped(codes: torch.Tensor, scale: torch.Tensor, least: torch.Tensor | None = None) -> torch.Tensor:
    """scale * codes - least, with one scale for each of equal groups of a block: (n, weights) float32."""
    values = scale[..., None] * codes.reshape(*scale.shape, -1).float()  # (n, groups, weights of a group)
    return (values if least is None else values - least[..., None]).flatten(1)


BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q2_K": BlockFormat(256, 84, _q2_k),
    "Q3_K": BlockFormat(256, 110, _q3_k),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
    "IQ4_NL": BlockFormat(32, 18, _iq4_nl),
    "IQ4_XS": BlockFormat(256, 136, _iq4_xs),
}
