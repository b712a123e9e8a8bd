"""The velocity on diffusers' transformer equals the same model written out in float64, adapter included."""

import pytest
import torch

from helpers.reference_qwen import ReferenceQwen
from helpers.tiny import model as tiny
from teasr_core.model.flow import clean_from_output, velocity_from_output

TOLERANCE = 1e-5  # max |difference| / max |reference|, float32 against float64
BITE = 1e-3  # a wrong model is at least this far off

T_CUR = torch.tensor([1.0, 0.6])
T_TAR = torch.tensor([0.0, 0.45])


def relative(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found.double() - reference).abs().max() / reference.abs().max())


def reference(**changes) -> ReferenceQwen:
    options = {"lora": tiny.lora_weights(), "lora_strength": 1.0} | changes
    return ReferenceQwen(tiny.base_weights(), tiny.ARCHITECTURE, tiny.prompt_embeds(), **options)


@pytest.fixture(scope="module")
def found() -> torch.Tensor:
    """Our output with the adapter on a non-square latent, batch 2, two different pairs of times."""
    z_t, z_lq = tiny.latents()
    with torch.no_grad():
        return tiny.velocity(use_lora=True).network_output(z_t, T_CUR, z_lq, T_TAR)


def test_output_with_adapter_equals_the_reference(found):
    z_t, z_lq = tiny.latents()
    assert found.shape == z_t.shape
    assert relative(found, reference().output(z_t, T_CUR, z_lq, T_TAR)) <= TOLERANCE


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 16, 8), (3, 8, 20)])
def test_other_shapes_without_adapter(shape):
    z_t, z_lq = tiny.latents(*shape)
    t_cur, t_tar = torch.linspace(1, 0.3, shape[0]), torch.linspace(0.5, 0, shape[0])
    found = tiny.velocity().network_output(z_t, t_cur, z_lq, t_tar)
    assert relative(found, reference(lora=None).output(z_t, t_cur, z_lq, t_tar)) <= TOLERANCE


def test_half_strength_is_half_the_delta():
    z_t, z_lq = tiny.latents()
    found = tiny.velocity(use_lora=True, lora_strength=0.5).network_output(z_t, T_CUR, z_lq, T_TAR)
    assert relative(found, reference(lora_strength=0.5).output(z_t, T_CUR, z_lq, T_TAR)) <= TOLERANCE


def test_negative_target_times():
    z_t, z_lq = tiny.latents()
    found = tiny.velocity(use_lora=True).network_output(z_t, T_CUR, z_lq, -T_CUR)
    assert relative(found, reference().output(z_t, T_CUR, z_lq, -T_CUR)) <= TOLERANCE


def test_fused_time_of_the_ablation():
    z_t, z_lq = tiny.latents()
    found = tiny.velocity(use_lora=True, use_dtc=False).network_output(z_t, T_CUR, z_lq, T_TAR)
    fused = T_CUR - T_TAR / 2
    assert relative(found, reference().output(z_t, fused, z_lq, fused)) <= TOLERANCE


@pytest.mark.parametrize("prediction", ["velocity", "lq_residual"])
def test_velocity_and_clean_estimate_follow_from_the_output(prediction):
    z_t, z_lq = tiny.latents()
    model = tiny.velocity(prediction, use_lora=True)
    output = reference().output(z_t, T_CUR, z_lq, T_TAR)
    doubles = (z_t.double(), z_lq.double(), T_CUR.double())
    v = velocity_from_output(prediction, output, *doubles)
    clean = clean_from_output(prediction, output, *doubles)
    assert relative(model(z_t, T_CUR, z_lq, T_TAR), v) <= TOLERANCE
    assert relative(model.clean(z_t, T_CUR, z_lq, T_TAR), clean) <= TOLERANCE


# The reference bites: each of these mistakes is far outside the tolerance.


@pytest.mark.parametrize(
    "mistake",
    [{"lora": None}, {"lora_strength": 0.9}, {"cond_frame": 1}],
    ids=["adapter off", "strength 0.9", "condition at frame 1"],
)
def test_another_model_differs(found, mistake):
    z_t, z_lq = tiny.latents()
    assert relative(found, reference(**mistake).output(z_t, T_CUR, z_lq, T_TAR)) > BITE


@pytest.mark.parametrize("wrong", [T_CUR, torch.zeros(2), -T_TAR, T_TAR + 0.02], ids=["t", "0", "-t_tar", "+0.02"])
def test_another_target_time_differs(found, wrong):
    z_t, z_lq = tiny.latents()
    assert relative(found[1:], reference().output(z_t, T_CUR, z_lq, wrong)[1:]) > BITE


def test_adapter_on_noise_tokens_too_differs(found):
    everywhere = reference()
    everywhere.weights = everywhere.cond_weights
    z_t, z_lq = tiny.latents()
    assert relative(found, everywhere.output(z_t, T_CUR, z_lq, T_TAR)) > BITE
