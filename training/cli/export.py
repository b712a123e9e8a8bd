"""`export`: write the weights of a run into a file to give away, a base or a LoRA, whichever the run trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from teasr_core.cli.options import file_path
from teasr_core.cli.terminal import write_line
from teasr_core.errors import InputError

if TYPE_CHECKING:
    from teasr_core.codec.condition_encoder.encoder import ConditionEncoder


def add_export(commands: Any) -> None:
    """Add `export` to the subparsers `commands`."""
    parser = commands.add_parser("export", help="write a run's weights as a base or a LoRA file")
    parser.add_argument(
        "run_dir", type=file_path, metavar="RUN", help="folder of a run, one checkpoint, or a TEASR LoRA"
    )
    parser.add_argument("output", type=file_path, metavar="OUT")
    parser.add_argument("--weights", choices=["ema", "raw"], default="ema", help="averaged, or the last step's")
    parser.add_argument(
        "--all-tokens-unsafe",
        choices=["transformer", "diffusion_model"],
        nargs="?",
        const="transformer",
        help="write a LoRA with the keys of an ordinary one (default transformer), which stock loaders apply to every "
        "token: not what it was trained for",
    )
    parser.add_argument(
        "--blend-encoder",
        nargs=2,
        metavar=("FILE", "SHARE"),
        help="of a base: mix SHARE (0 to 1) of FILE into the condition encoder; FILE is a base file, builtin, or an "
        "RRDBNet such as RealESRGAN_x4plus.pth",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from ..export.lora import export_lora, holds_lora
    from ..export.output import check_output
    from ..run.checkpoint import newest_checkpoint

    source = newest_checkpoint(args.run_dir)
    check_output(args.output, source, args.overwrite)
    prefix = f"{args.all_tokens_unsafe}." if args.all_tokens_unsafe else None
    if holds_lora(source) or prefix:
        if args.blend_encoder:
            raise InputError(f"--blend-encoder is for a base, {args.run_dir} holds a LoRA: leave it out")
        summary = export_lora(source, args.output, args.weights, prefix)
        write_line(
            f"wrote {args.output}: LoRA, rank {summary['rank']}, {summary['steps']} steps, keys {summary['prefix']}*"
        )
        if prefix:
            _warn(
                f"a stock LoRA loader applies {args.output.name} to every token, which is not what it was trained for; "
                "TEASRApplyLoRA still applies it to the condition tokens alone"
            )
        if not summary["has_prompt"]:
            _warn(f"{args.output.name} holds no prompt embedding: TEASRApplyLoRA's conditioning needs a file that does")
        return 0
    from ..export.base import export_base

    summary = export_base(source, args.output, args.weights, _blend(args.blend_encoder))
    write_line(f"wrote {args.output}: base, {summary['steps']} steps, {summary['hours']} h")
    return 0


def _blend(values: list[str] | None) -> Callable[[ConditionEncoder], dict[str, Any]] | None:
    if values is None:
        return None
    from ..pretrain.blend import blend_encoder

    try:
        return partial(blend_encoder, name=values[0], share=float(values[1]))
    except ValueError:
        raise InputError(f"--blend-encoder: the share is '{values[1]}', expected a number from 0 to 1") from None


def _warn(text: str) -> None:
    write_line(f"warning: {text}", sys.stderr)
