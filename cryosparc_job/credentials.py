"""The address of a cryoSPARC instance, and what proves who one is.

With cryosparc-tools 5 that is a token, which `sign_in` finds. Version 4 knows none: licence, email and
password come from the environment or from a file that only its owner can read. They are never an argument.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from ..core.errors import ConfigurationError

DEFAULT_PORT = 39000
LOGIN = "cryosparc_cryohush login"
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Credentials:
    """What version 4 asks for, and version 5 takes in place of a token; it never shows its values."""

    email: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    license: str = field(default="", repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in any text."""
        return tuple(value for value in (self.password, self.license) if value)


def normalise_url(text: str) -> str:
    """Return the address of an instance as the client wants it: `https://host:39000`.

    A missing `http://`, a slash at the end and the path of a page copied from the browser are put right.

    Raises
    ------
    ConfigurationError
        If it is no such address, or holds a password.
    """
    text = text.strip()
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query:
        raise ConfigurationError(
            f"--url {text!r}: expected the address at which a browser shows cryoSPARC, such as "
            f"https://host:{DEFAULT_PORT}."
        )
    if parts.username or parts.password:
        raise ConfigurationError(f"--url holds a user or password. Leave it out, and sign in with {LOGIN}.")
    path = parts.path.partition("/browse")[0].rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def read_credentials(path: Path | None, environ: Mapping[str, str]) -> Credentials:
    """Return the credentials of a file, or of `CRYOSPARC_EMAIL`, `_PASSWORD` and `_LICENSE_ID`.

    The file is YAML or JSON with the keys email, password and license; others do not matter.

    Raises
    ------
    ConfigurationError
        If others than the owner can read the file, or it is not such a file.
    """
    if path is None:
        return Credentials(
            environ.get("CRYOSPARC_EMAIL", ""),
            environ.get("CRYOSPARC_PASSWORD", ""),
            environ.get("CRYOSPARC_LICENSE_ID", ""),
        )
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & OTHERS or status.st_uid not in (os.getuid(), 0):
                raise ConfigurationError(
                    f"--credentials {path}: others can read the file, so its passwords are not safe. "
                    f"chmod 600 {path}, and change them if the machine is shared."
                )
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(f"--credentials {path}: cannot be read: {reason}.") from error
    except yaml.YAMLError:
        # what the parser says quotes the file
        raise ConfigurationError(f"--credentials {path}: is no YAML or JSON.") from None
    names = [entry.name for entry in fields(Credentials)]
    if not isinstance(values, dict) or not all(isinstance(values.get(name, ""), str) for name in names):
        raise ConfigurationError(f"--credentials {path}: expected lines such as `email: …`, for {names}.")
    return Credentials(**{name: values[name] for name in names if name in values})
