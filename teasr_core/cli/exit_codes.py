"""How every command of the core and of the trainer ends (docs/using/cli.md)."""

DONE = 0
BUG = 1  # an error of ours, with a traceback
BAD_INPUT = 2  # one line says what was found, what was expected and what to do
SOME_FAILED = 3  # of several images; the others are written
INTERRUPTED = 130  # Ctrl-C or a signal, as shells report it
