"""How much fine detail a picture has: what tells one that is sharp at its own pixels from a soft, enlarged one."""

import torch
import torch.nn.functional as F

WINDOW = 64  # px; a spectrum is the mean over windows of so many pixels of a row or column
LINES = 512  # of a large picture's rows and columns, no more than so many are looked at
# Frequencies in periods of a window, of at most WINDOW / 2. An enlargement by 4 keeps those up to WINDOW / 8 alone.
COARSE, FINE = slice(2, 8), slice(12, 16)
ROUNDING = WINDOW * 3 / 8 / 12 / 255**2  # power, at each frequency, of rounding to 8 bits


def fine_detail(image: torch.Tensor) -> float:
    """The power of the picture's fine detail beside that of its coarse detail, as a ratio of 0 and more.

    Fine are 0.375 to 0.5 of the highest frequency that the pixels can hold, coarse those below 0.25, both as the mean
    power of the gradient, which natural pictures have about equally at all frequencies. The larger of the ratios along
    rows and along columns counts. Photographs that are sharp at their pixels have 0.6 to 6; enlarged by 2, sharp ones
    have 0.2 to 2 and soft ones less; enlarged by 4, all have less than 0.004, or 0.025 by bicubic filtering, and
    drawings up to 0.1 (docs/log/encoder.md). A flat picture has 0.

    image: (B, C, H, W) float32 in [0, 1]; the channels' mean is what is measured, over all B pictures.
    """
    grey = image.mean(dim=1)  # (B, H, W)
    return max(_ratio(grey), _ratio(grey.transpose(1, 2)))


def _ratio(grey: torch.Tensor) -> float:
    """The ratio along the rows of (B, H, W)."""
    lines = grey[:, :: -(-grey.shape[1] // LINES)]  # (B, lines, W)
    if lines.shape[2] < WINDOW:
        lines = F.pad(lines, (0, WINDOW - lines.shape[2]), mode="replicate")
    windows = lines.unfold(2, WINDOW, WINDOW // 2)  # (B, lines, n, WINDOW)
    windows = (windows - windows.mean(dim=3, keepdim=True)) * torch.hann_window(WINDOW).to(windows)
    power = torch.fft.rfft(windows).abs().square().mean(dim=(0, 1, 2))  # (WINDOW / 2 + 1,)
    gradient = (power - ROUNDING).clamp(min=0) * torch.arange(len(power)).to(power).square()
    coarse, fine = float(gradient[COARSE].mean()), float(gradient[FINE].mean())
    return fine / max(coarse, 1e-12)
