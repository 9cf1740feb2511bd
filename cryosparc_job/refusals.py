"""Why an instance cannot be reached, or does not let one in. No message holds a password or licence."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from .credentials import DEFAULT_PORT, LOGIN, Credentials

VERSION_4 = "the server is cryoSPARC 4. Install its client: pip install 'cryosparc-tools~=4.7.0'"
# Version 4 answers on three ports beside that of its pages.
_COMMAND_PORT_OFFSET = 2
_PROBE_SECONDS = 5.0


def why_not_5(url: str, error: BaseException, credentials: Credentials, *, by_password: bool) -> str:
    """Return what kept one out of a server that should be of version 5."""
    response = getattr(_cause(error), "response", None)
    code = getattr(_cause(error), "code", None) or getattr(response, "status_code", None)
    if code in (401, 403):
        how = "email and password were refused" if by_password else "the stored token was refused"
        return f"{url}: {how}. Sign in again: {LOGIN} --url {url}"
    if response is not None and 300 <= response.status_code < 400:
        target = response.headers.get("location", "elsewhere").partition("/api/cmd")[0]
        return f"{url}: leads to {target}. Give that address as --url."
    if speaks_version_4(url, credentials):
        return f"{url}: {VERSION_4}"
    return f"{url}: {_reason(error)}.{_hint(url, code)}"


def why_not_4(url: str, error: BaseException) -> str:
    """Return what kept one out of a server that should be of version 4."""
    code = getattr(_cause(error), "code", None) or getattr(error, "code", None)
    if "authentication" in str(error):
        # the text holds what was sent
        return f"{url}: email, password or licence were refused, or the connection was lost."
    if code in (401, 403):
        return f"{url}: the licence was refused (HTTP status {code}). It has to be that of this instance."
    if _speaks_version_5(url):
        return f"{url}: the server is cryoSPARC 5. Install its client: pip install 'cryosparc-tools~=5.0.0'"
    return f"{url}: {_reason(error)}.{_hint(url, None)}"


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


def speaks_version_4(url: str, credentials: Credentials) -> bool:
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
