"""What the log says of the score difference Delta: does it grow, where in time, and how much the clamp takes away."""

from __future__ import annotations

from pathlib import Path

import torch

from .losses import MAX_DIFFERENCE, rectification_weight

BUCKETS = (0.02, 0.2, 0.4, 0.6, 0.8, 0.98)
BARS, REACH = 60, 1.5 * MAX_DIFFERENCE  # of the histogram: its bars, from -REACH to REACH
LEAST_SHARE = 1e-6  # the lowest height that it shows


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


class DifferenceHistogram:
    """How often each value of Delta, the score difference, occurred since it was last drawn, by bucket of s."""

    def __init__(self) -> None:
        self.counts = torch.zeros(len(BUCKETS) - 1, BARS)

    def add(self, s: torch.Tensor, delta: torch.Tensor) -> None:
        """s (B,), delta (B, C, H, W) before the clamp. Values beyond REACH count in the outermost bars."""
        buckets = torch.bucketize(s.detach().float().cpu(), torch.tensor(BUCKETS[1:-1]))  # (B,)
        for bucket, values in zip(buckets.tolist(), delta.detach().float(), strict=True):
            self.counts[bucket] += torch.histc(values.clamp(-REACH, REACH), BARS, -REACH, REACH).cpu()

    def draw(self, path: Path) -> bool:
        """Write a PNG with a panel for each bucket and begin anew. False, and no file, where nothing was counted.

        Dotted lines show where Delta is clamped; the heights are logarithmic.
        """
        if not self.counts.sum():
            return False
        from matplotlib.figure import Figure  # takes a second, and pyplot would choose a window system

        figure = Figure(figsize=(3 * len(self.counts), 2.6), layout="constrained")
        panels = figure.subplots(1, len(self.counts), sharex=True, sharey=True)
        width = 2 * REACH / BARS
        lefts = [-REACH + width * k for k in range(BARS)]
        for panel, counts, low, high in zip(panels, self.counts, BUCKETS[:-1], BUCKETS[1:], strict=True):
            shares = (counts / counts.sum().clamp(min=1)).clamp(min=LEAST_SHARE)  # a logarithm needs more than 0
            panel.bar(lefts, shares.tolist(), width, align="edge", color="C0")
            panel.set(title=f"s {low:g} to {high:g}", xlabel="Delta", yscale="log", ylim=(LEAST_SHARE, 1))
            for edge in (-MAX_DIFFERENCE, MAX_DIFFERENCE):
                panel.axvline(edge, color="C3", linestyle=":")
        figure.savefig(path, format="png", dpi=80)
        self.counts.zero_()
        return True
