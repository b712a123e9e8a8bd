"""One finding of `doctor`, a line of text with its remedy."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, MISSING = "ok", "note", "missing"


@dataclass(frozen=True)
class Finding:
    """level: ok, note (not needed) or missing (needed for what is examined). fix: what to do, or empty."""

    level: str
    name: str
    text: str
    fix: str = ""

    def line(self) -> str:
        """E.g. `missing lpips        not installed: the perceptual loss -> pip install "lpips>=0.1.4"`."""
        text = f"{self.level:<7} {self.name:<12} {self.text}" + (f" -> {self.fix}" if self.fix else "")
        return " ".join(text.splitlines())
