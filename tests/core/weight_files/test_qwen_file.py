"""Every layout of a transformer on disk gives the velocity of the one built directly; one tensor at a time (T7)."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.tiny import model as tiny
from helpers.tiny import qwen as tiny_qwen
from teasr_core.errors import ModelFileError
from teasr_core.model.architecture import QWEN_IMAGE
from teasr_core.model.qwen_velocity import build_transformer
from teasr_core.weight_files.lora_file import FINGERPRINT_KEYS, check_base, fingerprint, read_lora
from teasr_core.weight_files.qwen_file import empty_transformer, load_qwen_transformer, read_qwen

TOLERANCE = 1e-5  # max |difference| / max |reference|, float32
BITE = 1e-3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.safetensors"


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    """The velocity of the transformer built without a file."""
    return tiny_qwen.output(tiny_qwen.velocity(tiny_qwen.weights()))


def loaded(path, dtype=torch.float32, **options):
    return load_qwen_transformer(read_qwen(path), dtype, **options)


def output_of(path):
    return tiny_qwen.output(tiny_qwen.wrap(loaded(path)))


# The same model in every layout


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
@pytest.mark.parametrize("part", ["", "transformer"])
def test_a_diffusers_folder(tmp_path, reference, shard_bytes, part):
    root = tiny_qwen.write_folder(tmp_path / "model", shard_bytes)
    assert (len(read_qwen(root).kind.files) > 3) == (shard_bytes is not None)
    assert tiny_qwen.difference(output_of(root / part), reference) <= TOLERANCE


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_single_file(path, reference, prefix):
    source = read_qwen(tiny_qwen.write_single(path, prefix))
    assert (source.architecture, source.prediction) == (tiny_qwen.ARCHITECTURE, "velocity")
    assert tiny_qwen.difference(output_of(path), reference) <= TOLERANCE


def test_what_stands_beside_the_model_is_left_out(path, reference):
    extra = {"vae.x": torch.ones(2), "text_encoders.y": torch.ones(2), "model.diffusion_model.__index_timestep_zero__":
             torch.zeros(0)}  # fmt: skip
    tiny_qwen.write_single(path, "model.diffusion_model.", extra=extra)
    assert tiny_qwen.difference(output_of(path), reference) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_rounded_file_is_the_rounded_model(path, reference, dtype):
    found = output_of(tiny_qwen.write_single(path, dtype=dtype))
    rounded = {key: value.to(dtype).float() for key, value in tiny_qwen.weights().items()}
    assert torch.equal(found, tiny_qwen.output(tiny_qwen.velocity(rounded)))
    assert tiny_qwen.difference(found, reference) > BITE / 10


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("form", ["old", "bare", "layer", "header", "rows"])
def test_a_scaled_file_equals_its_dequantised_weights(path, reference, form, prefix):
    path, meant = tiny_qwen.write_scaled(path, form, prefix)
    found = output_of(path)
    assert torch.equal(found, tiny_qwen.output(tiny_qwen.velocity(meant)))
    assert BITE < tiny_qwen.difference(found, reference) < 0.1


def test_forgotten_scales_would_show(path):
    """The guard on the test above: without its scales the file is another model."""
    tensors = load_file(tiny_qwen.write_scaled(path, "bare", "")[0])
    save_file({key: value for key, value in tensors.items() if not key.endswith("weight_scale")}, path)
    assert tiny_qwen.difference(output_of(path), tiny_qwen.output(tiny_qwen.velocity(tiny_qwen.weights()))) > 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_asked_for(path, dtype):
    model = loaded(tiny_qwen.write_scaled(path, "old")[0], dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config["zero_cond_t"]


# Keys and architecture


def test_zero_cond_t_changes_no_key(tmp_path, reference):
    """A checkpoint of a model without it (all but the 2511's) fills one with it."""
    from diffusers import QwenImageTransformer2DModel

    root = tiny_qwen.write_folder(tmp_path / "model", zero_cond_t=False)
    config = dict(read_qwen(root).kind.config)
    assert config["zero_cond_t"] is False
    plain = QwenImageTransformer2DModel(**{key: config[key] for key in config if not key.startswith("_")})
    with_it = build_transformer(tiny_qwen.ARCHITECTURE)
    assert plain.config["zero_cond_t"] != with_it.config["zero_cond_t"]
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in with_it.state_dict().items()}
    assert tiny_qwen.difference(output_of(root), reference) <= TOLERANCE


def test_other_rotary_axes_come_from_the_folder(tmp_path, monkeypatch):
    other = tiny_qwen.QwenArchitecture(16, 2, 1, 64, (16, 24, 24), 32)
    monkeypatch.setattr(tiny_qwen, "ARCHITECTURE", other)
    assert read_qwen(tiny_qwen.write_folder(tmp_path / "model")).architecture == other


def test_the_published_size_takes_no_memory():
    model = empty_transformer(QWEN_IMAGE)
    assert sum(parameter.numel() for parameter in model.parameters()) == 20_430_401_088
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.pos_embed.pos_freqs.is_meta  # in no file, so it must be real


def test_the_fingerprint_is_read_alone_and_fits_the_lora(tmp_path, path):
    lora = read_lora(tiny_qwen.write_lora(tmp_path / "lora.safetensors"))
    for source in (
        read_qwen(tiny_qwen.write_folder(tmp_path / "model", shard_bytes=20_000)),
        read_qwen(tiny_qwen.write_scaled(path, "layer")[0]),
    ):
        tensors = source.fingerprint_tensors()
        assert set(tensors) == set(FINGERPRINT_KEYS)
        assert fingerprint(tensors) == fingerprint(tiny_qwen.weights())
        assert not source.is_fingerprint_fp8
        check_base(lora, source.architecture, source.prediction, tensors)
    assert read_qwen(tiny_qwen.write_single(path, dtype=torch.float8_e4m3fn)).is_fingerprint_fp8


# One tensor at a time


@pytest.mark.parametrize("form", [None, "old"])
def test_a_tensor_is_gone_before_the_next_one_comes(path, form):
    """What `place` does not keep is freed: beyond the model, one tensor at a time."""
    tiny_qwen.write_single(path) if form is None else tiny_qwen.write_scaled(path, form)
    earlier: list[weakref.ref] = []

    def place(_name, tensor):
        assert not any(reference() is not None for reference in earlier)
        earlier.append(weakref.ref(tensor))
        return tensor.bfloat16()

    model = loaded(path, place=place)
    assert len(earlier) == len(list(model.parameters()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_check_on_memory_bites(path):
    """A caller that keeps what it is handed is found out by the same count."""
    kept, alive = [], []
    for _name, tensor in read_qwen(tiny_qwen.write_single(path)).tensors(torch.float32):
        alive.append(weakref.ref(tensor))
        kept.append(tensor)
    assert all(reference() is not None for reference in alive)


def test_place_and_prepare_replace_what_a_layer_keeps(path, reference):
    """As a trainer does: another class for some layers, and their weights packed on arrival."""

    class Halved(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, 2 * self.weight, self.bias)

    def prepare(model):
        for block in model.transformer_blocks:
            old = block.attn.to_q
            with torch.device("meta"):
                block.attn.to_q = Halved(old.in_features, old.out_features)

    def place(name, tensor):
        return tensor / 2 if name.endswith("attn.to_q.weight") else tensor

    tiny_qwen.write_single(path)
    model = loaded(path, place=place, prepare=prepare)
    assert isinstance(model.transformer_blocks[1].attn.to_q, Halved)
    assert tiny_qwen.difference(tiny_qwen.output(tiny_qwen.wrap(model)), reference) <= TOLERANCE
    without = tiny_qwen.output(tiny_qwen.wrap(loaded(path, place=place)))
    assert tiny_qwen.difference(without, reference) > BITE


# Strict


def changed(path, change):
    tensors = dict(tiny_qwen.weights())
    change(tensors)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("transformer_blocks.1.img_mlp.net.2.bias"), "1 of 77 tensors missing"),
        (lambda t: t.update({"extra": torch.ones(2)}), "1 unknown ['extra']"),
        (lambda t: t.update({"txt_in.weight": torch.ones(64, 31)}), "1 of another shape ['txt_in.weight']"),
    ],
)
def test_a_file_that_is_not_the_model_is_refused_before_a_tensor_is_read(path, change, words):
    source = read_qwen(changed(path, change))
    placed = []
    with pytest.raises(ModelFileError) as caught:
        load_qwen_transformer(source, torch.float32, place=lambda name, tensor: placed.append(name) or tensor)
    message = str(caught.value)
    assert words in message and "mine.safetensors" in message and "\n" not in message
    assert placed == []


def test_a_file_without_a_base_tensor(path):
    with pytest.raises(ModelFileError, match=r"img_in\.bias"):
        read_qwen(changed(path, lambda tensors: tensors.pop("img_in.bias")))


def test_two_downloads_in_one_folder(tmp_path):
    root = tiny_qwen.write_folder(tmp_path / "model", shard_bytes=20_000)
    shards = sorted((root / "transformer").glob("*-of-*.safetensors"))
    first = load_file(shards[0])
    save_file(load_file(shards[1]) | first, shards[1])
    with pytest.raises(ModelFileError, match="two shards"):
        read_qwen(root)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"format": "convrot_w4a4"}, "convrot_w4a4"),
        ({"format": "int8_tensorwise", "convrot": True}, "rotation"),
        ({"format": "int8_tensorwise", "params": {"convrot": True}}, "rotation"),
        ({"format": "of tomorrow"}, "of tomorrow"),
        ([], "JSON object"),
    ],
)
def test_a_format_that_cannot_be_read_is_named(path, config, words):
    tensors = load_file(tiny_qwen.write_scaled(path, "layer")[0])
    key = next(key for key in tensors if key.endswith("comfy_quant"))
    tensors[key] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=words) as caught:
        read_qwen(path)
    assert "mine.safetensors" in str(caught.value)


@pytest.mark.parametrize("name", ["pre_quant_scale", "weight_s_rel"])
def test_scales_that_are_not_understood_are_no_weights_to_skip(path, name):
    tensors = load_file(tiny_qwen.write_scaled(path, "bare", "")[0])
    tensors[f"transformer_blocks.0.attn.to_q.{name}"] = torch.ones(64)
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=name):
        read_qwen(path)


def test_a_scale_of_another_size(path):
    tensors = load_file(tiny_qwen.write_scaled(path, "bare", "")[0])
    tensors["transformer_blocks.0.attn.to_q.weight_scale"] = torch.ones(7)
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"attn\.to_q\.weight"):
        loaded(path)


def test_a_folder_quantised_by_diffusers(tmp_path):
    root = tiny_qwen.write_folder(tmp_path / "model")
    config = root / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(ModelFileError, match="quantised by diffusers"):
        read_qwen(root)


@pytest.mark.parametrize("write", [tiny.write_base, tiny.write_lora, tiny_qwen.write_comfy_vae])
def test_other_files_of_ours_are_no_transformer(path, write):
    with pytest.raises(ModelFileError, match="expected a Qwen-Image transformer"):
        read_qwen(write(path))
