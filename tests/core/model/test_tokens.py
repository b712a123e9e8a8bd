"""Latents to tokens and back: exact, in the order both hosts use, even grids only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import model as tiny
from teasr_core.errors import InputError, ModelFileError
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.tokens import patchify, token_grid, unpatchify


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_round_trip_is_exact(batch, channels, rows, columns, patch):
    latent = torch.randn(batch, channels, 2 * patch * rows, 2 * patch * columns)
    tokens = patchify(latent, patch)
    assert tokens.shape == (batch, 4 * rows * columns, channels * patch * patch)
    assert torch.equal(unpatchify(tokens, (2 * rows, 2 * columns), patch), latent)


def test_a_token_holds_channel_then_row_then_column_and_tokens_run_row_by_row():
    latent = torch.arange(2 * 3 * 4 * 8).reshape(2, 3, 4, 8)
    tokens = patchify(latent, 2)
    for batch, row, column in ((0, 0, 0), (1, 1, 2), (0, 1, 3)):
        patch = latent[batch, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(tokens[batch, row * 4 + column], patch.reshape(-1))


def test_the_token_order_is_diffusers_own():
    pipeline = pytest.importorskip("diffusers.pipelines.qwenimage.pipeline_qwenimage").QwenImagePipeline
    latent = torch.randn(2, 16, 8, 12)
    assert torch.equal(patchify(latent, 2), pipeline._pack_latents(latent, 2, 16, 8, 12))


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0), (2, 4), (4, 6), (5, 4), (4, 7), (3, 3)])
def test_odd_token_grids_are_refused(height, width):
    with pytest.raises(InputError, match="multiples of 4"):
        token_grid(height, width, 2)
    with pytest.raises(InputError):
        patchify(torch.zeros(1, 48, height, width), 2)


def test_the_network_refuses_them_too():
    z = torch.zeros(1, 48, 6, 8)
    with pytest.raises(InputError):
        tiny.velocity()(z, torch.ones(1), z, torch.zeros(1))


def test_token_grid():
    assert token_grid(8, 12, 2) == (4, 6)
    assert tiny.ARCHITECTURE.block_multiple == 4


# The architecture's numbers


def test_architecture_json_round_trip():
    assert QwenArchitecture.from_json(tiny.ARCHITECTURE.to_json()) == tiny.ARCHITECTURE
    assert (QwenArchitecture().width, QwenArchitecture().token_channels) == (3072, 64)


@pytest.mark.parametrize("axes", [(8, 12, 14), (7, 13, 12)])
def test_rope_axes_must_fit_the_head(axes):
    with pytest.raises(ModelFileError, match="even and add up"):
        QwenArchitecture(head_dim=32, rope_axes=axes)


@pytest.mark.parametrize("change", [{"more": 1}, {"num_layers": None}])
def test_unknown_or_missing_architecture_keys_are_refused(change):
    values = tiny.ARCHITECTURE.to_json() | change
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ModelFileError, match="another version"):
        QwenArchitecture.from_json(values)
