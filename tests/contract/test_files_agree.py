"""Files as ComfyUI writes them, read for the command line: the same weights, the same VAE (T7)."""

import json

import pytest
import torch
from safetensors.torch import save_file

TOLERANCE = 1e-5  # relative: max |difference| / max |reference|, float32

LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8E4M3Layout",
    "float8_e5m2": "TensorCoreFP8E5M2Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
    "asym_w4a8_int8": "AsymW4A8Int8Layout",
}


def relative(found, reference):
    return float((found - reference).abs().max() / reference.abs().max())


def check(host, tmp_path, name, shape, config, limit=0.3, **options):
    """A layer as the host packs and saves it means to us what the host unpacks."""
    from comfy.quant_ops import QuantizedTensor

    reader = host.pack("teasr_core.weight_files.comfy_quantised")
    weight_reader = host.pack("teasr_core.weight_files.safetensors_reader").WeightReader
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3
    stored = QuantizedTensor.from_float(weight, LAYOUTS[name], **options)
    conf = torch.tensor(list(json.dumps({"format": name, **config}).encode()), dtype=torch.uint8)
    path = tmp_path / "layer.safetensors"
    tensors = {key: value.contiguous() for key, value in stored.state_dict("model.layer.weight").items()}
    save_file({**tensors, "model.layer.comfy_quant": conf}, path)
    with weight_reader(path) as file:
        packing = reader.comfy_packings(file, "model.")["layer"]
        found = packing.unpack(
            tuple(file.read(f"model.layer.{key}") for key in ("weight", *packing.scales)), torch.float32
        )
    assert (packing.format, packing.shape) == (name, weight.shape)
    assert packing.num_bytes == sum(value.numel() * value.element_size() for value in tensors.values())
    print("relative error:", name, shape, config, relative(found, stored.dequantize()))
    assert relative(found, stored.dequantize()) <= TOLERANCE
    assert 1e-3 < relative(found, weight) < limit  # it is quantised, and it is this weight


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4", "int8_tensorwise"])
@pytest.mark.parametrize("shape", [(192, 160), (32, 64), (256, 512)])  # more and less than one tile of block scales
def test_a_quantised_layer_means_what_the_host_takes_it_for(host, tmp_path, name, shape):
    check(host, tmp_path, name, shape, {})


@pytest.mark.parametrize("size", [16, 64, 256])
def test_int8_with_rotation_means_what_the_host_takes_it_for(host, tmp_path, size):
    config = {"convrot": True, "convrot_groupsize": size}
    check(host, tmp_path, "int8_tensorwise", (96, 768), config, per_channel=True, **config)


@pytest.mark.parametrize("name", ["convrot_w4a4", "asym_w4a8_int8"])
@pytest.mark.parametrize("size", [64, 256])
def test_four_bits_with_rotation_mean_what_the_host_takes_them_for(host, tmp_path, name, size):
    check(host, tmp_path, name, (96, 768), {"convrot_groupsize": size}, convrot_groupsize=size)


def test_the_vae_of_a_single_file_is_the_hosts(host, tmp_path):
    """Random weights in Wan's class of the host, saved by it, read by us: the same latent, the same image."""
    pytest.importorskip("diffusers", reason="diffusers is not installed in this environment: pip install diffusers")
    from comfy.latent_formats import Wan21
    from comfy.ldm.wan.vae import WanVAE

    torch.manual_seed(0)
    theirs = WanVAE(dim=4, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                    temperal_downsample=[False, True, True], dropout=0.0).eval()  # fmt: skip
    for key, value in theirs.state_dict().items():
        noise = torch.randn_like(value)
        value.copy_(1 + 0.1 * noise if "gamma" in key else noise * value[0].numel() ** -0.5)
    path = tmp_path / "qwen_image_vae.safetensors"
    save_file(theirs.state_dict(), path)
    codec = host.pack("teasr_core.weight_files.qwen_vae_file").load_qwen_vae(path)
    image, latent_format = torch.rand(2, 3, 48, 64), Wan21()
    with torch.no_grad():
        raw = theirs.encode(2 * image[:, :, None] - 1)  # (B, 16, 1, 6, 8)
        wanted = latent_format.process_in(raw)[:, :, 0]
        found = codec.encode(image)
        assert relative(found, wanted) <= TOLERANCE
        decoded = (theirs.decode(latent_format.process_out(wanted[:, :, None]))[:, :, 0] + 1) / 2
        assert relative(codec.decode(wanted), decoded) <= TOLERANCE
