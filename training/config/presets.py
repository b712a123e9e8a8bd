"""A config is a TOML file of the user's, or the name of a preset that ships with the trainer."""

from pathlib import Path

PRESETS = Path(__file__).parents[1] / "configs"


def config_file(name: str) -> Path:
    """The file `name` where there is one, else the preset of that name, else the path as it is.

    A preset is named by its path below `training/configs`, such as `distill/first`. That folder may stand in front of
    it and `.toml` behind it, so that the commands in the documents work in any folder once the package is installed.
    """
    path = Path(name)
    preset = (PRESETS / path.as_posix().removeprefix("training/configs/")).with_suffix(".toml")
    return preset if not path.exists() and preset.is_file() else path
