"""Signing in to a cryoSPARC instance: the address, what proves who one is, and why it did not work.

With cryosparc-tools 5 that is the token which `login` here, or `python -m cryosparc.tools login`, has stored.
Version 4 knows none: licence, email and password come from the environment or from a file that only its owner
can read. They are never an argument, and no message of this module holds them.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import hashlib
import json
import os
import stat
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ..core.errors import ConfigurationError, HostError, OutputError, missing_package
from .instance import Instance

DEFAULT_PORT = 39000
# Version 4 answers on three ports beside that of its pages.
_COMMAND_PORT_OFFSET = 2
_PROBE_SECONDS = 5.0
_OWNER_ONLY = stat.S_IRWXG | stat.S_IRWXO
_VERSION_4 = "the server is cryoSPARC 4. Install its client: pip install 'cryosparc-tools~=4.7.0'"
LOGIN = "cryosparc_cryohush login"
LONGEST_DAYS = 365


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
            if status.st_mode & _OWNER_ONLY or status.st_uid not in (os.getuid(), 0):
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


def sign_in(url: str, credentials: Credentials) -> Instance:
    """Return the instance at an address, signed in to.

    Raises
    ------
    ConfigurationError
        If cryosparc-tools is missing.
    HostError
        If the instance cannot be reached or does not let one in.
    """
    try:
        import cryosparc
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    # A try that failed is announced by a warning before the next one. Made an error, it remains the only one:
    # the client repeats whatever it was, creates a job twice, or sends a body that the first try has used up.
    warnings.filterwarnings("error", message=r"(?s)\*\*\* .*attempt \d", category=UserWarning)
    warnings.filterwarnings("ignore", message=r"(?s)\*\*\* .*HTTP Error", category=UserWarning)
    version, secrets = cryosparc.__version__, credentials.secrets
    with _other_minor_versions() as noted:
        if int(version.partition(".")[0]) >= 5:
            client, address = _connect_5(url, credentials)
            instance = Instance(
                client,
                version,
                url,
                remedy=f"Sign in again: {LOGIN} --url {url}",
                secrets=secrets,
                renew=lambda: _renew(client, address, credentials),
            )
        else:
            instance = Instance(_connect_4(url, credentials), version, url, secrets=secrets)
    for line in noted:
        print(f"WARNING: {line}", file=sys.stderr)
    return instance


def _renew(client: Any, address: str | None, credentials: Credentials) -> bool:
    """Take up a token that was stored since, or sign in by password; tell whether either was possible."""
    from cryosparc.auth import InstanceAuthSessions

    headers = client.api._client.headers
    before = headers.get("Authorization")
    try:
        if address is None:
            password = hashlib.sha256(credentials.password.encode()).hexdigest()
            client.api._authorize((credentials.email, password))
        elif (session := InstanceAuthSessions.load().find(address)) is not None:
            client.api._authorize(session.token.access_token)
    except Exception:  # whatever it is, one is not signed in anew
        return False
    return bool(headers.get("Authorization") != before)


def login(url: str, email: str | None, days: int, secrets: list[str]) -> None:
    """Ask for a password and store the token that cryoSPARC 5 gives for it, for this user's eyes only.

    Raises
    ------
    ConfigurationError
        If the client is of version 4, or the time is too long.
    HostError
        If the instance cannot be reached or refuses.
    """
    try:
        import cryosparc
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    if int(cryosparc.__version__.partition(".")[0]) < 5:
        raise ConfigurationError(
            "cryoSPARC 4 has no tokens. Set CRYOSPARC_EMAIL, CRYOSPARC_PASSWORD and CRYOSPARC_LICENSE_ID, or "
            "name a file that only you can read with --credentials."
        )
    from cryosparc.api import APIClient
    from cryosparc.auth import InstanceAuthSessions, get_default_auth_config_path
    from cryosparc.constants import API_SUFFIX

    if not 1 <= days <= LONGEST_DAYS:
        raise ConfigurationError(f"--days {days}: expected 1 to {LONGEST_DAYS}.")
    email = email or input("Email: ").strip()
    password = getpass.getpass("Password: ")
    secrets.append(password)
    warnings.filterwarnings("error", message=r"(?s)\*\*\* .*attempt \d", category=UserWarning)
    seconds = days * 24 * 3600
    try:
        client = APIClient(f"{url}{API_SUFFIX}")
        try:
            token = client.login(
                grant_type="password",
                username=email,
                password=hashlib.sha256(password.encode()).hexdigest(),
                expires_in=seconds,
            )
        finally:
            client._client.close()
    except Exception as error:
        raise HostError(_why_not_5(url, error, Credentials(), by_password=True)) from None
    path = get_default_auth_config_path()
    sessions = InstanceAuthSessions.load()
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    sessions.insert(url, email, token, expires)
    mask = os.umask(_OWNER_ONLY)
    try:
        sessions.save()
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}.") from error
    finally:
        os.umask(mask)
    print(f"signed in to {url} as {email} until {expires:%Y-%m-%d}")


@contextlib.contextmanager
def _other_minor_versions() -> Iterator[list[str]]:
    """Collect the client's warning that its version is not the server's, which need not stop anybody."""
    noted: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("default", message=r"(?s).*may not be compatible", category=UserWarning)
        show = warnings.showwarning
        warnings.showwarning = lambda message, category, *rest, **more: noted.append(
            str(message).partition("\n")[0]
        )
        try:
            yield noted
        finally:
            warnings.showwarning = show


def _connect_5(url: str, credentials: Credentials) -> tuple[Any, str | None]:
    """Return the client, and the address by which its token was found; None if it has one by a password."""
    from cryosparc.auth import InstanceAuthSessions
    from cryosparc.tools import CryoSPARC

    sessions = InstanceAuthSessions.load().root
    _advise_on_token_file()
    # A token is found only by the very address that it was asked for with.
    address = next(
        (known for known in sessions if normalise_url(known) == url and sessions[known].root), None
    )
    by_password = bool(credentials.email and credentials.password)
    if address is None and not by_password:
        if _speaks_version_4(url, credentials):
            raise HostError(f"{url}: {_VERSION_4}")
        others = ", ".join(known for known in sessions if sessions[known].root)
        raise HostError(
            f"nobody is signed in to {url}, or the token has expired. {LOGIN} --url {url}"
            + (f" (there are tokens for {others})" if others else "")
        )
    by_password = by_password and address is None
    try:
        client = CryoSPARC(
            address or url,
            host=None,
            base_port=None,
            email=credentials.email if by_password else None,
            password=credentials.password if by_password else None,
        )
        return client, None if by_password else address
    except Exception as error:
        # Its text and those of its causes may hold what was sent.
        raise HostError(_why_not_5(url, error, credentials, by_password=by_password)) from None


def _why_not_5(url: str, error: BaseException, credentials: Credentials, *, by_password: bool) -> str:
    """Return what kept one out of a server that should be of version 5."""
    response = getattr(_cause(error), "response", None)
    code = getattr(_cause(error), "code", None) or getattr(response, "status_code", None)
    if code in (401, 403):
        how = "email and password were refused" if by_password else "the stored token was refused"
        return f"{url}: {how}. Sign in again: {LOGIN} --url {url}"
    if response is not None and 300 <= response.status_code < 400:
        target = response.headers.get("location", "elsewhere").partition("/api/cmd")[0]
        return f"{url}: leads to {target}. Give that address as --url."
    if _speaks_version_4(url, credentials):
        return f"{url}: {_VERSION_4}"
    return f"{url}: {_reason(error)}.{_hint(url, code)}"


def _connect_4(url: str, credentials: Credentials) -> Any:
    import cryosparc.command
    from cryosparc.tools import LICENSE_REGEX, CryoSPARC

    parts = urlsplit(url)
    if parts.scheme == "https":
        raise HostError(
            f"{url}: cryosparc-tools 4 speaks http only, on ports behind the one of the pages. Give "
            f"http://{parts.hostname}:{parts.port or DEFAULT_PORT}, inside the network of the instance."
        )
    if not (credentials.email and credentials.password and LICENSE_REGEX.fullmatch(credentials.license)):
        raise HostError(
            "cryosparc-tools 4 needs email, password and licence: set CRYOSPARC_EMAIL, CRYOSPARC_PASSWORD "
            "and CRYOSPARC_LICENSE_ID, or name a file that only you can read with --credentials."
        )
    # Its loop ends before this many tries, after a pause.
    cryosparc.command.MAX_ATTEMPTS, cryosparc.command.RETRY_INTERVAL = 2, 0
    try:
        return CryoSPARC(
            license=credentials.license,
            host=parts.hostname,
            base_port=parts.port or DEFAULT_PORT,
            email=credentials.email,
            password=credentials.password,
        )
    except Exception as error:
        code = getattr(_cause(error), "code", None) or getattr(error, "code", None)
        if "authentication" in str(error):
            # the text holds what was sent
            why = "email, password or licence were refused, or the connection was lost."
        elif code in (401, 403):
            why = f"the licence was refused (HTTP status {code}). It has to be that of this instance."
        elif _speaks_version_5(url):
            why = "the server is cryoSPARC 5. Install its client: pip install 'cryosparc-tools~=5.0.0'"
        else:
            why = f"{_reason(error)}.{_hint(url, None)}"
        raise HostError(f"{url}: {why}") from None


def _advise_on_token_file() -> None:
    from cryosparc.auth import get_default_auth_config_path

    path = get_default_auth_config_path()
    with contextlib.suppress(OSError):
        if path.stat().st_mode & _OWNER_ONLY:
            print(f"WARNING: others can read your cryoSPARC tokens: chmod 600 {path}", file=sys.stderr)


def _cause(error: BaseException) -> BaseException:
    """Return the first error that led to this one."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def _reason(error: BaseException) -> str:
    first = _cause(error)
    return (str(first).partition("\n")[0] or type(first).__name__)[:300].rstrip(".")


def _hint(url: str, code: int | None) -> str:
    """Return what may help when a server cannot be talked to."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if parts.scheme in proxies and not urllib.request.proxy_bypass(parts.hostname or ""):
        return (
            f" A proxy stands in the way (the environment variable {parts.scheme}_proxy); if it need not, "
            f"export no_proxy={parts.hostname}"
        )
    other = "http" if parts.scheme == "https" else "https"
    if code is None:
        return f" Is the instance running, can this machine reach it, and is it not {other}://{parts.netloc}?"
    return f" Is that the address of cryoSPARC (HTTP status {code})?"


def _speaks_version_4(url: str, credentials: Credentials) -> bool:
    parts = urlsplit(url)
    port = (parts.port or DEFAULT_PORT) + _COMMAND_PORT_OFFSET
    question = {"jsonrpc": "2.0", "method": "system.describe", "params": [], "id": "cryohush"}
    code, answer = _ask(
        f"http://{parts.hostname}:{port}/api", json.dumps(question).encode(), credentials.license
    )
    if isinstance(answer, dict) and "jsonrpc" in answer:
        return True
    # without its licence, version 4 says no more than that; version 5 has nothing at this address
    return code in (401, 403) and not _speaks_version_5(url)


def _speaks_version_5(url: str) -> bool:
    _, answer = _ask(f"{url}/api/cmd/openapi.json")
    return isinstance(answer, dict) and "paths" in answer


def _ask(url: str, data: bytes | None = None, licence: str = "") -> tuple[int | None, Any]:
    """Return the status and the JSON that a server answers, or None for either."""
    headers = {"Content-Type": "application/json", **({"License-ID": licence} if licence else {})}
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None
    except (OSError, ValueError):
        return None, None
