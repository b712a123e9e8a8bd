"""`python -m training`, and the command `teasr-train` where the package is installed."""

import argparse
import sys

from teasr_core.cli.exit_codes import BAD_INPUT
from teasr_core.cli.terminal import lasting_streams, write_line
from teasr_core.cli.threads import wait_briefly


def start() -> int:
    wait_briefly()
    try:
        from .cli.commands import main
    except ModuleNotFoundError as error:  # such as torch
        with lasting_streams():
            return _doctor_or_refusal(error)
    return main()


def _doctor_or_refusal(error: ModuleNotFoundError) -> int:
    """Run `doctor`, which works without the packages that it misses. Any other command names the package."""
    if sys.argv[1:2] != ["doctor"]:
        fix = 'pip install -e ".[training]"; `python -m training doctor` lists what is missing'
        write_line(f"error: the package '{error.name}' is not installed: {fix}", sys.stderr)
        return BAD_INPUT
    from .cli.doctor import add_doctor

    parser = argparse.ArgumentParser(prog="python -m training")
    add_doctor(parser.add_subparsers())
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":  # data workers may import this module again
    sys.exit(start())
