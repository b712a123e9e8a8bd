"""LoRA files: written and read whole, every other file refused in one line that names it (R4)."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import model as tiny
from teasr_core.errors import LoraFileError, ModelFileError
from teasr_core.model.architecture import QwenArchitecture
from teasr_core.model.branch_lora import BLOCK_TARGETS, BranchLora
from teasr_core.weight_files.lora_file import (
    FINGERPRINT_KEYS,
    PREFIX,
    PROMPT_KEY,
    check_base,
    fingerprint,
    lora_tensors,
    read_lora,
)

DEEPER = QwenArchitecture(48, num_layers=3, num_heads=2, head_dim=32, rope_axes=(8, 12, 12), text_width=16)
WIDER = QwenArchitecture(48, num_layers=2, num_heads=3, head_dim=32, rope_axes=(8, 12, 12), text_width=16)
OTHER_TEXT = QwenArchitecture(48, num_layers=2, num_heads=2, head_dim=32, rope_axes=(8, 12, 12), text_width=24)
NAME = "mine.safetensors"


@pytest.fixture
def path(tmp_path):
    return tiny.write_lora(tmp_path / NAME)


def refused(call, *args, **kwargs) -> str:
    """The message of the one ModelFileError (LoraFileError is one) that `call` raises: one line, naming the file."""
    with pytest.raises(ModelFileError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert NAME in message
    return message


def check(path, architecture=tiny.ARCHITECTURE, prediction="lq_residual", weights=None, **options):
    check_base(read_lora(path), architecture, prediction, weights or tiny.base_weights(architecture), **options)


def rewrite(path, change, **metadata):
    """Save the file's tensors again after `change(tensors)`, with some metadata replaced."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=tiny.lora_file_metadata(**metadata))
    return path


# Round trip


def test_round_trip(path):
    lora = read_lora(path)
    assert set(lora.tensors) == set(tiny.lora_weights())
    for key, value in tiny.lora_weights().items():
        assert lora.tensors[key].dtype == torch.bfloat16
        assert torch.equal(lora.tensors[key], value.bfloat16())
    assert torch.equal(lora.prompt_embeds, tiny.prompt_embeds(seed=5).bfloat16())
    assert (lora.name, lora.prediction, lora.rank, lora.base, lora.step) == (NAME, "lq_residual", 4, "tiny", 7)
    assert lora.targets == BLOCK_TARGETS
    assert lora.config == {"rank": 4}
    check(path)
    BranchLora.from_tensors(lora.tensors)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_ordinary_prefixes_are_readable(tmp_path, path, prefix):
    other = tmp_path / f"a{NAME}"
    save_file(lora_tensors(tiny.lora_weights(), None, prefix), other, metadata=tiny.lora_file_metadata())
    lora = read_lora(other)
    assert lora.prompt_embeds is None
    assert all(torch.equal(lora.tensors[k], v) for k, v in read_lora(path).tensors.items())


def test_written_keys_are_none_that_a_stock_loader_applies():
    """ComfyUI and diffusers know a Linear by these names; ours must look unknown to them."""
    keys = lora_tensors(tiny.lora_weights(), tiny.prompt_embeds())
    stock = (
        "transformer.",
        "diffusion_model.",
        "lora_unet_",
        "lycoris_",
        "unet.",
        "transformer_blocks.",
        "base_model.",
    )
    assert PREFIX == "teasr."
    assert all(key.startswith(PREFIX) for key in keys)
    assert not any(key.startswith(stock) for key in keys)


# The fingerprint


def test_the_fingerprint_ignores_the_storage_dtype_and_sees_another_base():
    weights = tiny.base_weights()
    half = {key: value.bfloat16() for key, value in weights.items()}
    assert fingerprint(weights) == fingerprint(half)
    assert fingerprint({key: weights[key] for key in FINGERPRINT_KEYS}) == fingerprint(weights)
    for key in FINGERPRINT_KEYS:
        assert fingerprint(weights | {key: weights[key] + 0.1}) != fingerprint(weights)


def test_the_fingerprint_names_a_model_of_another_kind():
    with pytest.raises(LoraFileError, match=r"no 'img_in\.bias'"):
        fingerprint({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)})


# Files that are no TEASR LoRA


def pickled(path):
    torch.save(tiny.lora_weights(), path)


def pickled_the_old_way(path):
    torch.save(tiny.lora_weights(), path, _use_new_zipfile_serialization=False)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:200])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("<html>404: not found</html>\n" * 20)


def missing(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [pickled, pickled_the_old_way, truncated, cut_in_the_header, empty, text, missing, a_folder]
)
def test_unreadable_files_are_refused(path, damage):
    damage(path)
    message = refused(read_lora, path)
    if damage in (pickled, pickled_the_old_way):
        assert "pickle" in message


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path):
    """The first two bytes of a safetensors file are its header's length: 640 bytes begin like pickle protocol 2."""
    tensors, path = lora_tensors(tiny.lora_weights(), None), tmp_path / NAME
    metadata = tiny.lora_file_metadata()
    save_file(tensors, path, metadata=metadata | {"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    wanted = next(n for n in range(length, length + 2**17, 8) if n % 2**16 in (0x280, 0x380, 0x480, 0x580))
    save_file(tensors, path, metadata=metadata | {"note": "x" * (wanted - length)})
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    check(path)


def test_an_ordinary_lora_is_refused(path):
    save_file({f"transformer.{k}": v for k, v in tiny.lora_weights().items()}, path)
    assert "LoraLoader" in refused(read_lora, path)


def test_a_base_file_is_refused(tmp_path):
    refused(read_lora, tiny.write_base(tmp_path / NAME))


# Files that are incomplete or were changed

KEY = f"{PREFIX}transformer_blocks.0.attn.to_q.lora_A.weight"


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_a_missing_half_is_refused(path, half):
    rewrite(path, lambda tensors: tensors.pop(KEY.replace("lora_A", half)))
    assert "missing" in refused(read_lora, path)


@pytest.mark.parametrize(
    "key", ["teasr.extra", "teasr.transformer_blocks.0.attn.to_q.alpha", "transformer.x.lora_A.weight"]
)
def test_an_extra_key_is_refused(path, key):
    rewrite(path, lambda tensors: tensors.update({key: torch.ones(1)}))
    refused(read_lora, path)


def test_a_file_without_tensors_is_refused(path):
    rewrite(path, lambda tensors: [tensors.pop(key) for key in list(tensors) if key != PROMPT_KEY])
    refused(read_lora, path)


@pytest.mark.parametrize("key", [KEY, PROMPT_KEY])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused(path, key, value):
    rewrite(path, lambda tensors: tensors[key].view(-1).__setitem__(3, value))
    assert "diverged" in refused(read_lora, path)


def test_a_wrong_rank_is_refused(path):
    rewrite(path, lambda tensors: tensors.update({KEY: torch.ones(5, 64)}))
    assert "rank 4" in refused(read_lora, path)
    tiny.write_lora(path, **{"teasr.rank": "8"})
    assert "rank 8" in refused(read_lora, path)


@pytest.mark.parametrize("shape", [(16,), (1, 3, 16), ()])
def test_a_prompt_embedding_of_another_shape_is_refused(path, shape):
    rewrite(path, lambda tensors: tensors.update({PROMPT_KEY: torch.ones(shape)}))
    refused(read_lora, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "2"), ("scope", "all"), ("positions", "frame_1"),
        ("rank", "four"), ("rank", "0"), ("rank", "-4"), ("step", "soon"), ("config", "{"), ("config", "[]"),
        ("targets", "attn.to_q"), ("targets", "[]"), ("targets", '["txt_mlp.net.2"]'), ("targets", "[[1]]"),
        ("targets", '{"attn.to_q": 1}'),
    ],
)  # fmt: skip
def test_changed_metadata_is_refused(path, key, value):
    tiny.write_lora(path, **{f"teasr.{key}": value})
    refused(read_lora, path)


@pytest.mark.parametrize(
    "key", ["format", "scope", "positions", "prediction", "rank", "targets", "base", "base_fingerprint"]
)
def test_missing_metadata_is_refused(path, key):
    metadata = tiny.lora_file_metadata()
    del metadata[f"teasr.{key}"]
    save_file(load_file(path), path, metadata=metadata)
    assert f"teasr.{key}" in refused(read_lora, path)


# Files for another model


@pytest.mark.parametrize("architecture", [DEEPER, WIDER, OTHER_TEXT], ids=["more layers", "wider", "other text"])
@pytest.mark.parametrize("allow", [False, True])
def test_another_architecture_is_refused(tmp_path, architecture, allow):
    path = tiny.write_lora(tmp_path / NAME, architecture)
    check(path, architecture)
    refused(check, path, tiny.ARCHITECTURE, allow_other_base=allow)


def test_a_layer_of_another_width_is_refused(path):
    key = f"{PREFIX}transformer_blocks.1.attn.to_k.lora_B.weight"
    rewrite(path, lambda tensors: tensors.update({key: torch.ones(65, 4)}))
    assert "transformer_blocks.1.attn.to_k" in refused(check, path)


def test_fewer_targets_than_declared_are_refused(path):
    def drop(tensors):
        for half in ("lora_A", "lora_B"):
            del tensors[KEY.replace("lora_A", half)]

    rewrite(path, drop)
    assert "1 of 10 layers missing" in refused(check, path)


def test_fewer_targets_are_fine_when_declared(path):
    targets = ["attn.to_k", "attn.to_v"]

    def keep(tensors):
        for key in [k for k in tensors if k != PROMPT_KEY and not any(t in k for t in targets)]:
            del tensors[key]

    rewrite(path, keep, **{"teasr.targets": json.dumps(targets)})
    check(path)


def test_another_prediction_is_refused(path):
    assert "predicts" in refused(check, path, prediction="velocity")


def test_another_base_is_refused_unless_allowed(path):
    other = tiny.base_weights(seed=9)
    assert "allow_other_base" in refused(check, path, weights=other)
    check(path, weights=other, allow_other_base=True)
