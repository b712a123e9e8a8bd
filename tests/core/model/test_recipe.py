"""What a recipe changes in the network: the time of the condition branch, the activation, img_in, the scale."""

import pytest
import torch

from helpers.tiny import model as tiny
from helpers.tiny import qwen
from teasr_core.model.activation import sigmoid_gelu_overrides
from teasr_core.model.branch_lora import BLOCK_TARGETS, READABLE_TARGETS, BranchLora, forward_overrides, target_paths
from teasr_core.model.qwen_velocity import QwenVelocity
from teasr_core.model.recipe import Recipe
from teasr_core.model.timesteps import dual_times
from teasr_core.model.tokens import patchify

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def transformer():
    return qwen.velocity(qwen.weights()).transformer


def velocity(transformer, recipe=None, lora=None):
    return QwenVelocity(transformer, tiny.prompt_embeds(qwen.ARCHITECTURE), "velocity", lora, recipe=recipe)


def test_both_branches_may_see_the_current_time():
    cur, tar = torch.tensor([0.7, 0.4]), torch.tensor([0.1, 0.0])
    assert dual_times(cur, tar, condition_time="current").tolist() == dual_times(cur, cur).tolist()
    assert dual_times(cur, tar, False, "current").tolist() == dual_times(cur, cur).tolist()
    assert dual_times(cur, tar).tolist() == torch.cat([cur, tar]).tolist()


def test_the_target_time_is_then_not_seen(transformer):
    z_t, z_lq = qwen.latents()
    times = [qwen.T_CUR, torch.zeros(2), qwen.T_TAR]
    with torch.no_grad():
        current = [velocity(transformer, Recipe(condition_time="current"))(z_t, qwen.T_CUR, z_lq, t) for t in times]
        target = velocity(transformer)(z_t, qwen.T_CUR, z_lq, qwen.T_CUR)
    assert torch.equal(current[0], current[1]) and torch.equal(current[0], current[2])
    assert torch.equal(current[0], target)


def test_the_sigmoid_form_of_gelu(transformer):
    """Both streams of all blocks, for one call; afterwards the model is as it was."""
    blocks = transformer.transformer_blocks
    modules = [block.get_submodule(f"{mlp}.net.0") for block in blocks for mlp in ("img_mlp", "txt_mlp")]
    x = torch.randn(2, 5, qwen.ARCHITECTURE.width, generator=tiny.generator(1))
    with torch.no_grad():
        before = [module(x) for module in modules]
        with forward_overrides(sigmoid_gelu_overrides(transformer)):
            for module, tanh in zip(modules, before, strict=True):
                inner = module.proj(x)
                assert torch.allclose(module(x), inner / (1 + torch.exp(-1.702 * inner)), atol=1e-6)
                assert 1e-4 < float((module(x) - tanh).abs().max()) < 0.03
        assert all(torch.equal(module(x), tanh) for module, tanh in zip(modules, before, strict=True))
    assert len(modules) == 2 * qwen.ARCHITECTURE.num_layers


def test_the_scale_multiplies_the_velocity(transformer):
    z_t, z_lq = qwen.latents()
    plain, scaled = velocity(transformer), velocity(transformer, Recipe(velocity_scale=0.5))
    with torch.no_grad():
        v = plain(z_t, qwen.T_CUR, z_lq, qwen.T_TAR)
        assert torch.equal(scaled(z_t, qwen.T_CUR, z_lq, qwen.T_TAR), v / 2)
        clean = scaled.clean(z_t, qwen.T_CUR, z_lq, qwen.T_TAR)
    assert torch.allclose(clean, z_t - qwen.T_CUR.reshape(-1, 1, 1, 1) * v / 2, atol=1e-6)


def test_img_in_is_a_target_of_imported_files_alone():
    plain, read = target_paths(2), target_paths(2, READABLE_TARGETS)
    assert "img_in" not in BLOCK_TARGETS and "img_in" not in plain
    assert sorted(read) == sorted([*plain, "img_in"])


def test_img_in_changes_condition_tokens_only(transformer):
    """Its delta equals that of a changed weight on the condition tokens."""
    a, b = torch.randn(4, 64, generator=tiny.generator(0)), torch.randn(64, 4, generator=tiny.generator(1))
    lora = BranchLora.from_tensors({"img_in.lora_A.weight": a, "img_in.lora_B.weight": b}).requires_grad_(False)
    z_t, z_lq = qwen.latents()
    seen = []
    handle = transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        for adapter in (None, lora):
            velocity(transformer, lora=adapter)(z_t, qwen.T_CUR, z_lq, qwen.T_TAR)
        handle.remove()
        delta = patchify(z_lq, 2) @ a.T @ b.T
    half = seen[0].shape[1] // 2
    assert torch.equal(seen[0][:, :half], seen[1][:, :half])
    assert torch.allclose(seen[1][:, half:] - seen[0][:, half:], delta, atol=1e-4)
