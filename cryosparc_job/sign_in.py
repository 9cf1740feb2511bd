"""Signing in to a cryoSPARC instance: by a stored token, or by password and licence.

Tokens of version 5 are those that `login` here, or `python -m cryosparc.tools login`, has stored.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import ConfigurationError, HostError, OutputError, missing_package
from .credentials import DEFAULT_PORT, LOGIN, OTHERS, Credentials, normalise_url
from .instance import Instance
from .refusals import VERSION_4, speaks_version_4, why_not_4, why_not_5

LONGEST_DAYS = 365


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
        raise HostError(why_not_5(url, error, Credentials(), by_password=True)) from None
    path = get_default_auth_config_path()
    sessions = InstanceAuthSessions.load()
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    sessions.insert(url, email, token, expires)
    mask = os.umask(OTHERS)
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
        if speaks_version_4(url, credentials):
            raise HostError(f"{url}: {VERSION_4}")
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
        raise HostError(why_not_5(url, error, credentials, by_password=by_password)) from None


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
        raise HostError(why_not_4(url, error)) from None


def _advise_on_token_file() -> None:
    from cryosparc.auth import get_default_auth_config_path

    path = get_default_auth_config_path()
    with contextlib.suppress(OSError):
        if path.stat().st_mode & OTHERS:
            print(f"WARNING: others can read your cryoSPARC tokens: chmod 600 {path}", file=sys.stderr)
