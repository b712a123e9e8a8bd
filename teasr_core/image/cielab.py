"""sRGB to CIELAB and back (CIE 1976 L*a*b*, white D65, 2 degree observer).

sRGB curve and matrix: IEC 61966-2-1. The white point is the matrix applied to (1, 1, 1), so that equal R, G and B
give a* = b* = 0.
"""

import torch

_RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_DELTA = 6.0 / 29.0  # where CIELAB's cube root meets its straight line


def rgb_to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """(3, H, W) float32 sRGB in [0, 1] -> (3, H, W) float32: L* 0..100, a* and b* about -128..128."""
    toe = rgb / 12.92  # (3, H, W)
    curve = ((rgb.clamp(min=0.0) + 0.055) / 1.055).pow_(2.4)  # (3, H, W)
    linear = torch.where(rgb <= 0.04045, toe, curve)  # (3, H, W)
    matrix = _white_scaled_matrix()  # (3, 3)
    x, y, z = torch.einsum("ij,jhw->ihw", matrix.to(rgb), linear)  # (H, W) each, white = 1
    fx, fy, fz = _lab_curve(x), _lab_curve(y), _lab_curve(z)  # (H, W) each
    return torch.stack((116.0 * fy - 16.0, 500.0 * (fx - fy), 200.0 * (fy - fz)))  # (3, H, W)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """(3, H, W) float32 L*a*b* -> (3, H, W) float32 sRGB; colours outside sRGB fall outside [0, 1], not clamped."""
    fy = (lab[0] + 16.0) / 116.0  # (H, W)
    fx, fz = fy + lab[1] / 500.0, fy - lab[2] / 200.0  # (H, W) each
    xyz = torch.stack((_lab_curve_inverse(fx), _lab_curve_inverse(fy), _lab_curve_inverse(fz)))  # (3, H, W)
    matrix = torch.linalg.inv(_white_scaled_matrix())  # (3, 3)
    linear = torch.einsum("ij,jhw->ihw", matrix.to(lab), xyz)  # (3, H, W)
    curve = linear.clamp(min=0.0031308).pow_(1.0 / 2.4).mul_(1.055).sub_(0.055)  # (3, H, W)
    return torch.where(linear <= 0.0031308, linear * 12.92, curve)  # (3, H, W)


def _white_scaled_matrix() -> torch.Tensor:
    matrix = torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)  # (3, 3)
    return matrix / matrix.sum(dim=1, keepdim=True)


def _lab_curve(t: torch.Tensor) -> torch.Tensor:
    cube_root = t.clamp(min=_DELTA**3).pow_(1.0 / 3.0)
    return torch.where(t > _DELTA**3, cube_root, t / (3.0 * _DELTA**2) + 4.0 / 29.0)


def _lab_curve_inverse(f: torch.Tensor) -> torch.Tensor:
    return torch.where(f > _DELTA, f**3, 3.0 * _DELTA**2 * (f - 4.0 / 29.0))
