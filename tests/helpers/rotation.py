"""The rotation of ComfyUI's int8 layers, for tests that write such files."""

from __future__ import annotations

import torch

SIZE = 64  # columns that are turned together


def rotated(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) with each group of SIZE columns turned by the regular Hadamard matrix; twice is once back."""
    base = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    matrix = torch.kron(base, torch.kron(base, base)) / 8  # (64, 64)
    return (weight.view(len(weight), -1, SIZE) @ matrix).flatten(1)
