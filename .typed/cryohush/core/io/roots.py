"""The folder that the image names of a table are relative to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import InputError


def find_root(
    path: Path,
    names: list[str],
    root: Path | None,
    error: Callable[[int, str, str], InputError],
    *,
    own_folder_first: bool = False,
    what: str = "the stack",
) -> Path:
    """Return the folder that a table's relative image names start from.

    Parameters
    ----------
    path
        The table.
    names
        The image files, as it names them.
    root
        The folder. None: the first that holds the first file, of the working directory, the table's own
        folder and its parents.
    error
        Makes an error of the position of a missing file, the problem and the remedy.
    own_folder_first
        Try the table's own folder before the working directory.
    what
        What a file is, for the error's text.

    Raises
    ------
    InputError
        If a file does not exist: what `error` made.
    """
    folder = path.absolute().parent
    around = [folder, Path.cwd()] if own_folder_first else [Path.cwd(), folder]
    candidates = [root.absolute()] if root else list(dict.fromkeys([*around, *folder.parents]))
    relative = next((name for name in names if not Path(name).is_absolute()), None)
    if relative is None:
        chosen = candidates[0]
    else:
        chosen = next((folder for folder in candidates if (folder / relative).is_file()), candidates[0])
    missing = [name for name in names if not (chosen / name).is_file()]
    if missing:
        tried = [chosen] if missing[0] != relative else candidates
        places = "" if Path(missing[0]).is_absolute() else f" Looked in: {', '.join(map(str, tried))}."
        raise error(
            names.index(missing[0]),
            f"{what} {missing[0]} does not exist ({len(missing)} of {len(names)} are missing).{places}",
            "" if root else "Run in the project's directory.",
        )
    return chosen
