import argparse
import sys


def start() -> int:
    try:
        from .cli.commands import main
    except ModuleNotFoundError as error:  # such as torch
        return _without(error)
    return main()


def _without(error: ModuleNotFoundError) -> int:
    """`doctor` runs without the packages whose absence it reports; everything else names the first one."""
    if sys.argv[1:2] != ["doctor"]:
        fix = "pip install -e '.[training]'; `python -m training doctor` lists what is missing"
        print(f"error: the package '{error.name}' is not installed: {fix}", file=sys.stderr)
        return 2
    from .cli import doctor as cli_doctor

    parser = argparse.ArgumentParser(prog="python -m training")
    cli_doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":  # data workers may import this module again
    sys.exit(start())
