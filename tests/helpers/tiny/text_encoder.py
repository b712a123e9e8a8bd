"""A tiny Qwen2.5-VL with its tokenizer on disk: what `cache-prompt` reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from training.frozen_base.prompt_file import TEMPLATE

WIDTH = 16
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_text_encoder(folder: Path) -> Path:
    """A diffusers folder with text_encoder/ and tokenizer/."""
    write_tokenizer(folder / "tokenizer")
    write_model(folder / "text_encoder")
    (folder / "model_index.json").write_text("{}")
    return folder


def write_tokenizer(folder: Path, text: str = TEMPLATE) -> dict[str, Any]:
    """A byte-level BPE trained on `text`, small enough for a test; every word of the template is one token.

    Returns its vocabulary and merges, as `tokenizers` names them.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    backend = Qwen2Tokenizer()._tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        re.split("|".join(map(re.escape, SPECIAL)), text),
        trainers.BpeTrainer(
            vocab_size=600, min_frequency=1, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    model = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], additional_special_tokens=SPECIAL[1:]
    )
    tokenizer.save_pretrained(folder)
    return model


def write_model(folder: Path, vocab_size: int = 400) -> None:
    """A Qwen2.5-VL of two layers with random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": vocab_size, "initializer_range": 0.2,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        image_token_id=vocab_size - 1, video_token_id=vocab_size - 2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
