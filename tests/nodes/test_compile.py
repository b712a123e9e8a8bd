"""torch.compile on the MODEL (R14): the same pixels, one graph, nothing traced again from step to step."""

import pytest
import torch


@pytest.mark.parametrize("place", ["behind TEASR", "before TEASR"])
def test_compiled_equals_eager_in_one_graph(host, builtin, condition, photo, sample, place):
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    bridge = host.pack("nodes.model.dual_branch")
    made = condition(photo)
    eager = [sample(builtin.model, made.conditioning, made.latent, steps=steps) for steps in (1, 3, 5)]
    model = builtin.model.clone()
    torch._dynamo.reset()
    counters.clear()
    set_torch_compile_wrapper(model, backend="eager")  # dynamo's tracing alone: no C++ compiler needed
    if place == "before TEASR":
        model = bridge.attach(model, bridge.attached_branch(model), None)
    try:
        for steps, expected in zip((1, 3, 5), eager, strict=True):
            assert torch.equal(sample(model, made.conditioning, made.latent, steps=steps), expected)
        assert counters["stats"]["unique_graphs"] == 1
    finally:
        torch._dynamo.reset()
