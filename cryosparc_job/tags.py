"""Tags of jobs that ask for something, such as `cryohush`, `cryohush: new` and `cryohush: model=J60`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r"\s*cryohush\s*(?::(?P<asked>.*))?\s*", re.IGNORECASE | re.DOTALL)
# What can be asked for of one output; the others need more than one.
COMMANDS = ("denoise", "extract-noise", "restore")
# Leaves out what was denoised before, in a set that grows: the exports of a Live session.
NEW = "new"


@dataclass(frozen=True)
class Tag:
    """What a tag asks for.

    Attributes
    ----------
    command
        One of `COMMANDS`.
    output
        Of the job; None where it has only one that fits.
    words
        Options, as on a command line.
    only_new
        Whether images that earlier cards have denoised are left out.
    """

    command: str
    output: str | None
    words: tuple[str, ...]
    only_new: bool = False


def read_tag(title: str) -> Tag | None:
    """Return what a tag asks cryohush for, or None if it is none of cryohush's."""
    found = _TAG.fullmatch(title)
    if found is None:
        return None
    command, output, words, only_new = "denoise", None, list[str](), False
    for entry in re.split(r"[\s,;]+", (found["asked"] or "").strip()):
        name, equals, value = entry.partition("=")
        if entry in COMMANDS:
            command = entry
        elif entry == NEW:
            only_new = True
        elif name == "output" and value:
            output = value
        elif name:
            words += [f"--{name.lstrip('-').replace('_', '-')}", *([value] if equals else [])]
    return Tag(command, output, tuple(words), only_new)
