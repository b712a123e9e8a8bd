"""`cache-prompt` gives what diffusers' own pipeline gives, from files on disk alone, and refuses what is not whole."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny.text_encoder import WIDTH, write_text_encoder, write_tokenizer
from teasr_core.errors import InputError, ModelFileError, OutputError
from teasr_core.weight_files.lora_file import PROMPT_KEY
from teasr_core.weight_files.safetensors_reader import read_tensors
from training.cli.commands import main
from training.frozen_base import prompt_file as prompt_cache
from training.frozen_base.prompt_file import (
    TEMPLATE,
    TEMPLATE_TOKENS,
    encode_prompt,
    find_encoder,
    read_prompt,
    write_prompt,
)

pytest.importorskip("transformers", reason="transformers is not installed: pip install -e .[training]")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A diffusers folder with text_encoder/ and tokenizer/."""
    return write_text_encoder(tmp_path_factory.mktemp("qwen_image"))


@pytest.fixture
def copy(encoder, tmp_path):
    """The encoder's files, to be damaged."""
    for path in encoder.rglob("*"):
        if path.is_file():
            target = tmp_path / "copy" / path.relative_to(encoder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def pipeline(encoder):
    """diffusers' own pipeline with the text parts alone."""
    from diffusers import QwenImagePipeline
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    return QwenImagePipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(encoder / "text_encoder").eval(),
        tokenizer=Qwen2Tokenizer.from_pretrained(encoder / "tokenizer"),
    )


def run(capsys, *arguments):
    try:
        code = main(["cache-prompt", *(str(argument) for argument in arguments)])
    except SystemExit as exit_:
        code = exit_.code
    return SimpleNamespace(code=code, **capsys.readouterr()._asdict())


# The same numbers


@pytest.mark.parametrize("prompt", ["", "a sharp photograph, 8k", "\nzwölf Boxkämpfer 日本", "{braces} %s"])
def test_the_embedding_is_the_pipeline_s(encoder, pipeline, prompt):
    found = encode_prompt(find_encoder(encoder), prompt)
    with torch.no_grad():
        wanted, mask = pipeline._get_qwen_prompt_embeds(prompt, device=torch.device("cpu"))
    assert mask.all()  # one prompt, no padding: every token counts
    assert found.shape == wanted[0].shape and found.shape[1] == WIDTH
    assert found.dtype == torch.float32
    assert float((found - wanted[0]).abs().max()) <= 1e-6
    assert float(found.std()) > 0.1


def test_template_and_limit_are_the_pipeline_s(pipeline):
    assert pipeline.prompt_template_encode == TEMPLATE
    assert pipeline.prompt_template_encode_start_idx == TEMPLATE_TOKENS
    assert pipeline.tokenizer_max_length == prompt_cache.MAX_TOKENS


def test_the_prompt_matters_and_the_dropped_tokens_are_the_template_s(encoder):
    folders = find_encoder(encoder)
    empty, other = encode_prompt(folders), encode_prompt(folders, "a cat")
    assert empty.shape == (5, WIDTH)  # <|im_end|> \n <|im_start|> assistant \n
    assert len(other) > len(empty)
    assert not torch.allclose(empty, other[-5:])


def test_bf16_is_computed_in_bf16(encoder):
    folders = find_encoder(encoder)
    coarse, fine = encode_prompt(folders, dtype="bf16"), encode_prompt(folders, dtype="fp32")
    assert coarse.dtype == torch.bfloat16
    assert 0 < float((coarse.float() - fine).abs().max() / fine.abs().max()) < 0.1


# Files and folders


def test_the_command_writes_a_file_that_reads_back(encoder, tmp_path, capsys):
    target = tmp_path / "new" / "empty.safetensors"
    result = run(capsys, "--text-encoder", encoder, target)
    assert (result.code, result.out.startswith(f"wrote {target}: 5 tokens x {WIDTH}, ")) == (0, True)
    assert target.stat().st_size < 2000
    tensors, metadata = read_tensors(target)
    folders = find_encoder(encoder)
    assert list(tensors) == [PROMPT_KEY]
    assert metadata == {
        "teasr.format": "1", "teasr.kind": "prompt", "teasr.prompt": "", "teasr.encoder_config": folders.config_hash,
    }  # fmt: skip
    found = read_prompt(target)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, encode_prompt(folders).to(torch.bfloat16))
    before = target.read_bytes()
    again = run(capsys, "--text-encoder", encoder, target)
    assert (again.code, "--overwrite" in again.err) == (2, True)
    assert run(capsys, "--text-encoder", encoder, target, "--prompt", "sharp", "--overwrite").code == 0
    assert read_tensors(target)[1]["teasr.prompt"] == "sharp" and target.read_bytes() != before


def test_other_layouts_of_the_same_files(encoder, copy, tmp_path):
    wanted = encode_prompt(find_encoder(encoder), "a cat")
    assert torch.equal(encode_prompt(find_encoder(copy / "text_encoder"), "a cat"), wanted)  # tokenizer/ beside it
    plain = tmp_path / "plain"  # everything in one folder
    plain.mkdir()
    for path in [*(copy / "text_encoder").iterdir(), *(copy / "tokenizer").iterdir()]:
        (plain / path.name).write_bytes(path.read_bytes())
    assert torch.equal(encode_prompt(find_encoder(plain), "a cat"), wanted)


def test_a_tokenizer_of_vocab_and_merges(copy, encoder):
    """The layout in which Qwen-Image is published."""
    model = json.loads((copy / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (copy / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    wanted = encode_prompt(find_encoder(encoder), "a cat")
    assert torch.equal(encode_prompt(find_encoder(copy), "a cat"), wanted)


def test_the_hash_is_of_the_model_not_of_the_saving_tool(copy):
    path = copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    before = find_encoder(copy).config_hash
    path.write_text(json.dumps(config | {"transformers_version": "4.1", "_name_or_path": "x"}))
    assert find_encoder(copy).config_hash == before
    path.write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert find_encoder(copy).config_hash != before


# What cannot be used


def test_folders_that_are_no_encoder(copy, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    for folder, part in ((tmp_path / "none", "is no folder"), (tmp_path, "holds no text encoder")):
        result = run(capsys, "--text-encoder", folder, target)
        assert (result.code, part in result.err, len(result.err.splitlines())) == (2, True, 1)
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match="no tokenizer: expected a folder 'tokenizer'"):
        find_encoder(copy)
    config = copy / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"qwen2_5_vl"', '"llama"'))
    (copy / "tokenizer" / "vocab.json").write_text("{}")
    with pytest.raises(ModelFileError, match="type 'llama'"):
        find_encoder(copy)
    config.write_text("{")
    with pytest.raises(ModelFileError, match=r"config\.json.* cannot be read"):
        find_encoder(copy)
    config.unlink()
    with pytest.raises(ModelFileError, match="holds no text encoder"):
        find_encoder(copy)
    assert not target.exists()


def test_damaged_or_incomplete_weights_are_refused(copy):
    path = copy / "text_encoder" / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        encode_prompt(find_encoder(copy))
    name = next(key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=r"1 tensors are missing .*layers\.1\.mlp\.up_proj\.weight"):
        encode_prompt(find_encoder(copy))  # transformers alone would fill in random numbers
    path.unlink()
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        encode_prompt(find_encoder(copy))


def test_another_tokenizer_is_refused(copy):
    write_tokenizer(copy / "tokenizer", "of other words")
    with pytest.raises(ModelFileError, match=r"into \d+ tokens, expected 34"):
        encode_prompt(find_encoder(copy))
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFileError, match="cannot be read as a tokenizer"):
        encode_prompt(find_encoder(copy))


def test_other_refusals(encoder, tmp_path, capsys):
    folders = find_encoder(encoder)
    with pytest.raises(InputError, match=r"prompt is \d+ tokens long: expected at most 1024"):
        encode_prompt(folders, "cat " * 1100)
    with pytest.raises(InputError, match="expected auto, fp32, bf16"):
        encode_prompt(folders, dtype="int8")
    with pytest.raises(OutputError, match="NaN"):
        write_prompt(tmp_path / "x.safetensors", torch.full((2, 3), torch.nan), "", "")
    assert not list(tmp_path.iterdir())
    result = run(capsys, "--text-encoder", encoder, tmp_path / "out.pt")
    assert (result.code, "expected .safetensors" in result.err) == (2, True)


def test_files_that_are_no_prompt(tmp_path):
    good = {"teasr.format": "1", "teasr.kind": "prompt"}
    path = tmp_path / "file.safetensors"
    for tensors, metadata, match in (
        ({PROMPT_KEY: torch.ones(2, 3)}, {}, "no prompt file"),
        ({PROMPT_KEY: torch.ones(2, 3)}, good | {"teasr.kind": "base"}, "no prompt file"),
        ({PROMPT_KEY: torch.ones(2, 3)}, good | {"teasr.format": "2"}, "no prompt file"),
        ({"other": torch.ones(2, 3)}, good, "has no tensor"),
        ({PROMPT_KEY: torch.ones(3)}, good, r"shape \(3,\), expected \(T, W\)"),
        ({PROMPT_KEY: torch.ones(0, 3)}, good, r"shape \(0, 3\)"),
        ({PROMPT_KEY: torch.tensor([[torch.inf]])}, good, "NaN or infinity"),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ModelFileError, match=match):
            read_prompt(path)
    with pytest.raises(ModelFileError, match="no weight file"):
        read_prompt(tmp_path / "none.safetensors")
    write_prompt(path, torch.ones(2, 3), "", "x")
    assert torch.equal(read_prompt(path), torch.ones(2, 3, dtype=torch.bfloat16))


def test_nothing_is_asked_of_the_network(encoder, monkeypatch):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert encode_prompt(find_encoder(encoder)).shape == (5, WIDTH)
    assert asked == []
    with pytest.raises(OSError, match="no network"):  # the guard bites
        socket.create_connection(("localhost", 9))
    assert len(asked) == 1
