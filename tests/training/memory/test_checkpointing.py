"""Checkpointed steps equal plain ones bit for bit, and keep what they say they keep."""

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from helpers.live_bytes import saved_tensors
from helpers.tiny import memory as tiny_memory
from helpers.tiny.memory import NUM_LAYERS, differing, step_gradients
from teasr_core.errors import ConfigError
from training.memory import checkpointing
from training.memory.checkpointing import Checkpointing, apply_checkpointing

MODES = [Checkpointing("every", 2), Checkpointing("every", 3), Checkpointing("all"), Checkpointing("offload")]


@pytest.mark.parametrize("spec", MODES, ids=str)
def test_gradients_equal_the_plain_step(spec):
    v = tiny_memory.velocity()
    wanted = step_gradients(v)
    apply_checkpointing(v.transformer, spec)
    assert differing(step_gradients(v), wanted) == []
    apply_checkpointing(v.transformer, Checkpointing("none"))
    assert not v.transformer.is_gradient_checkpointing
    assert differing(step_gradients(v), wanted) == []


def saved_by_a_forward(spec: Checkpointing):
    v = tiny_memory.velocity()
    apply_checkpointing(v.transformer, spec)
    z, z_lq = tiny_memory.latents()
    t_cur, t_tar = tiny_memory.pairs()[0]
    with saved_tensors([*v.transformer.parameters(), *v.lora.parameters()]) as saved:
        v(z, t_cur, z_lq, t_tar)
    return saved


def test_the_more_is_recomputed_the_less_is_saved():
    order = [Checkpointing("none"), Checkpointing("every", 3), Checkpointing("every", 2), Checkpointing("all")]
    sizes = [saved_by_a_forward(spec).num_bytes for spec in order]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert sizes[-1] < 0.05 * sizes[0]


def test_all_keeps_the_block_inputs_alone():
    width, tokens = tiny_memory.ARCHITECTURE.width, 2 * tiny_memory.NUM_NOISE
    saved = [tuple(t.shape) for t in saved_by_a_forward(Checkpointing("all")).tensors if t.ndim == 3]
    assert saved.count((tiny_memory.BATCH, tokens, width)) >= NUM_LAYERS
    assert all(shape[2] in (width, 1) for shape in saved)  # no hidden layer of an MLP


def test_offload_takes_every_block_input_to_the_host_and_back():
    """Hooks inside ours see nothing of the block inputs; those that ours replace are counted by shape."""
    moved: list[tuple[int, ...]] = []

    class Recording(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pack, unpack):
            def noted(tensor):
                packed = pack(tensor)
                if packed is not tensor:
                    moved.append(tuple(tensor.shape))
                    assert packed[1].data_ptr() != tensor.data_ptr()
                return packed

            super().__init__(noted, unpack)

    original = checkpointing.saved_tensors_hooks
    checkpointing.saved_tensors_hooks = Recording
    try:
        saved_by_a_forward(Checkpointing("offload"))
    finally:
        checkpointing.saved_tensors_hooks = original
    width = tiny_memory.ARCHITECTURE.width
    image, text = (tiny_memory.BATCH, 2 * tiny_memory.NUM_NOISE, width), (tiny_memory.BATCH, 3, width)
    assert sorted(moved) == sorted([image, text] * NUM_LAYERS)


def test_a_lora_that_has_gone_before_the_backward_is_noticed():
    """Why the trainer holds the overrides open: the recompute would run without the LoRA."""
    v = tiny_memory.velocity()
    apply_checkpointing(v.transformer, Checkpointing("all"))
    z, z_lq = tiny_memory.latents()
    out = v(z, *[tiny_memory.pairs()[0][0], z_lq, tiny_memory.pairs()[0][1]])  # overrides end with the call
    with pytest.raises(CheckpointError):
        out.sum().backward()


def test_which_blocks_are_covered():
    assert [Checkpointing("every", 3).covers(block) for block in range(5)] == [True, False, False, True, False]
    assert all(Checkpointing("offload").covers(block) for block in range(5))
    assert not any(Checkpointing("none").covers(block) for block in range(5))


def test_from_text():
    for text in ("none", "every 2", "all", "offload"):
        assert str(Checkpointing.parse(text)) == text


@pytest.mark.parametrize("text", ["every", "every 0", "every two", "all 2", "full", ""])
def test_other_text_is_refused(text):
    with pytest.raises(ConfigError, match=r"memory\.checkpointing is"):
        Checkpointing.parse(text)
