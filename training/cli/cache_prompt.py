"""`cache-prompt`: write the prompt embedding of Qwen-Image into a small file."""

from __future__ import annotations

import argparse
from typing import Any

from teasr_core.cli.options import file_path
from teasr_core.cli.terminal import write_line


def add_cache_prompt(commands: Any) -> None:
    """Add `cache-prompt` to the subparsers `commands`."""
    parser = commands.add_parser("cache-prompt", help="store Qwen-Image's embedding of a prompt, the empty one")
    parser.add_argument(
        "--text-encoder",
        type=file_path,
        required=True,
        metavar="DIR",
        help="a folder with text_encoder/ and tokenizer/",
    )
    parser.add_argument("output", type=file_path, metavar="OUT", help="a .safetensors file")
    parser.add_argument("--prompt", default="", help="default: empty")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto", help="auto = the weights' own")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=_cache_prompt)


def _cache_prompt(args: argparse.Namespace) -> int:
    from teasr_core.errors import InputError

    from ..frozen_base.prompt_file import encode_prompt, find_encoder, write_prompt

    if args.output.suffix != ".safetensors":
        raise InputError(f"{args.output} ends in '{args.output.suffix}': expected .safetensors")
    if args.output.is_dir() or (args.output.exists() and not args.overwrite):
        raise InputError(f"{args.output} exists already: give another name or pass --overwrite")
    if not args.text_encoder.is_dir():
        raise InputError(f"{args.text_encoder} is no folder: give the one with text_encoder/ and tokenizer/")
    folders = find_encoder(args.text_encoder)
    embeds = encode_prompt(folders, args.prompt, args.dtype)
    write_prompt(args.output, embeds, args.prompt, folders.config_hash)
    write_line(f"wrote {args.output}: {embeds.shape[0]} tokens x {embeds.shape[1]}, {args.output.stat().st_size} bytes")
    return 0
