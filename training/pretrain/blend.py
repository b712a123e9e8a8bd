"""A condition encoder between two: the mean of their weights.

Between two sets of weights of one origin the picture changes evenly, here from faithful to crisp (network
interpolation, Wang et al., ESRGAN, arXiv 1809.00219, section 3.4).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from teasr_core.codec.condition_encoder.encoder import ConditionEncoder
from teasr_core.errors import ConfigError, InputError

from .model import encoder_base
from .rrdbnet import copy_rrdbnet

FLAG = "--blend-encoder"


def blend_encoder(encoder: ConditionEncoder, name: str, share: float) -> dict[str, Any]:
    """Move the weights of `encoder` towards those of another one, in place: share * other + (1 - share) * own.

    The codec must have given `encoder` its statistics. name: a base file whose encoder has the same layers, `builtin`,
    or the weights of an RRDBNet (.pth, .safetensors). What an RRDBNet lacks stays the encoder's own: the channels
    beside the blocks' means, and the skip. Returns the entry for the training summary of the base file.
    Raises InputError for a share outside [0, 1], ConfigError where the layers or the codec's statistics differ,
    ModelFileError for a file that cannot be read.
    """
    if not 0 <= share <= 1:
        raise InputError(f"{FLAG}: the share is {share:g}, expected a number from 0 to 1")
    base = encoder_base(name)
    if base is None:
        other: ConditionEncoder | None = copy.deepcopy(encoder)
        copy_rrdbnet(other, Path(name), FLAG, keeps_rest=True)
    else:
        other = base.codec.condition_encoder
        if other is None or other.config() != encoder.config():
            found = "no condition encoder" if other is None else f"a condition encoder of {other.config()}"
            raise ConfigError(f"{FLAG}: {base.path.name} has {found}, the run has one of {encoder.config()}")
        if not (torch.allclose(other.mean, encoder.mean) and torch.allclose(other.std, encoder.std)):
            raise ConfigError(
                f"{FLAG}: {base.path.name} was made with other statistics of the codec: start the run from it "
                "(model.start or model.encoder_start), or give another file"
            )
    assert other is not None
    theirs = other.state_dict()
    with torch.no_grad():
        for key, value in encoder.state_dict().items():
            value.lerp_(theirs[key].to(value), share)
    return {"blend": {"encoder": Path(name).name, "share": share}}
