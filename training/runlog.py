"""One JSON object a line in `log.jsonl`; a short line on the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


class RunLog:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"

    def write(self, **values: Any) -> None:
        values = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **values}) + "\n")
        print("  ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()), flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
