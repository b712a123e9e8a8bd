"""The command line's Qwen-Image, from a diffusers folder and from ComfyUI's single files, equals `plain_qwen`.

`qwen_file`, `QwenVelocity` on diffusers' class, `lora_file`, `sampler`: all that lies between files and a latent.
"""

import pytest
import torch

from contract import qwen_on_disk
from contract.plain_qwen import PlainQwen, euler, relative
from teasr_core.model import branch_lora, qwen_velocity
from teasr_core.sampling import sampler, schedule
from teasr_core.weight_files import lora_file, qwen_file

pytest.importorskip("diffusers", reason="diffusers is not installed in this environment: pip install diffusers")

TOLERANCE = 1e-5  # max |found - reference| / max |reference|, float32 against float64
BASE = qwen_on_disk.weights()


@pytest.fixture(autouse=True)
def _quiet(one_thread):
    pass


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """(checked file, pairs, prompt)"""
    path = tmp_path_factory.mktemp("lora") / "teasr.safetensors"
    qwen_on_disk.write_lora(path, lora_file, branch_lora, BASE)
    return lora_file.read_lora(path), *qwen_on_disk.read_lora(path)


def restore(source, lora, noise, z_lq, steps, strength=1.0):
    """Algorithm 1 as the command line runs it, (B, C, H, W)."""
    lora_file.check_base(lora, source.architecture, source.prediction, source.fingerprint_tensors(), True)
    transformer = qwen_file.load_qwen_transformer(source, torch.float32)
    adapter = branch_lora.BranchLora.from_tensors(lora.tensors).float()
    velocity = qwen_velocity.QwenVelocity(transformer, lora.prompt_embeds.float(), source.prediction, adapter, strength)
    return sampler.sample(velocity, noise, z_lq.expand_as(noise), schedule.linear_taus(steps))


@pytest.mark.parametrize("layout", ["folder", "single file"])
def test_every_step_count(tmp_path, lora, layout):
    path = tmp_path / "small_qwen.safetensors"
    path = qwen_on_disk.write_single(path, BASE) if layout == "single file" else qwen_on_disk.write_folder(path, BASE)
    source = qwen_file.read_qwen(path)
    noise, z_lq = qwen_on_disk.latents()
    for steps in (1, 2, 4, 8, 30):
        reference = euler(PlainQwen(BASE, lora[1]), noise, z_lq, steps, lora[2])
        found = restore(source, lora[0], noise, z_lq, steps)
        print("relative error: standalone", layout, steps, relative(found, reference))
        assert relative(found, reference) <= TOLERANCE


@pytest.mark.parametrize("form", ["bf16", "fp8", "old", "new", "rotated"])
def test_weights_of_fewer_bits_mean_what_they_say(tmp_path, lora, form):
    stored, meant = qwen_on_disk.in_form(BASE, form)
    source = qwen_file.read_qwen(qwen_on_disk.write_single(tmp_path / "small.safetensors", stored))
    noise, z_lq = qwen_on_disk.latents()
    reference = euler(PlainQwen(meant, lora[1]), noise, z_lq, 2, lora[2])
    found = restore(source, lora[0], noise, z_lq, 2)
    print("relative error: standalone", form, relative(found, reference))
    assert relative(found, reference) <= TOLERANCE


@pytest.mark.parametrize("lq_batch", [1, 3])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_batches_and_strengths(tmp_path, lora, lq_batch, strength):
    source = qwen_file.read_qwen(qwen_on_disk.write_single(tmp_path / "small.safetensors", BASE))
    noise, z_lq = qwen_on_disk.latents(3, lq_batch)
    reference = euler(PlainQwen(BASE, lora[1], strength), noise, z_lq, 4, lora[2])
    found = restore(source, lora[0], noise, z_lq, 4, strength)
    print("relative error: standalone", lq_batch, strength, relative(found, reference))
    assert relative(found, reference) <= TOLERANCE
