"""Settings of the Real-ESRGAN degradation and its two presets.

The field names are the ones this field of research uses in its option files, so published settings can be pasted.
Light is what PiSA-SR trains with, heavy what OSEDiff trains with.
Source: Wang et al. 2021 (Real-ESRGAN, arXiv 2107.10833), section 3 and its published training settings.
"""

from dataclasses import dataclass, fields, replace

from teasr_core.errors import ConfigError

from .kernels import BLUR_KINDS

Range = tuple[float, float]
Weights3 = tuple[float, float, float]


@dataclass(frozen=True)
class StageSettings:
    """The settings of one stage; the names are those of `Degradation` without the 2 of the second stage."""

    resize_prob: Weights3
    resize_range: Range
    gaussian_noise_prob: float
    noise_range: Range
    poisson_scale_range: Range
    gray_noise_prob: float
    jpeg_range: Range
    kernel_prob: tuple[float, ...]
    sinc_prob: float
    blur_sigma: Range
    betag_range: Range
    betap_range: Range


@dataclass(frozen=True)
class Degradation:
    """The settings of both stages; the defaults are the light preset. A name that ends in 2 is of the second stage.

    Ranges are (lowest, highest) of a uniform draw. `resize_prob` is (up, down, keep). Noise ranges are standard
    deviations in 8-bit levels, Poisson ranges multiply the shot noise, `jpeg_range` is libjpeg's quality, sigmas are
    pixels. Raises ConfigError for a probability outside [0, 1], a list that does not sum to 1, or a reversed range.
    """

    resize_prob: Weights3 = (0.2, 0.7, 0.1)
    resize_range: Range = (0.3, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: Range = (1.0, 15.0)
    poisson_scale_range: Range = (0.05, 2.0)
    gray_noise_prob: float = 0.4
    jpeg_range: Range = (60.0, 95.0)

    second_blur_prob: float = 0.5
    resize_prob2: Weights3 = (0.3, 0.4, 0.3)
    resize_range2: Range = (0.6, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: Range = (1.0, 12.0)
    poisson_scale_range2: Range = (0.05, 1.0)
    gray_noise_prob2: float = 0.4
    jpeg_range2: Range = (60.0, 100.0)

    blur_kernel_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    kernel_list: tuple[str, ...] = BLUR_KINDS
    kernel_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    kernel_prob2: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: float = 0.1
    sinc_prob2: float = 0.1
    final_sinc_prob: float = 0.8
    blur_sigma: Range = (0.2, 3.0)
    blur_sigma2: Range = (0.2, 1.5)
    betag_range: Range = (0.5, 4.0)
    betag_range2: Range = (0.5, 4.0)
    betap_range: Range = (1.0, 2.0)
    betap_range2: Range = (1.0, 2.0)

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))
        for name in ("kernel_prob", "kernel_prob2"):
            if len(getattr(self, name)) != len(self.kernel_list):
                found, expected = len(getattr(self, name)), len(self.kernel_list)
                raise ConfigError(f"{name} has {found} values: expected {expected}, one for each kind in kernel_list")

    def stage(self, number: int) -> StageSettings:
        """The settings of stage 1 or 2."""
        suffix = "" if number == 1 else "2"
        return StageSettings(**{field.name: getattr(self, field.name + suffix) for field in fields(StageSettings)})


def _check(name: str, value) -> None:
    """Raise ConfigError for a value that the field's name rules out."""
    if "range" in name or "sigma" in name:
        bad = len(value) != 2 or not 0.0 <= value[0] <= value[1]
        expected = "two numbers, the lower one first"
        if name.startswith("resize"):
            bad = bad or not 0.0 < value[0] <= 1.0 <= value[1]
            expected = "a lowest factor in (0, 1] and a highest of at least 1"
        elif "sigma" in name:
            bad, expected = bad or value[0] <= 0.0, "two positive numbers, the lower one first"
        elif name.startswith("jpeg"):
            bad, expected = bad or value[0] < 1 or value[1] > 100, "two qualities in 1..100, the lower one first"
    elif isinstance(value, tuple) and "prob" in name:
        bad = any(not 0.0 <= item <= 1.0 for item in value) or abs(sum(value) - 1.0) > 1e-6
        expected = "probabilities that sum to 1"
    elif "prob" in name:
        bad = not (isinstance(value, int | float) and 0.0 <= value <= 1.0)
        expected = "a probability in [0, 1]"
    elif name == "kernel_list":
        bad, expected = any(kind not in BLUR_KINDS for kind in value), f"kinds among {', '.join(BLUR_KINDS)}"
    else:
        bad, expected = not value or any(size % 2 == 0 or size < 1 for size in value), "odd sizes such as 7, 9, ..., 21"
    if bad:
        raise ConfigError(f"degradation {name} = {value}: expected {expected}; correct it in the configuration")


LIGHT = Degradation()
HEAVY = replace(
    LIGHT,
    resize_range=(0.15, 1.5),
    noise_range=(1.0, 30.0),
    poisson_scale_range=(0.05, 3.0),
    jpeg_range=(30.0, 95.0),
    second_blur_prob=0.8,
    resize_range2=(0.3, 1.2),
    noise_range2=(1.0, 25.0),
    poisson_scale_range2=(0.05, 2.5),
    jpeg_range2=(30.0, 95.0),
)
PRESETS = {"light": LIGHT, "heavy": HEAVY}
