"""Streamed weights give the same bits, in any order, with two blocks on the device."""

import pytest
import torch

from helpers.tiny import memory as tiny_memory
from helpers.tiny.memory import NUM_LAYERS, differing, step_gradients
from training.memory.checkpointing import Checkpointing, apply_checkpointing
from training.memory.groups import GroupPlan, linears_of
from training.memory.modulation_sweep import ModulationSweep
from training.memory.quantised_linear import FrozenLinear, replace_linears
from training.memory.streaming import BlockStreamer

CPU = torch.device("cpu")


class RecordingStreamer(BlockStreamer):
    """Notes each block as it is copied, and checks after each copy that two are there at most."""

    def __init__(self, *args):
        super().__init__(*args)
        self.copied: list[int] = []

    def _copy(self, block, keep):
        super()._copy(block, keep)
        self.copied.append(block)
        assert len(self.resident) <= 2 and block in self.resident
        assert keep is None or keep in self.resident


def streamed_velocity(group: str = "text_stream", precision: str = "bf16"):
    v = tiny_memory.velocity()
    replace_linears(v.transformer, {group: GroupPlan(precision, "streamed")})
    layers = [[layer for _, layer in block] for block in linears_of(v.transformer, group, FrozenLinear)]
    return v, RecordingStreamer(layers, CPU)


def call(v, no_grad: bool = False) -> torch.Tensor:
    z, z_lq = tiny_memory.latents()
    with torch.set_grad_enabled(not no_grad):
        return v(z, *[tiny_memory.pairs()[0][0], z_lq, tiny_memory.pairs()[0][1]])


@pytest.fixture(scope="module")
def wanted():
    return step_gradients(tiny_memory.velocity())


@pytest.mark.parametrize(
    ("group", "mode"),
    [("image_stream", "none"), ("image_stream", "all"), ("text_stream", "every"), ("modulation", "all")],
)
def test_gradients_equal_the_resident_step(wanted, group, mode):
    v, streamer = streamed_velocity(group)
    apply_checkpointing(v.transformer, Checkpointing(mode, 2))
    assert differing(step_gradients(v), wanted) == []
    assert streamer.num_copies > 0


@pytest.mark.parametrize("precision", ["fp8", "nf4"])
def test_quantised_weights_stream_exactly(precision):
    resident = tiny_memory.velocity()
    replace_linears(resident.transformer, {"image_stream": GroupPlan(precision)})
    v, _ = streamed_velocity("image_stream", precision)
    assert differing(step_gradients(v), step_gradients(resident)) == []


def test_a_forward_copies_each_block_once_in_order():
    v, streamer = streamed_velocity()
    call(v, no_grad=True)
    assert streamer.copied == list(range(NUM_LAYERS))
    assert set(streamer.resident) == {NUM_LAYERS - 1, NUM_LAYERS - 2}


def test_a_backward_with_checkpointing_goes_back_over_the_ring():
    """The last two blocks are still there; at the end the first two are, and the next forward starts with them."""
    v, streamer = streamed_velocity()
    apply_checkpointing(v.transformer, Checkpointing("all"))
    forward, back = list(range(NUM_LAYERS)), list(range(NUM_LAYERS - 3, -1, -1))
    with tiny_memory.lora_attached(v):
        v.lora, lora = None, v.lora
        out = call(v)
        assert streamer.copied == forward
        out.sum().backward()
    v.lora = lora
    assert streamer.copied == forward + back
    call(v, no_grad=True)
    assert streamer.copied == forward + back + forward[2:]


def test_the_next_block_is_copied_while_one_computes():
    _, streamer = streamed_velocity()
    layers = {streamer._block_of[layer]: layer for layer in streamer._block_of}
    layers[0].dequantised(torch.float64)
    assert streamer.resident == (0, 1)
    layers[1].dequantised(torch.float64)
    assert set(streamer.resident) == {1, 2}
    layers[0].dequantised(torch.float64)  # a turn
    assert set(streamer.resident) == {0, 1}


def test_any_order_gives_the_right_weight():
    """Also one nobody planned for: each weight is compared with the loaded one."""
    v, _ = streamed_velocity("image_stream")
    reference = tiny_memory.velocity().transformer
    order = torch.randint(0, NUM_LAYERS, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    for block in order:
        path = f"transformer_blocks.{block}.img_mlp.net.2"
        found = v.transformer.get_submodule(path).dequantised(torch.float64)
        assert torch.equal(found, reference.get_submodule(path).weight), path


def test_the_host_keeps_one_copy():
    v, streamer = streamed_velocity()
    layers = [layer for layer in v.transformer.modules() if isinstance(layer, FrozenLinear)]
    assert len({layer.stored[0].untyped_storage().data_ptr() for layer in layers}) == NUM_LAYERS
    weights = sum(layer.in_features * layer.out_features * 8 for layer in layers)
    assert weights <= streamer.host_bytes <= weights + len(layers) * 256


def test_a_released_ring_comes_back():
    v, streamer = streamed_velocity()
    before = call(v, no_grad=True)
    streamer.release()
    assert streamer.resident == () and streamer._ring == []
    assert torch.equal(call(v, no_grad=True), before)


def test_a_preview_in_inference_mode_does_not_spoil_the_ring(wanted):
    v, _ = streamed_velocity()
    with torch.inference_mode():
        call(v, no_grad=True)
    assert differing(step_gradients(v), wanted) == []


def test_a_sweep_over_streamed_weights_visits_each_block_once_and_gives_the_ring_back(wanted):
    v, streamer = streamed_velocity("modulation")
    found = step_gradients(v, [lambda: ModulationSweep(v.transformer, tiny_memory.times())])
    assert differing(found, wanted) == []
    assert streamer.copied == list(range(NUM_LAYERS))
    assert streamer.resident == ()


def test_a_single_block_streams_too():
    v, streamer = streamed_velocity()
    first = [layer for layer, block in streamer._block_of.items() if block == 0]
    for layer in first:
        layer.source = None
    alone = BlockStreamer([first], CPU)
    first[0].dequantised(torch.float64)
    assert alone.resident == (0,) and alone.num_copies == 1
    del v


def test_a_weight_has_one_owner():
    _, streamer = streamed_velocity()
    with pytest.raises(AssertionError, match="once"):
        BlockStreamer([list(streamer._block_of)], CPU)
