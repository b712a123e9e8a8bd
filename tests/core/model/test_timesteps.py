"""Dual-timestep conditioning: t_tar reaches the condition tokens' modulation and nothing else in block 0 (T2)."""

import pytest
import torch

from helpers.tiny import model as tiny
from teasr_core.model.timesteps import check_target_times, dual_times

T_CUR = torch.tensor([0.9, 0.7])


def run_with_hooks(t_tar, use_dtc=True, dtype=torch.float32):
    """What block 0 and the time embedding saw: name -> tensor."""
    velocity = tiny.velocity(use_dtc=use_dtc, dtype=dtype)
    model = velocity.transformer
    block = model.transformer_blocks[0]
    seen = {}

    def keep_input(name):
        def hook(_module, args):
            seen[name] = args[0].clone()

        return hook

    def keep_output(name):
        def hook(_module, _args, output):
            seen[name] = output.clone()

        return hook

    model.time_text_embed.time_proj.register_forward_pre_hook(keep_input("times"))
    block.img_mod.register_forward_hook(keep_output("img_mod"))
    block.txt_mod.register_forward_hook(keep_output("txt_mod"))
    block.img_norm1.register_forward_hook(keep_output("img_norm1"))
    block.attn.to_q.register_forward_pre_hook(keep_input("img_modulated"))
    block.attn.add_q_proj.register_forward_pre_hook(keep_input("txt_modulated"))
    model.norm_out.linear.register_forward_pre_hook(keep_input("norm_out_time"))
    z_t, z_lq = tiny.latents()
    seen["output"] = velocity.network_output(z_t, T_CUR, z_lq, t_tar)
    seen["num_noise"] = z_t.shape[2] * z_t.shape[3] // 4
    return seen


def test_the_target_time_changes_only_the_condition_tokens_in_block_0():
    a, b = run_with_hooks(torch.tensor([0.5, 0.2])), run_with_hooks(torch.tensor([0.1, 0.6]))
    n = a["num_noise"]
    assert torch.equal(a["img_mod"][:2], b["img_mod"][:2])  # rows of the noise branch
    assert not torch.isclose(a["img_mod"][2:], b["img_mod"][2:]).all(dim=1).any()  # every condition row differs
    for same in ("img_norm1", "txt_mod", "txt_modulated", "norm_out_time"):
        assert torch.equal(a[same], b[same]), same
    assert torch.equal(a["img_modulated"][:, :n], b["img_modulated"][:, :n])
    assert not torch.isclose(a["img_modulated"][:, n:], b["img_modulated"][:, n:]).all(dim=2).any()
    assert not torch.allclose(a["output"], b["output"], atol=1e-3)  # and it matters


def test_the_current_time_drives_noise_text_and_output_norm():
    a = run_with_hooks(torch.tensor([0.5, 0.5]))
    rows = a["txt_mod"]
    assert rows.shape[0] == a["norm_out_time"].shape[0] == 2
    assert not torch.equal(rows[0], rows[1])  # t_cur differs, t_tar does not
    assert torch.equal(a["img_mod"][2], a["img_mod"][3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_times_reach_the_sinusoid_in_float32(dtype):
    t_tar = torch.tensor([0.1234567, 1 / 3])
    times = run_with_hooks(t_tar, dtype=dtype)["times"]
    assert times.dtype == torch.float32
    assert torch.equal(times, torch.cat([T_CUR, t_tar]))


def test_without_dtc_both_branches_get_the_fused_time():
    t_tar = torch.tensor([0.5, 0.2])
    seen = run_with_hooks(t_tar, use_dtc=False)
    assert torch.equal(seen["times"], (T_CUR - t_tar / 2).repeat(2))
    assert torch.equal(seen["img_mod"][:2], seen["img_mod"][2:])


def test_negative_times_are_another_trajectory():
    t_tar = torch.tensor([0.5, 0.2])
    positive, negative = run_with_hooks(t_tar), run_with_hooks(-t_tar)
    n = positive["num_noise"]
    assert torch.equal(positive["img_modulated"][:, :n], negative["img_modulated"][:, :n])
    assert float((positive["output"] - negative["output"]).abs().max()) > 0.01


def test_dual_times_is_noise_then_condition_in_float32():
    times = dual_times(torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([0.0, -0.25], dtype=torch.float64))
    assert times.dtype == torch.float32
    assert times.tolist() == [0.5, 0.25, 0.0, -0.25]
    assert dual_times(torch.tensor([1.0]), torch.tensor([0.5]), use_dtc=False).tolist() == [0.75, 0.75]


def test_dual_times_wants_two_equal_vectors():
    with pytest.raises(AssertionError):
        dual_times(torch.tensor(1.0), torch.tensor(0.0))
    with pytest.raises(AssertionError):
        dual_times(torch.ones(2), torch.zeros(1))


@pytest.mark.parametrize("bad", [-0.0, -0.01, -0.0199, -1e-30])
def test_the_guard_refuses_negative_times_near_zero(bad):
    with pytest.raises(AssertionError, match=r"at most -0\.02"):
        check_target_times(torch.tensor([0.5, bad]))


def test_the_guard_passes_what_the_losses_use():
    check_target_times(torch.tensor([0.0, 1.0, 0.001, -0.02, -0.98]))
    check_target_times(torch.zeros(0))
