"""`python -m teasr_core`, and the command `teasr` where the package is installed."""

import sys

from .cli.exit_codes import BAD_INPUT
from .cli.terminal import lasting_streams, write_line
from .cli.threads import wait_briefly


def start() -> int:
    wait_briefly()
    try:
        from .cli.commands import main
    except ModuleNotFoundError as error:  # such as torch
        fix = 'run pip install ".[standalone]" in a checkout of TEASR'
        with lasting_streams():
            write_line(f"error: the package '{error.name}' is not installed: {fix}", sys.stderr)
        return BAD_INPUT
    return main()


if __name__ == "__main__":
    sys.exit(start())
