"""ncnn's files of Real-ESRGAN as safetensors: written here by hand, as ncnn's converter writes them."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "scripts" / "real_esrgan_weights.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("real_esrgan_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_ncnn(folder, sizes, is_half):
    """`sizes`: (in, out) of each 3x3 convolution. Returns what was written."""
    lines, raw, layers = ["7767517", "9 9"], b"", []
    for index, (inputs, outputs) in enumerate(sizes):
        rng = np.random.default_rng(index)
        weight = rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float16)
        bias = rng.standard_normal(outputs).astype(np.float32)
        lines.append(f"Convolution conv_{index} 1 1 a b 0={outputs} 1=3 4=1 5=1 6={weight.size} 9=2 -23310=1,2.0e-01")
        lines.append(f"ReLU relu_{index} 1 1 b c 0=0.2")
        data = weight.tobytes() if is_half else weight.astype(np.float32).tobytes()
        raw += struct.pack("<I", 0x01306B47 if is_half else 0) + data + b"\0" * (-len(data) % 4) + bias.tobytes()
        layers.append((weight.astype(np.float32), bias))
    (folder / "net.param").write_text("\n".join(lines))
    (folder / "net.bin").write_bytes(raw)
    return layers


@pytest.mark.parametrize("is_half", [True, False])
def test_weights_arrive_in_order(tmp_path, script, is_half):
    wanted = write_ncnn(
        tmp_path, [(3, 5), (5, 1), (6, 3)], is_half
    )  # the second has 45 weights: padded in half precision
    found = script.read_ncnn(tmp_path / "net.param", tmp_path / "net.bin")
    for (weight, bias), (wanted_weight, wanted_bias) in zip(found, wanted, strict=True):
        assert torch.equal(weight, torch.from_numpy(wanted_weight))
        assert torch.equal(bias, torch.from_numpy(wanted_bias))


@pytest.mark.parametrize("change", [lambda raw: raw[:-8], lambda raw: raw + b"1234"])
def test_a_file_of_another_length_is_refused(tmp_path, script, change):
    write_ncnn(tmp_path, [(3, 5)], is_half=True)
    path = tmp_path / "net.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SystemExit, match=r"net\.bin (ends within|has 4 bytes too many)"):
        script.read_ncnn(tmp_path / "net.param", path)


def test_the_names_are_basicsrs(script):
    names = script.layer_names(23)
    assert len(names) == len(set(names)) == 351
    assert names[:2] == ["conv_first", "body.0.rdb1.conv1"]
    assert names[-6:] == ["body.22.rdb3.conv5", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
