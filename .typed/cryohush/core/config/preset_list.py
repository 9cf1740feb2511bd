"""The shipped presets by name, without reading them as YAML: `--help` has no time for that."""

from __future__ import annotations

import re
from pathlib import Path

PRESET_FOLDER = Path(__file__).parent / "presets"


def preset_descriptions() -> dict[str, str]:
    """Return the line `description: …` of each preset, by its name."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PRESET_FOLDER.glob("*.yaml"))}
    found = {name: re.search(r"^description: (.+)$", text, re.MULTILINE) for name, text in texts.items()}
    return {name: line[1] if line else "" for name, line in found.items()}
