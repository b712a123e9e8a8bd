"""May a checkpoint go on under this config? Anything that would make the resumed run another run is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from teasr_core.errors import ConfigError

from ..config.toml import to_mapping

# Fields that may change when a run is resumed: they do not alter what a step computes.
FREE_RUN_FIELDS = ("output_dir", "threads", "workers", "log_every", "checkpoint_every", "keep_checkpoints",
                   "preview_every", "preview_images", "use_tensorboard", "trackers", "project")  # fmt: skip


def check_same(saved: dict[str, Any], wanted: dict[str, Any], default: Any, sections: Iterable[str]) -> None:
    """ConfigError naming the first field of these sections that differs, bookkeeping apart.

    `default` is a config of default values: a field that came after the checkpoint was written counts as its default.
    """
    saved, wanted, defaults = plain(saved), plain(wanted), plain(to_mapping(default))
    for section in sections:
        for key, value in wanted[section].items():
            if section == "run" and key in FREE_RUN_FIELDS:
                continue
            old = saved.get(section, {}).get(key, defaults[section][key])
            if old != value:
                raise ConfigError(
                    f"{section}.{key} is {value!r}, the checkpoint has {old!r}: "
                    "restore the old value or give the run a new run.output_dir"
                )


def plain(value: Any) -> Any:
    """Tuples to lists, so that a config read back from JSON compares equal."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
