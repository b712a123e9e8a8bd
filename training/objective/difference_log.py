"""What the log says of the score difference Delta: does it grow, where in time, and how much the clamp takes away."""

from __future__ import annotations

import torch

from .losses import MAX_DIFFERENCE, rectification_weight

BUCKETS = (0.02, 0.2, 0.4, 0.6, 0.8, 0.98)


class DifferenceLog:
    """Means over a log window, by bucket of s: of |Delta| (Eq. 9) and of w(s) Delta (Eq. 14)."""

    def __init__(self, w_max: float, use_tar: bool) -> None:
        self.w_max = w_max
        self.use_tar = use_tar
        self.clear()

    def clear(self) -> None:
        self.count = torch.zeros(len(BUCKETS) - 1)
        self.size = torch.zeros(len(BUCKETS) - 1)  # sums of mean |Delta|
        self.pull = torch.zeros(len(BUCKETS) - 1)  # sums of mean (w Delta)**2, clamped
        self.clamped = 0.0

    def add(self, s: torch.Tensor, delta: torch.Tensor) -> None:
        """s (B,), delta (B, C, H, W) before the clamp."""
        s, delta = s.detach().float().cpu(), delta.detach().float().flatten(1).cpu()  # (B,), (B, n)
        w = rectification_weight(s, self.w_max) if self.use_tar else torch.ones_like(s)
        clamped = delta.clamp(-MAX_DIFFERENCE, MAX_DIFFERENCE)
        bucket = torch.bucketize(s, torch.tensor(BUCKETS[1:-1]))  # (B,)
        self.count.index_add_(0, bucket, torch.ones_like(s))
        self.size.index_add_(0, bucket, delta.abs().mean(dim=1))
        self.pull.index_add_(0, bucket, w**2 * (clamped**2).mean(dim=1))
        self.clamped += float((delta.abs() > MAX_DIFFERENCE).float().mean()) * len(s)

    def values(self) -> dict[str, float]:
        """`delta/abs_s0.2-0.4`, `delta/rms_w_s0.2-0.4` for every bucket met, and `delta/clamped` (a share)."""
        total = float(self.count.sum())
        if not total:
            return {}
        result = {"delta/clamped": self.clamped / total}
        for i, count in enumerate(self.count.tolist()):
            if count:
                name = f"s{BUCKETS[i]:g}-{BUCKETS[i + 1]:g}"
                result[f"delta/abs_{name}"] = float(self.size[i]) / count
                result[f"delta/rms_w_{name}"] = (float(self.pull[i]) / count) ** 0.5
        return result
