"""HTTP for the doubles: real sockets, each request counted, and faults on demand."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SLOW_SECONDS = 0.5


@dataclass(frozen=True)
class Request:
    """A request, taken apart."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What is sent back."""

    body: bytes = b""
    content_type: str = "application/json"
    status: int = 200


@dataclass
class Fault:
    """What goes wrong with an operation, once.

    `drop before` or `drop after` it is done, `slow`, `garbage` for an answer, the status of an error, as in
    429 or `500`, or a function that is called.
    """

    operation: str
    kind: str | int | Callable[[], None]
    skip: int = 0


class Server:
    """Serves `answer` on some ports of the loopback until it is closed."""

    def __init__(
        self, answer: Callable[[Request], Reply], name: Callable[[Request], str], ports: list[int]
    ) -> None:
        self.faults: list[Fault] = []
        self.operations: list[str] = []
        # called when somebody asks who is not signed in
        self.on_unauthorised: Callable[[], None] = lambda: None
        self._answer, self._name = answer, name
        self._answering = threading.Lock()
        handler = self._handler()
        self._servers: list[ThreadingHTTPServer] = []
        try:
            for port in ports:
                self._servers.append(ThreadingHTTPServer(("127.0.0.1", port), handler))
        except (OSError, OverflowError):  # somebody else has it, or there is no such port
            for server in self._servers:
                server.server_close()
            raise
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.ports = [server.server_address[1] for server in self._servers]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _fault(self, operation: str) -> str | int | Callable[[], None] | None:
        for fault in self.faults:
            if fault.operation == operation:
                if fault.skip:
                    fault.skip -= 1
                    return None
                self.faults.remove(fault)
                return fault.kind
        return None

    def _handler(double) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client has gone
                    self.close_connection = True

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = parse_qs(parts.query, keep_blank_values=True)
                request = Request(self.command, unquote(parts.path), query, self.headers, self._body())
                operation = double._name(request)
                double.operations.append(operation)
                fault = double._fault(operation)
                if fault == "drop before":
                    return self._drop()
                if isinstance(fault, int) or fault == "500":
                    return self._send(Reply(b'{"detail": "injected"}', status=int(fault)))
                if fault == "garbage":
                    return self._send(Reply(b"<html>one moment, please</html>"))
                if fault == "slow":
                    time.sleep(SLOW_SECONDS)
                elif callable(fault):
                    fault()
                with double._answering:  # what is behind is for one at a time
                    reply = double._answer(request)
                if fault == "drop after":
                    return self._drop()
                self._send(reply)
                return None

            do_POST = do_GET

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _drop(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
