"""`import-odtsr`: turn a checkpoint of ODTSR into a TEASR LoRA and the file of its second VAE encoder."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from teasr_core.cli.options import file_path


def add_import_odtsr(commands: Any) -> None:
    """Add `import-odtsr` to the subparsers `commands`."""
    parser = commands.add_parser("import-odtsr", help="turn a checkpoint of ODTSR into a TEASR LoRA and its encoder")
    parser.add_argument("checkpoint", type=file_path, metavar="FILE", help="net_gen_iter_*.pth of ODTSR")
    parser.add_argument("lora", type=file_path, metavar="OUT_LORA", help="the LoRA to write, a .safetensors file")
    parser.add_argument("encoder", type=file_path, metavar="OUT_VAE", help="the second VAE encoder to write, the same")
    parser.add_argument(
        "--prompt", type=file_path, metavar="FILE", help="the prompt's embedding, which `cache-prompt` wrote"
    )
    parser.add_argument(
        "--base",
        type=file_path,
        metavar="MODEL",
        help="the Qwen-Image it is for (folder or file), so that others are refused",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.set_defaults(run=_import_odtsr)


def _import_odtsr(args: argparse.Namespace) -> int:
    from teasr_core.errors import InputError
    from teasr_core.weight_files.lora_file import UNKNOWN_BASE, check_base, fingerprint, parse_lora
    from teasr_core.weight_files.qwen_file import read_qwen
    from teasr_core.weight_files.start_encoder import start_encoder_metadata

    from ..export.odtsr import import_tensors, read_checkpoint, summary_lines
    from ..export.output import check_output, write_output
    from ..frozen_base.prompt_file import read_prompt

    for output in (args.lora, args.encoder):
        check_output(output, args.checkpoint, args.overwrite)
    if args.lora.resolve() == args.encoder.resolve():
        raise InputError(f"{args.lora} is named twice: give the LoRA and the encoder a file each")
    prompt = None if args.prompt is None else read_prompt(args.prompt)
    source = None if args.base is None else read_qwen(args.base)
    if source is not None and source.is_fingerprint_fp8:
        raise InputError(
            f"{source.kind.path.name} keeps even its small tensors in fp8, so that nothing can be told by them: give "
            "the bf16 or a scaled fp8 file, or leave --base out"
        )
    own = UNKNOWN_BASE if source is None else fingerprint(source.fingerprint_tensors())
    imported = read_checkpoint(args.checkpoint)
    tensors, metadata = import_tensors(imported, args.checkpoint.name, args.encoder.name, prompt, own)
    if source is not None:
        lora = parse_lora(args.checkpoint.name, tensors, metadata)
        check_base(lora, source.architecture, source.prediction, source.fingerprint_tensors())
    # The LoRA comes last: one that is there has its encoder.
    write_output(args.encoder, imported.encoder, start_encoder_metadata(args.checkpoint.name))
    write_output(args.lora, tensors, metadata)
    print(f"wrote {args.lora}: LoRA, rank {imported.rank}, {imported.num_layers} blocks, {len(tensors)} tensors")
    print(f"wrote {args.encoder}: second VAE encoder, {len(imported.encoder)} tensors")
    for line in summary_lines(imported):
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
    if prompt is None:
        print(
            f"warning: {args.lora.name} holds no prompt embedding: wire a CLIPTextEncode in ComfyUI; the command line "
            "needs a file that was written with --prompt",
            file=sys.stderr,
        )
    if source is None:
        print(
            f"warning: without --base, {args.lora.name} accepts every model of Qwen-Image's shape: ODTSR was trained "
            "on the first Qwen-Image, so give it no other",
            file=sys.stderr,
        )
    return 0
