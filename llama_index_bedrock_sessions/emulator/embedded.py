"""The emulator as one object: a database, its rules, its wire, and boto3 clients that never leave the process."""

from __future__ import annotations

import functools
import io
import os
import signal
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

import botocore.session
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from llama_index_bedrock_sessions.emulator.behaviour import Behaviour
from llama_index_bedrock_sessions.emulator.calls import Call, Calls
from llama_index_bedrock_sessions.emulator.clock import Clock
from llama_index_bedrock_sessions.emulator.control import Control
from llama_index_bedrock_sessions.emulator.database import Database, UnusablePathError
from llama_index_bedrock_sessions.emulator.faults import UNSEEN, Faults
from llama_index_bedrock_sessions.emulator.server import Server
from llama_index_bedrock_sessions.emulator.store import Store
from llama_index_bedrock_sessions.emulator.wire import Exchange, Request, Response, Wire, loader, route

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from types import TracebackType

    from botocore.awsrequest import AWSPreparedRequest
    from types_boto3_bedrock_agent_runtime import AgentsforBedrockRuntimeClient

_SERVICE = "bedrock-agent-runtime"
_clients = threading.Lock()  # botocore sessions are not thread-safe
_alive: weakref.WeakSet[Emulator] = weakref.WeakSet()


class Emulator:
    """Amazon Bedrock sessions in a SQLite file, or in memory.

    `path`: the file, created if it is missing; None: in memory, private to this object. Several objects, threads and
    processes may use one file. `behaviour`: what is unknown about AWS, see `Behaviour`. `region_name`: the region it
    stands for; a file holds each region's sessions apart. `retention`: whether sessions are deleted after 30 days, as
    documented, or kept for ever; the file remembers it (a new one deletes), and None leaves it as it is.

    Raises `NotOurFileError`, `NewerFileError` (both ValueError) and `UnusablePathError` (OSError); the file is left
    untouched then.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        behaviour: Behaviour | None = None,
        region_name: str = "us-east-1",
        retention: bool | None = None,
    ) -> None:
        self.region_name = region_name
        self.faults = Faults()
        self.calls = Calls()
        self._database = Database(path)
        self._store = Store(self._database, region_name, behaviour or Behaviour())
        self.clock = Clock(self._database)
        self._wire = Wire(self._store)
        self._set_retention(retention)
        _alive.add(self)
        weakref.finalize(self, self._database.close)  # one that nobody closes leaves no write-ahead log behind

    def _set_retention(self, retention: bool | None) -> None:
        try:
            self._store.retention(retention)
        except sqlite3.Error as error:
            self.close()
            raise UnusablePathError(f"cannot use {self.path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Clients of this emulator raise `ClosedError` from then on."""
        self._database.close()

    @property
    def path(self) -> str | None:
        """The absolute path of the database, None in memory."""
        return None if self._database.path is None else str(self._database.path)

    @property
    def behaviour(self) -> Behaviour:
        """The switches in force for this object; another may be set at any time."""
        return self._store.behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        if not isinstance(behaviour, Behaviour):
            raise TypeError(f"a Behaviour is needed, not {type(behaviour).__name__}")
        self._store.behaviour = behaviour

    @property
    def retention(self) -> bool:
        """Whether the file's sessions are deleted after 30 days."""
        return self._store.retention(None)

    def client(self, *, timestamp_parser: Any = None, **kwargs: Any) -> AgentsforBedrockRuntimeClient:
        """Return a boto3 `bedrock-agent-runtime` client that is served by this emulator, in this process.

        It needs no credentials, no configuration and no network, and touches nothing of boto3's global state.
        `kwargs` are those of `boto3.client`, `config=` among them; a region other than the emulator's is
        accepted and changes nothing. `timestamp_parser`: a function that makes the timestamps of replies datetimes;
        botocore's own, which takes most of the time of a list, if left out. Thread-safe.
        """
        config = Config(use_fips_endpoint=False, use_dualstack_endpoint=False)
        if kwargs.get("config") is not None:
            config = config.merge(kwargs["config"])
        region = kwargs.get("region_name") or self.region_name
        defaults = {
            "region_name": region,
            "endpoint_url": f"https://{_SERVICE}.{region}.amazonaws.com",
            "aws_access_key_id": "AKIDEMULATOR",
            "aws_secret_access_key": "emulator",
        }
        given = {name: value for name, value in kwargs.items() if value is not None}
        with _clients:
            client: Any = _session(timestamp_parser).create_client(_SERVICE, **{**defaults, **given, "config": config})
        transport = _Transport(self.exchange, client.meta.config.read_timeout)
        client.meta.events.register_first(f"before-send.{_SERVICE}", transport)
        return cast("AgentsforBedrockRuntimeClient", client)

    def serve(self, port: int = 0, *, log: Callable[[str], None] | None = None, control: bool = False) -> Server:
        """Serve this emulator over HTTP on 127.0.0.1 until the returned `Server` is closed; it is a context manager.

        `port`: 0 takes a free one. `log`: called with a line for every request. `control`: whether clients may set
        faults, the clock and the behaviour beneath `/__control__`, see `emulator.control`. Any boto3 program uses it
        once `AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME` is set to the server's `url`. Raises OSError if the port is taken.
        """
        exchange = self.exchange
        if control:
            exchange = Control(exchange, self.faults, self.clock, self.calls, self._store).exchange
        return Server(exchange, port, log)

    def exchange(self, request: Request) -> Exchange:
        """Serve a request, with whatever fault is due; for transports. Raises `AnswerError` on a bug in here."""
        found = route(request)
        operation = found[0].name if found else ""
        fired = self.faults.meet(operation) if found else None
        fault = fired.fault if fired else None
        if self.faults.latency:
            time.sleep(self.faults.latency)
        if fault in UNSEEN:
            return Exchange(None, fault)
        response = self._refuse(operation, fault) or self._wire.answer(request)
        sizes = len(request.body), len(response.body)
        self.calls.add(Call(operation, request.path, response.status, request.body, response.body, *sizes, fault))
        return Exchange(response, fault, fired.seconds if fired else 0.0)

    def _refuse(self, operation: str, fault: str | None) -> Response | None:
        if fault == "throttle":
            return self._wire.error("ThrottlingException", "Rate exceeded")
        if fault == "internal":
            return self._wire.error("InternalServerException", "An internal error occurred.")
        if fault == "access_denied":
            message = f"User is not authorized to perform: bedrock:{operation}"
            return self._wire.error("AccessDeniedException", message, member="Message")
        return self._wire.unavailable() if fault == "unavailable" else None


def run(
    emulator: Emulator,
    port: int = 0,
    *,
    started: Callable[[str], None],
    log: Callable[[str], None] | None = None,
    control: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, for a command: `run(emulator, port, started=print)`.

    `started` is called with the URL once requests are taken, `log` with a line for every request; `control` as for
    `Emulator.serve`. Call it in the main thread. Raises OSError if the port is taken.
    """
    stop = threading.Event()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda *_: stop.set()) for kind in kinds}
    try:
        with emulator.serve(port, log=log, control=control) as server:
            started(server.url)
            while not stop.wait(0.5):  # in slices, for Windows delivers signals only between them
                pass
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Transport:
    """Answers botocore's `before-send` event, which takes an answer or an exception as if the network had given it."""

    def __init__(self, exchange: Callable[[Request], Exchange], read_timeout: float | None) -> None:
        self._exchange = exchange
        self._read_timeout = read_timeout

    def __call__(self, request: AWSPreparedRequest, **_event: Any) -> AWSResponse:
        url = urlsplit(request.url)
        exchange = self._exchange(
            Request(request.method, url.path, url.query, _headers(request.headers), _body(request.body))
        )
        self._fail(exchange, request)
        response = exchange.response
        assert response is not None
        body = response.body[: len(response.body) // 2] if exchange.fault == "torn_body" else response.body
        headers: Any = response.headers
        return AWSResponse(request.url, response.status, headers, _Raw(body))

    def _fail(self, exchange: Exchange, request: AWSPreparedRequest) -> None:
        timeout = self._read_timeout
        late = timeout is not None and exchange.delay > timeout
        if exchange.delay:
            time.sleep(timeout if late and timeout else exchange.delay)
        if exchange.fault == "refused":
            raise EndpointConnectionError(endpoint_url=request.url, error="connection refused")
        if exchange.fault in ("reset", "lost_reply"):
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error="connection closed")
        if late or exchange.fault == "read_timeout":
            raise ReadTimeoutError(endpoint_url=request.url, error="read timed out")


class _Raw(io.BytesIO):
    def stream(self) -> list[bytes]:
        return [self.getvalue()]


def _headers(headers: Any) -> dict[str, str]:
    return {
        name.lower(): value.decode("latin-1") if isinstance(value, bytes) else str(value)
        for name, value in headers.items()
    }


def _body(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    return bytes(body) if isinstance(body, bytes | bytearray) else bytes(body.read())


@functools.cache
def _session(timestamp_parser: Callable[[Any], datetime] | None) -> botocore.session.Session:
    """Return the session of all clients, which reads neither the user's files nor the profile the environment names.

    A client copies what it needs of it; making one of its own for each would be most of what a client costs.
    """
    session = botocore.session.Session(
        session_vars={
            "profile": (None, [], None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    session.register_component("data_loader", loader())
    if timestamp_parser is not None:
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp_parser)
    return session


def _after_fork_in_child() -> None:
    """Renew the locks that a thread of the parent may have held; the databases see to theirs."""
    global _clients  # noqa: PLW0603
    _clients = threading.Lock()
    for emulator in list(_alive):
        emulator.calls.renew_lock()
        emulator.faults.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
