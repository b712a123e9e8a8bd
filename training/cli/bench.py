"""`bench`: measure what a distillation step takes on this machine, with random weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from teasr_core.cli.options import file_path, integer
from teasr_core.errors import InputError

from ..config.presets import config_file


def add_bench(commands: Any) -> None:
    """Add `bench` to the subparsers `commands`."""
    parser = commands.add_parser("bench", help="memory by phase and seconds of a distillation step, random weights")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="of distill; without it, its defaults")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--architecture", choices=("builtin", "qwen-image"), help="default: what base.path means")
    parser.add_argument("--layers", type=integer("layers"), help="transformer blocks")
    parser.add_argument("--heads", type=integer("heads"))
    parser.add_argument("--width", type=integer("width"), help="heads times the width of a head")
    parser.add_argument("--steps", type=integer("steps"), default=3, help="timed steps of each kind")
    parser.add_argument("--vram", metavar="auto|GIB", help="memory.vram_gb; auto is what the GPU has free")
    parser.add_argument("--decode", action="store_true", help="decode the one-step result and compare pixels")
    parser.add_argument(
        "--vae-width", type=integer("vae-width"), default=None, help="base_dim of the random VAE; 96 is Qwen-Image's"
    )
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write the result there")
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    from ..bench.report import format_result, to_json
    from ..bench.settings import bench_settings
    from ..bench.step import run
    from ..memory.config import vram_gb_of
    from ..memory.costs import VAE_BASE_DIM

    config, overrides = args.config, args.overrides
    if config is not None and "=" in config and not Path(config).exists():  # an override stands in CONFIG's place
        config, overrides = None, [config, *overrides]
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise InputError(f"--json: there is no folder {args.json.absolute().parent}, make it first")
    settings = bench_settings(
        None if config is None else config_file(config), overrides, args.architecture,
        args.layers, args.heads, args.width, args.steps, args.decode,
        VAE_BASE_DIM if args.vae_width is None else args.vae_width,
        None if args.vram is None else vram_gb_of(args.vram),
    )  # fmt: skip
    result = run(settings)
    print(format_result(result))
    if args.json is not None:
        args.json.write_text(json.dumps(to_json(result), indent=1) + "\n", encoding="utf-8")
    return 0
