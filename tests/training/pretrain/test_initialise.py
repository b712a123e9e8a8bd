"""The starting weights: the LQ image comes out, heads look at their neighbours, noise tokens hear the condition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.config.pretrain import ModelConfig
from training.pretrain.initialise import NEIGHBOURS, head_offsets
from training.pretrain.model import PretrainModel

ONE_LAYER = ModelConfig(num_layers=1)
SIDE = 20  # latent pixels: 10 x 10 tokens


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    noise, z_lq = torch.randn(2, 1, 48, SIDE, SIDE, generator=generator)
    return noise, z_lq


@torch.no_grad()
def readable(config: ModelConfig) -> PretrainModel:
    """The model with an output that shows its features instead of zero."""
    model = PretrainModel(config, seed=0).eval()
    torch.nn.init.orthogonal_(model.transformer.proj_out.weight)
    return model


@torch.no_grad()
def one_step(model: PretrainModel, noise: torch.Tensor, z_lq: torch.Tensor) -> torch.Tensor:
    return model.velocity().network_output(noise, torch.ones(1), z_lq, torch.zeros(1))


def answer(config: ModelConfig) -> torch.Tensor:
    """(10, 10): how much the output of each token moves when one condition token, at row 4, column 5, is replaced."""
    model, (noise, z_lq) = readable(config), latents()
    other = z_lq.clone()
    other[..., 8:10, 10:12] = torch.randn(48, 2, 2, generator=torch.Generator().manual_seed(4))
    change = one_step(model, noise, other) - one_step(model, noise, z_lq)  # (1, 48, 20, 20)
    return change.square().sum(1).reshape(10, 2, 10, 2).sum((1, 3))


def test_one_step_starts_as_the_lq_image():
    model, (noise, z_lq) = PretrainModel(ModelConfig(num_layers=2), seed=0), latents()
    with torch.no_grad():
        clean = model.velocity().clean(noise, torch.ones(1), z_lq, torch.zeros(1))
    assert torch.equal(clean, z_lq)


def test_heads_look_at_their_own_place_and_at_every_neighbour_in_turn():
    assert head_offsets(0, 1) == [(0, 0)]
    seen = set()
    for layer in range(4):
        offsets = head_offsets(layer, 8)
        assert offsets[0] == (0, 0) and len(set(offsets)) == len(offsets) == 7  # and one head is free
        seen.update(offsets[1:])
    assert seen == set(NEIGHBOURS)


@pytest.mark.parametrize("offset", [(0, 1), (-1, 0), (1, 1)])
def test_a_local_head_gathers_from_its_offset(monkeypatch, offset):
    monkeypatch.setattr("training.pretrain.initialise.head_offsets", lambda layer, heads: [offset] * heads)
    moved = answer(ONE_LAYER)
    row, column = divmod(int(moved.argmax()), 10)
    assert (4 - row, 5 - column) == offset  # the token that looked that way
    assert moved.max() > 0.5 * moved.sum()


def test_a_changed_condition_token_is_felt_around_it_alone():
    moved = answer(ONE_LAYER)
    assert moved[3:6, 4:7].sum() > 0.8 * moved.sum()
    unlocal = answer(replace(ONE_LAYER, local_attention_init=0.0))
    assert unlocal[3:6, 4:7].sum() < 0.5 * unlocal.sum()


def noise_share(config: ModelConfig) -> float:
    """Of the output's variance at t = 1 over noises and LQ latents, the part that the noise makes."""
    model = readable(config)
    generator = torch.Generator().manual_seed(6)
    noise, z_lq = torch.randn(2, 4, 48, SIDE, SIDE, generator=generator)
    one = torch.ones(4)
    with torch.no_grad():
        same_lq = model.velocity().network_output(noise, one, z_lq[:1].expand_as(z_lq), 0 * one)
        same_noise = model.velocity().network_output(noise[:1].expand_as(noise), one, z_lq, 0 * one)
    by_noise, by_lq = float(same_lq.var(dim=0).mean()), float(same_noise.var(dim=0).mean())
    return by_noise / (by_noise + by_lq)


def test_what_is_gathered_outweighs_the_noise():
    config = ModelConfig(num_layers=2)
    assert noise_share(config) < 0.3
    assert noise_share(replace(config, noise_gate_init=0.0, noise_repel_init=0.0)) > 0.5


def test_one_fused_time_gets_no_start_that_depends_on_time():
    """It cannot tell the condition from the noise, so both would be turned down."""
    model = PretrainModel(replace(ONE_LAYER, use_dtc=False), seed=0)
    block = model.transformer.transformer_blocks[0]
    assert not block.img_mod[1].weight.any()
