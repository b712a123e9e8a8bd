"""The command line of the trainer: `python -m training pretrain | distill | export | eval | ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from teasr_core.cli.commands import OneLineParser, one_line
from teasr_core.cli.exit_codes import BAD_INPUT, INTERRUPTED
from teasr_core.cli.terminal import lasting_streams, stop_signals, write_line
from teasr_core.errors import TeasrError

from ..config.presets import config_file
from .bench import add_bench
from .cache_prompt import add_cache_prompt
from .degrade import add_degrade
from .doctor import add_doctor
from .eval import add_eval
from .export import add_export
from .import_odtsr import add_import_odtsr

CONFIG_HELP = "a TOML file, or a preset such as distill/first"


def main(argv: Sequence[str] | None = None) -> int:
    with lasting_streams():
        args = _parse(argv)
        try:
            with stop_signals():
                return args.run(args)
        except TeasrError as error:
            write_line(f"error: {one_line(error)}", sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:  # a trainer has saved by then; the same command goes on
            write_line("interrupted: run the same command again to go on", sys.stderr)
            return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m training", description="Train and measure TEASR models.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)

    pretrain = commands.add_parser("pretrain", help="train a small base from scratch; resumes from run.output_dir")
    pretrain.add_argument("config", type=config_file, help=CONFIG_HELP)
    pretrain.add_argument("overrides", nargs="*", metavar="section.key=value")
    pretrain.set_defaults(run=_pretrain)

    distill = commands.add_parser("distill", help="train a LoRA on a frozen base; resumes from run.output_dir")
    distill.add_argument("config", type=config_file, help=CONFIG_HELP)
    distill.add_argument("overrides", nargs="*", metavar="section.key=value")
    distill.add_argument("--vram", metavar="auto|GIB", help="memory.vram_gb; auto is what the GPU has free")
    distill.set_defaults(run=_distill)

    for add in (add_export, add_import_odtsr, add_eval, add_degrade, add_cache_prompt, add_doctor, add_bench):
        add(commands)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments. argparse ends the overrides at the first flag; those behind it are added here."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in text and not text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _pretrain(args: argparse.Namespace) -> int:
    from ..config.pretrain import load_config
    from ..pretrain.trainer import Pretrainer

    trainer = Pretrainer(load_config(args.config, args.overrides))
    trainer.train()
    return 0


def _distill(args: argparse.Namespace) -> int:
    from ..config.distill import load_distill_config
    from ..distill.trainer import Distiller
    from ..memory.config import vram_gb_of

    vram = [] if args.vram is None else [f"memory.vram_gb={vram_gb_of(args.vram)}"]
    Distiller(load_distill_config(args.config, [*args.overrides, *vram])).train()
    return 0
