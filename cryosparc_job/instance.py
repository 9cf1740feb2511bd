"""Requests to a cryoSPARC instance, alike through cryosparc-tools 4.7 and 5.0, whatever is answered.

The client repeats nothing by itself (see `sign_in.sign_in`): what was lost on the way is repeated here, after
looking whether it had arrived. An answer is one of four things: what was asked for; a sign that the server or
the way to it is unwell (asked again for minutes); the news that nobody is signed in any more (the token is
read again, in case somebody has signed in anew); or a refusal.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..core.errors import HostError

# How long a lost connection is worth waiting for, and the pauses between the tries.
PATIENCE_SECONDS = 600.0
# An error inside of the server passes, if it does, soon; so does a refusal of what was granted before.
INTERNAL_ERROR, ERROR_PATIENCE_SECONDS = 500, 30.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0

_UNAUTHORISED, _FORBIDDEN = 401, 403
# Status codes of a server, or of a proxy before it, that is unwell or overloaded.
_PASSING = (408, 425, 429, 500, *range(502, 600))
_NO_JSON = ("JSONDecodeError", "UnicodeDecodeError", "ValidationError")

T = TypeVar("T")


class Refused(HostError):
    """The server did answer, and does not do it.

    Attributes
    ----------
    code
        The status code; None if the client refused. Version 4 gives all of its own errors the code 500.
    """

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class ConnectionLost(HostError):
    """The server did not answer, or was unwell, for as long as was waited."""


class SignedOut(ConnectionLost):
    """The server no longer knows who asks, and nobody has signed in anew for as long as was waited."""


class Instance:
    """A signed-in client.

    Parameters
    ----------
    client
        Of cryosparc-tools.
    tools_version
        Version of cryosparc-tools.
    url
        Of the instance.
    remedy
        How to sign in anew.
    secrets
        What is cut out of every text that is shown.
    renew
        Takes up a sign-in that was made since; tells whether there was one.

    Attributes
    ----------
    requests
        Requests sent so far; version 4 does not say.
    refusals_may_pass
        Whether a refusal is tried again for a moment even where nothing is lost yet: if nobody waits.
    """

    def __init__(
        self,
        client: Any,
        tools_version: str,
        url: str,
        *,
        remedy: str = "",
        secrets: Sequence[str] = (),
        renew: Callable[[], bool] = lambda: False,
    ) -> None:
        self.client, self.tools_version, self.url = client, tools_version, url
        self._remedy, self._secrets, self._renew = remedy, tuple(secrets), renew
        self.is_5 = int(tools_version.partition(".")[0]) >= 5
        self.requests, self.refusals_may_pass = 0, False
        if self.is_5:
            client.api._client.event_hooks["request"].append(self._count)

    def _count(self, request: Any) -> None:
        self.requests += 1

    @property
    def name(self) -> str:
        """Host and port of the instance, as a name for a folder."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}_{parts.port or parts.scheme}"

    def close(self) -> None:
        """Close the connection, which the client leaves to the garbage collector."""
        if self.is_5:
            self.client.api._client.close()

    def hurry(self, seconds: float) -> None:
        """Wait no longer than this for an answer from now on."""
        if self.is_5:
            self.client.api._client.timeout = seconds
        else:
            for service in (self.client.cli, self.client.vis, self.client.rtp):
                service._timeout = seconds

    def redact(self, text: str) -> str:
        """Return a text without passwords."""
        for secret in self._secrets:
            text = text.replace(secret, "[…]")
        return text

    def call(
        self,
        doing: str,
        action: Callable[[], T],
        *,
        arrived: Callable[[], T | None] | None = None,
        patience_seconds: float | None = None,
        when_refused: Callable[[], None] | None = None,
    ) -> T:
        """Do something with the server, again and again while there is no proper answer.

        Parameters
        ----------
        doing
            What is done, for messages.
        action
            One request, or several that may be repeated as a whole.
        arrived
            Asked before a repetition: the result, if the first try did arrive and only its answer was lost.
        patience_seconds
            How long to go on trying; `PATIENCE_SECONDS` without it.
        when_refused
            Makes a refusal a thing that may pass: called before each repetition, to raise if it cannot.
            Without it, and for somebody who is not signed in, there is no second try.

        Raises
        ------
        Refused
            If the server refuses.
        ConnectionLost
            If the server stays away, or nobody is signed in any more.
        """
        patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return action()
            except Exception as error:
                may_pass = self.refusals_may_pass or when_refused is not None
                failure, limit = self._judge(doing, error, patience, may_pass=may_pass)
                if time.monotonic() + pause > began + limit:
                    raise failure from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if isinstance(failure, Refused) and when_refused is not None:
                when_refused()
            if arrived is not None:
                found = self.call(
                    f"see whether it was possible to {doing}",
                    arrived,
                    patience_seconds=patience_seconds,
                    when_refused=when_refused or (lambda: None),
                )
                if found is not None:
                    return found

    def _judge(
        self, doing: str, error: Exception, patience: float, *, may_pass: bool
    ) -> tuple[HostError, float]:
        """Return what an error means, and how long to go on trying, in seconds."""
        lost, code = lost_connection(error), getattr(error, "code", None)
        if lost is not None:
            if code == INTERNAL_ERROR:
                patience = min(patience, ERROR_PATIENCE_SECONDS)
            return ConnectionLost(self.redact(f"cannot {doing}: the connection is lost ({lost}).")), patience
        if code in (_UNAUTHORISED, _FORBIDDEN) and self._renew():
            return ConnectionLost(f"cannot {doing}: signed in anew."), max(patience, ERROR_PATIENCE_SECONDS)
        if code == _UNAUTHORISED:
            text = f"cannot {doing}: the sign-in is no longer valid ({reason(error)}). {self._remedy}"
            return SignedOut(self.redact(text)), patience if may_pass else 0.0
        refused = Refused(self.redact(f"cannot {doing}: {reason(error)}"), code)
        return refused, min(patience, ERROR_PATIENCE_SECONDS) if may_pass else 0.0


def lost_connection(error: BaseException) -> str | None:
    """Return what is wrong with the connection or the server, or None if it did answer."""
    kind, code = type(error).__name__, getattr(error, "code", None)
    if isinstance(error, UserWarning) and str(error).startswith("*** "):
        # the client's announcement of another try, made an error
        return reason(error.__context__ or error)
    if isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException | urllib.error.URLError):
        return reason(error)
    if kind in _NO_JSON:
        return "the answer is none of cryoSPARC's"
    if kind == "APIError" and (code is None or code < 400 or code in _PASSING):
        return f"HTTP status {code}"
    # version 4 gives each of its own errors the code 500, and none to an empty answer
    if kind == "CommandError" and (code is None or (code in _PASSING and code != INTERNAL_ERROR)):
        return "an empty answer" if code is None else f"HTTP status {code}"
    return None


def reason(error: BaseException) -> str:
    """Return in one line what the client or the server says of an error."""
    data, code = getattr(error, "data", None), getattr(error, "code", None)
    if type(error).__name__ == "APIError":
        detail = data.get("detail", data) if isinstance(data, dict) else data
        text = f"HTTP status {code}" + (
            f", {detail if isinstance(detail, str) else json.dumps(detail)}" if detail else ""
        )
    else:
        # version 4 puts the name of the function and what it was given into the first line
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        text = lines[1] if type(error).__name__ == "CommandError" and len(lines) > 1 else lines[0]
    return text[:500].rstrip(".")
