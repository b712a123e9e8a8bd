"""The prompt embedding of Qwen-Image, computed once and kept as a small file (R11).

The same numbers as diffusers' `QwenImagePipeline._get_qwen_prompt_embeds`: the prompt in its chat template through
Qwen2.5-VL, last hidden state, the template's own first tokens dropped. It runs on the CPU: one prompt is one forward.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from teasr_core.device import DTYPES
from teasr_core.errors import InputError, ModelFileError, OutputError
from teasr_core.weight_files.lora_file import PROMPT_KEY
from teasr_core.weight_files.safetensors_reader import read_tensors
from teasr_core.weight_files.safetensors_writer import write_atomically

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
TEMPLATE_TOKENS = 34  # of TEMPLATE up to the prompt: the same for every prompt, so the transformer never sees them
MAX_TOKENS = 1024
MODEL_TYPE = "qwen2_5_vl"
# Of config.json: they change with the tool that saved the file, not with the model.
_VOLATILE_KEYS = ("transformers_version", "_name_or_path")


@dataclass(frozen=True)
class EncoderFolders:
    """Where the two parts lie, and the model's identity: SHA-256 of its config without what names the saving tool."""

    text_encoder: Path
    tokenizer: Path
    config_hash: str


def find_encoder(folder: Path) -> EncoderFolders:
    """`folder` holds text_encoder/ and tokenizer/ (a diffusers folder), or is text_encoder with tokenizer beside it,
    or holds the files of both.

    Raises ModelFileError where a part is missing or config.json is not Qwen2.5-VL's.
    """
    text_encoder = _first_with(["config.json"], [folder / "text_encoder", folder])
    if text_encoder is None or (text_encoder == folder and (folder / "model_index.json").exists()):
        raise ModelFileError(
            f"{folder} holds no text encoder: expected text_encoder/config.json (a diffusers folder) or config.json"
        )
    wanted = ["tokenizer.json", "vocab.json"]
    tokenizer = _first_with(wanted, [folder / "tokenizer", text_encoder.parent / "tokenizer", text_encoder])
    if tokenizer is None:
        raise ModelFileError(f"{folder} has no tokenizer: expected a folder 'tokenizer' with {' or '.join(wanted)}")
    try:
        config = json.loads((text_encoder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{text_encoder / 'config.json'} cannot be read ({error}): get the file again") from None
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE:
        raise ModelFileError(f"{text_encoder} is a model of type '{found}': expected Qwen-Image's own, '{MODEL_TYPE}'")
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return EncoderFolders(text_encoder, tokenizer, digest)


def encode_prompt(folders: EncoderFolders, prompt: str = "", dtype: str = "auto") -> torch.Tensor:
    """The embedding (T, W) of `prompt`, T tokens long, in the dtype it was computed in; auto is the weights' own.

    Files are read where they lie, nothing is fetched. Raises ModelFileError for files that are damaged, incomplete
    or another tokenizer's, InputError for a missing package or a prompt over 1024 tokens.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"dtype is '{dtype}': expected auto, {', '.join(DTYPES)}")
    tokenizer = _load_tokenizer(folders)
    tokens = tokenizer(TEMPLATE.format(prompt), return_tensors="pt")
    length = tokens.input_ids.shape[1]
    if length > MAX_TOKENS + TEMPLATE_TOKENS:
        raise InputError(f"the prompt is {length - TEMPLATE_TOKENS} tokens long: expected at most {MAX_TOKENS}")
    model = _load_model(folders, "auto" if dtype == "auto" else DTYPES[dtype])
    with torch.no_grad():
        output = model(**{key: tokens[key] for key in ("input_ids", "attention_mask")}, output_hidden_states=True)
    return output.hidden_states[-1][0, TEMPLATE_TOKENS:]  # (T, W); one prompt, so nothing is padded


def write_prompt(path: Path, embeds: torch.Tensor, prompt: str, config_hash: str) -> None:
    """Save (T, W) in bf16, whole or not at all. OutputError for NaN or infinity."""
    if not bool(torch.isfinite(embeds.float()).all()):
        raise OutputError("the prompt embedding holds NaN or infinity: use --dtype fp32, or get the encoder again")
    metadata = {
        "teasr.format": "1",
        "teasr.kind": "prompt",
        "teasr.prompt": prompt,
        "teasr.encoder_config": config_hash,
    }
    try:
        write_atomically(path, {PROMPT_KEY: embeds.to(torch.bfloat16)}, metadata)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give a place that can be") from None


def read_prompt(path: Path) -> torch.Tensor:
    """The embedding (T, W) bf16 of a file that `cache-prompt` wrote. ModelFileError for anything else."""
    tensors, metadata = read_tensors(path)
    if metadata.get("teasr.kind") != "prompt" or metadata.get("teasr.format") != "1":
        raise ModelFileError(
            f"{path.name} is no prompt file (format 1): expected one written by `python -m training cache-prompt`"
        )
    embeds = tensors.get(PROMPT_KEY)
    if embeds is None or embeds.ndim != 2 or 0 in embeds.shape:
        found = "no tensor" if embeds is None else f"shape {tuple(embeds.shape)}"
        raise ModelFileError(f"{path.name}: '{PROMPT_KEY}' has {found}, expected (T, W): write the file again")
    if not bool(torch.isfinite(embeds.float()).all()):
        raise ModelFileError(f"{path.name}: '{PROMPT_KEY}' holds NaN or infinity: write the file again")
    return embeds


def _first_with(names: list[str], folders: list[Path]) -> Path | None:
    return next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)


def _load_tokenizer(folders: EncoderFolders) -> Any:
    tokenizer_class, _ = _classes()
    try:
        tokenizer = tokenizer_class.from_pretrained(folders.tokenizer, local_files_only=True)
        count = len(tokenizer(TEMPLATE.split("{}")[0]).input_ids)
    except Exception as error:  # a damaged file raises many types
        raise ModelFileError(f"{folders.tokenizer} cannot be read as a tokenizer ({_cause(error)})") from None
    if count != TEMPLATE_TOKENS:
        raise ModelFileError(
            f"{folders.tokenizer} cuts the template into {count} tokens, expected {TEMPLATE_TOKENS}: it is not the "
            "tokenizer of Qwen2.5-VL"
        )
    return tokenizer


def _load_model(folders: EncoderFolders, dtype: torch.dtype | str) -> Any:
    _, model_class = _classes()
    try:
        model, report = model_class.from_pretrained(
            folders.text_encoder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # a damaged or missing file raises many types
        raise ModelFileError(f"{folders.text_encoder} cannot be loaded ({_cause(error)}): get it again") from None
    # What the files lack would be random numbers. The output head is not used here.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("lm_head"))
    wrong = missing + sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise ModelFileError(
            f"{folders.text_encoder}: {len(wrong)} tensors are missing or of another shape, first {wrong[:2]}: "
            "get the files again"
        )
    return model.eval()


def _classes() -> tuple[Any, Any]:
    try:
        from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
    except ImportError as error:
        raise InputError(
            f'cache-prompt needs transformers ({_cause(error)}): pip install "transformers>=4.57"'
        ) from None
    return Qwen2Tokenizer, Qwen2_5_VLForConditionalGeneration


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
