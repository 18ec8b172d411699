"""The emulator over HTTP, for programs in other processes and other languages. It listens on 127.0.0.1 only.

Law: it carries requests to an exchange and its answers back, and knows nothing of sessions. Whatever arrives, the
connection gets an answer or is closed; nothing hangs, and no traceback leaves. Requests whose Host is not this
machine are refused, so that no web page can reach the emulator through a name of its own.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Self, cast

from llama_index_bedrock_sessions.emulator.wire import Exchange, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


logger = logging.getLogger(__name__)

_LARGEST_BODY = 100 * 1024 * 1024  # bytes; 50 MB of images are 67 MB in base64
_HOSTS = frozenset({"127.0.0.1", "localhost"})
_ORIGIN = re.compile(r"^https?://[^/?]*", re.IGNORECASE)  # of a request target in absolute form
_STOP_SECONDS = 5.0  # for answers under way when the server is closed
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST


class Server:
    """A running HTTP server; `close` it, or use it as a context manager. `url` is its endpoint URL."""

    def __init__(
        self, exchange: Callable[[Request], Exchange], port: int = 0, log: Callable[[str], None] | None = None
    ) -> None:
        self._listener = _Listener(("127.0.0.1", port), exchange, log)
        self.port = int(self._listener.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._listener.serve_forever,
            kwargs={"poll_interval": 0.05},
            name=f"emulator {self.url}",
            daemon=True,
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop accepting, let answers under way go out (5 seconds at most), and close every connection."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()
        self._listener.hang_up()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], exchange: Callable[[Request], Exchange], log: Callable[[str], None] | None
    ) -> None:
        self.exchange = exchange
        self.log = log
        self.stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of this machine's name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, so that closing the server can end it."""
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Log what a connection died of; clients that go away are not worth a word."""
        logger.debug("connection from %s ended", client_address, exc_info=True)  # noqa: LOG014 - called in a handler

    def hang_up(self) -> None:
        """End all connections: no further request is read, an answer under way is sent."""
        self.stopping.set()
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
            self._changed.wait_for(lambda: not self._connections, timeout=_STOP_SECONDS)
            left = list(self._connections)
        for connection in left:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 60  # seconds a connection may be idle, or silent in the middle of a request

    @property
    def listener(self) -> _Listener:
        """The server this connection belongs to."""
        return cast("_Listener", self.server)

    def handle_one_request(self) -> None:
        """Read one request of any method and answer it; the base class would look for a method of that name."""
        try:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or self.listener.stopping.is_set():
                self.close_connection = True
            elif len(self.raw_requestline) > 65536:
                self.requestline, self.request_version, self.command = "", "HTTP/1.1", ""
                self.send_error(414)
            elif self.parse_request():
                self._serve()
                self.wfile.flush()
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def _serve(self) -> None:
        started = time.perf_counter()
        body = self._read_body()
        if body is None:
            return
        path, _, query = _ORIGIN.sub("", self.path).partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            exchange = self.listener.exchange(Request(self.command, path, query, headers, body))
        except Exception as error:  # whatever it is, the client gets an answer
            logger.exception("the emulator failed")
            exchange = Exchange(_failure(500, "InternalServerException", f"{type(error).__name__}: {error}"))
        self._send_exchange(exchange)
        if self.listener.log:
            status = exchange.response.status if exchange.response else "---"
            took = (time.perf_counter() - started) * 1000
            note = f" {exchange.fault}" if exchange.fault else ""
            self.listener.log(f"{status} {self.command} {self.path} {len(body)} B {took:.1f} ms{note}")

    def _read_body(self) -> bytes | None:
        """Return the request's body; None if the request was refused for its form."""
        host = self.headers.get("Host", "").rpartition("@")[2].partition(":")[0].lower()
        if host not in _HOSTS:
            self._refuse(403, "AccessDeniedException", "This server answers only to localhost and 127.0.0.1.")
        elif "Transfer-Encoding" in self.headers:
            self._refuse(411, "ValidationException", "A Content-Length is needed.")
        else:
            given = self.headers.get("Content-Length", "0").strip()
            if not (given.isascii() and given.isdigit() and len(given) < 19):
                self._refuse(400, "ValidationException", "The Content-Length is not a number.")
            elif int(given) > _LARGEST_BODY:
                self._refuse(413, "ValidationException", f"The body is larger than {_LARGEST_BODY} bytes.")
            else:
                body = self.rfile.read(int(given))
                if len(body) == int(given):
                    return body
                self.close_connection = True
        return None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses to parse, in this service's form instead of an HTML page."""
        self._refuse(code, "ValidationException", message or explain or "The request is not valid HTTP.")

    def _refuse(self, status: int, kind: str, message: str) -> None:
        self.close_connection = True  # what is left of the request is not looked at
        self.request_version = "HTTP/1.1"  # for HTTP/0.9 the base class would send no status line
        self._send(_failure(status, kind, message))
        self.wfile.flush()
        with suppress(OSError):  # let the client read the answer before what it still sends meets a closed socket
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            for _ in range(1600):
                if not self.connection.recv(65536):
                    break

    def _send_exchange(self, exchange: Exchange) -> None:
        fault = exchange.fault
        if exchange.delay:
            self.listener.stopping.wait(exchange.delay)
        if exchange.response is None:  # a connection that stands cannot be refused: both faults are a reset
            self._hang_up(reset=True)
        elif fault == "lost_reply":
            self._hang_up(reset=False)
        elif fault == "read_timeout":
            self._stay_silent()
        else:
            self._send(exchange.response, torn=fault == "torn_body")

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.connection.close()

    def _stay_silent(self) -> None:
        """Send nothing until the client gives up."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.recv(1)

    def _send(self, response: Response, *, torn: bool = False) -> None:
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if self.close_connection or torn:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[: len(response.body) // 2] if torn else response.body)


def _failure(status: int, kind: str, message: str) -> Response:
    body = json.dumps({"message": message}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "x-amzn-ErrorType": kind}
    return Response(status, headers, body)
