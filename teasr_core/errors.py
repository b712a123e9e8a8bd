"""Errors a user can act on.

Every message says what was found, what was expected and what to do, in one line. The command line prints it and ends
with a code of `cli/exit_codes.py`; a node raises it as it is. Anything that is not a `TeasrError` is our own bug.
"""


class TeasrError(Exception):
    """Bad input. `str(error)` is one line: found, expected, what to do."""


class InputError(TeasrError):
    """A path, an image, a size or an option that cannot be used."""


class ModelFileError(TeasrError):
    """A weight file that is damaged, of another kind, or made for another model."""


class LoraFileError(ModelFileError):
    """A TEASR LoRA file that cannot be applied whole."""


class OutputError(TeasrError):
    """A result that must not be saved or shown, such as NaN pixels (R3)."""


class ConfigError(TeasrError):
    """A training configuration with an unknown key or an impossible value."""
