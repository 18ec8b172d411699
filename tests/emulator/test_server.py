"""The emulator over HTTP: any boto3 program, several clients, hostile bytes, and a clean end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_index_bedrock_sessions.emulator import Emulator, Server
from llama_index_bedrock_sessions.emulator.wire import OPERATIONS, Request, operations, service_model
from tests.emulator.test_files import ALONE

pytestmark = pytest.mark.thorough

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def server(emulator: Emulator) -> Iterator[Server]:
    with emulator.serve() as server:
        yield server


def connect(url: str, **config: Any) -> Any:
    return botocore.session.Session().create_client(
        "bedrock-agent-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(**config),
    )


def begin(client: Any) -> dict[str, str]:
    session = client.create_session()["sessionId"]
    invocation = client.create_invocation(sessionIdentifier=session)["invocationId"]
    return {"sessionIdentifier": session, "invocationIdentifier": invocation}


def put(client: Any, where: Any, *blocks: dict[str, Any]) -> Any:
    payload = {"contentBlocks": list(blocks) or [{"text": "text"}]}
    return client.put_invocation_step(**where, invocationStepTime=NOW, payload=payload)["invocationStepId"]


def send(server: Server, content: bytes, *, close: bool = True) -> bytes:
    """Send bytes on a connection of their own, and return all that comes back before it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(content)
        if close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while True:
            try:
                received = connection.recv(65536)
            except ConnectionResetError:
                return answer
            if not received:
                return answer
            answer += received


_ANY_PROGRAM = """
import boto3
client = boto3.client("bedrock-agent-runtime")
session = client.create_session(sessionMetadata={"who": "any program"})["sessionId"]
print(client.get_session(sessionIdentifier=session)["sessionMetadata"]["who"])
"""


def test_any_boto3_program_uses_it(server: Server) -> None:
    """A program that knows nothing of the emulator is led to it by AWS's own environment variable."""
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME": server.url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-c", _ANY_PROGRAM]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert output == "any program\n"


def test_both_transports_answer_alike(emulator: Emulator, server: Server) -> None:
    """The same calls get the same answers, headers included, in process and over HTTP."""
    emulator.clock.stop(NOW)
    answers = []
    for client in (emulator.client(), connect(server.url)):
        where = begin(client)
        step = put(client, where, {"text": "\u4e2d"}, {"image": {"format": "png", "source": {"bytes": b"\x00\xff"}}})
        answer = client.get_invocation_step(**where, invocationStepId=step)
        text = json.dumps(answer, default=str)
        for known in (*where.values(), step, answer["ResponseMetadata"]["RequestId"]):
            text = text.replace(known, "ID")
        answers.append(text)
    assert answers[0] == answers[1]


def test_a_connection_is_kept(server: Server) -> None:
    """One connection serves many requests, and says when it closes."""
    request = b"POST /sessions/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    last = request.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")
    answer = send(server, request * 3 + last, close=False)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 4
    assert answer.count(b"Connection: close") == 1


def test_a_step_of_fifty_megabytes_crosses_the_wire(emulator: Emulator, server: Server) -> None:
    """The largest step arrives and comes back, though base64 makes a third more of it."""
    from llama_index_bedrock_sessions.emulator import Behaviour

    emulator.behaviour = Behaviour(step_size_counts="decoded")
    client = connect(server.url)
    where = begin(client)
    image = {"image": {"format": "png", "source": {"bytes": os.urandom(3_750_000)}}}
    step = put(client, where, *[image] * 13)
    answer = client.get_invocation_step(**where, invocationStepId=step)
    assert answer["invocationStep"]["payload"]["contentBlocks"] == [image] * 13


def test_a_body_beyond_any_step_is_refused_unread(server: Server) -> None:
    """More than 100 MiB is answered with 413 without reading it."""
    answer = send(server, b"PUT /sessions/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857601\r\n\r\nstart")
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example:80", b"169.254.169.254", b"", b"[::1]"])
def test_foreign_hosts_are_refused(server: Server, emulator: Emulator, host: bytes) -> None:
    """A request that names another host is refused, so that no web page reaches the emulator by a name of its own."""
    answer = send(server, b"PUT /sessions/ HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert len(emulator.calls) == 0


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1", b"LOCALHOST:8080", b"127.0.0.1:1"])
def test_this_machine_is_served_by_any_port(server: Server, host: bytes) -> None:
    """Names of this machine are served, on any port, for ports can be forwarded."""
    answer = send(server, b"PUT /sessions/ HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 201 ")


def test_it_listens_on_this_machine_only(server: Server) -> None:
    """The server's address is 127.0.0.1, and nothing else."""
    assert server._listener.socket.getsockname() == ("127.0.0.1", server.port)
    assert server.url == f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x00\xff\xfe\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /sessions\r\n\r\n", b"403"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 70_000, b"414"),
        (b"PUT /sessions/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"PUT /sessions/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: two\r\n\r\n", b"400"),
        (b"PUT /sessions/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"PUT http://[/sessions/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"201"),
        (b"BREW /sessions/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /sessions/%ff/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /sessions/\xff/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
    ],
)
def test_malformed_requests_get_an_answer(server: Server, content: bytes, status: Any) -> None:
    """What is no request of the service is answered in its form, and the server goes on."""
    answer = send(server, content)
    assert answer.startswith(b"HTTP/1.1 " + status + b" ")
    assert b"<html" not in answer.lower()
    assert b"Traceback" not in answer


def test_half_a_request_is_dropped(server: Server, emulator: Emulator) -> None:
    """A body that ends before its length is no request: nothing is done."""
    send(server, b"PUT /sessions/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{}")
    assert len(emulator.calls) == 0
    assert connect(server.url).list_sessions()["sessionSummaries"] == []


MODEL: Any = service_model()
ERRORS = frozenset(error.name for operation in OPERATIONS for error in MODEL.operation_model(operation).error_shapes)
LABELS = st.one_of(
    st.sampled_from(
        [str(uuid.UUID(int=0)), "%ff", "arn:aws:bedrock:us-east-1:1:session/x", "%00", "..", "%2F", "#", "?"]
    ),
    st.text(max_size=20),
)
MEMBERS = (
    *("sessionMetadata", "tags", "payload", "contentBlocks", "text", "image", "source", "bytes", "format"),
    *("invocationIdentifier", "invocationStepId", "invocationStepTime", "encryptionKeyArn", "description"),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(MEMBERS),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
BODIES = st.one_of(st.binary(max_size=100), JSON.map(lambda value: json.dumps(value).encode()))
QUERIES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["maxResults=", "maxResults=1e3", "maxResults=%31", "nextToken=%ff", "tagKeys=a&tagKeys=", "&&=&"]),
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operation=st.sampled_from(OPERATIONS), labels=st.lists(LABELS, min_size=2, max_size=2), data=st.data())
def test_any_request_gets_a_modelled_answer(
    fuzzed: Emulator, operation: Any, labels: list[str], data: st.DataObject
) -> None:
    """Whatever fills the path, the query and the body: a success, an error of the model, or the 404 of no route."""
    model = next(one for one in operations() if one.name == operation)
    template = service_model().operation_model(operation).http["requestUri"]
    path = re.sub(r"\{\w+\}", lambda _: labels.pop(), template)
    request = Request(model.method, path, data.draw(QUERIES), {}, data.draw(BODIES))
    response = fuzzed.exchange(request).response
    assert response is not None
    if response.status == 404 and b"UnknownOperation" in response.body:
        return
    if response.status >= 300:
        assert response.headers["x-amzn-ErrorType"] in ERRORS - {"InternalServerException"}
        assert set(json.loads(response.body)) == {"message"}


@settings(max_examples=100, deadline=None)
@given(head=st.binary(max_size=200), body=st.binary(max_size=50))
def test_any_bytes_leave_the_server_standing(head: bytes, body: bytes, fuzzed_server: Server) -> None:
    """Random bytes on a connection end it or are answered; the next connection is served as ever."""
    answer = send(fuzzed_server, head + b"\r\n\r\n" + body)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert b"Traceback" not in answer
    healthy = b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert send(fuzzed_server, healthy).startswith(b"HTTP/1.1 200 ")


@pytest.fixture(scope="module")
def fuzzed_server(fuzzed: Emulator) -> Iterator[Server]:
    with fuzzed.serve() as server:
        yield server


def test_an_error_of_the_emulator_is_an_answer(
    emulator: Emulator, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug inside is logged here and answered with InternalServerException there."""
    emulator.close()
    client = connect(server.url, retries={"total_max_attempts": 1})
    with pytest.raises(client.exceptions.InternalServerException, match="ClosedError"):
        client.list_sessions()
    assert "the emulator failed" in caplog.text


def test_requests_are_logged_when_asked(emulator: Emulator) -> None:
    """`log` gets one line a request: status, method, path, bytes, milliseconds, and the fault."""
    lines: list[str] = []
    with emulator.serve(log=lines.append) as server:
        emulator.faults.add(None, 2, "torn_body")
        for _ in range(2):
            send(server, b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert re.fullmatch(r"200 POST /sessions 0 B [\d.]+ ms", lines[0])
    assert lines[1].endswith("ms torn_body")


def test_closing_ends_idle_connections_and_frees_the_port(emulator: Emulator) -> None:
    """After `close` no connection is left, no thread runs, and the port can be taken again."""
    threads = threading.active_count()
    server = emulator.serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as idle:
        send(server, b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        server.close()
        assert idle.recv(1) == b""
    with emulator.serve(server.port) as again:
        assert again.port == server.port
        with pytest.raises(OSError, match="in use"):
            emulator.serve(server.port)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "process_request_thread" in thread.name:
            thread.join(20)
    assert threading.active_count() <= threads


def test_closing_wakes_those_who_wait_for_nothing(emulator: Emulator) -> None:
    """A client that is kept waiting by a fault is let go when the server closes."""
    with emulator.serve() as server, ThreadPoolExecutor(1) as pool:
        emulator.faults.add(None, 1, "read_timeout")
        request = b"POST /sessions HTTP/1.1\r\nHost: localhost\r\n\r\n"
        waiting = pool.submit(send, server, request, close=False)
        while not emulator.calls.count("ListSessions"):
            assert not waiting.done()
        server._listener.hang_up()
        assert waiting.result(timeout=20) == b""


def test_many_clients_at_once(emulator: Emulator, server: Server) -> Any:
    """Eight clients in threads, each with its own session, get their own answers."""

    def work(number: int) -> list[str]:
        client = connect(server.url)
        where = begin(client)
        steps = [put(client, where, {"text": f"{number}"}) for _ in range(10)]
        listed = client.list_invocation_steps(sessionIdentifier=where["sessionIdentifier"])
        assert sorted(step["invocationStepId"] for step in listed["invocationStepSummaries"]) == sorted(steps)
        return steps

    with ThreadPoolExecutor(8) as pool:
        steps = [step for each in pool.map(work, range(8)) for step in each]
    assert len(set(steps)) == 80


_SERVER = f"""{ALONE}
from llama_index_bedrock_sessions.emulator import Emulator, run
run(Emulator(sys.argv[1]), started=lambda url: print(url, flush=True), log=lambda line: print(line, flush=True))
print("stopped", flush=True)
"""


def test_two_servers_and_a_program_share_a_file(tmp_path: Path) -> Any:
    """Two server processes and a client in this one see one account; SIGTERM ends a server cleanly."""
    path = str(tmp_path / "chats.db")
    command = [sys.executable, "-c", _SERVER, path]
    servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        clients = [connect(one.stdout.readline().strip()) for one in servers if one.stdout]
        with Emulator(path) as emulator:
            clients.append(emulator.client())
            where = begin(clients[0])

            def work(client: Any) -> list[str]:
                return [put(client, where) for _ in range(20)]

            with ThreadPoolExecutor(3) as pool:
                steps = sorted(step for each in pool.map(work, clients) for step in each)
            for client in clients:
                found = client.list_invocation_steps(sessionIdentifier=where["sessionIdentifier"])
                assert sorted(step["invocationStepId"] for step in found["invocationStepSummaries"]) == steps
            emulator.clock.advance(3600)
            for client in clients:
                answer = client.get_session(sessionIdentifier=where["sessionIdentifier"])
                assert answer["sessionStatus"] == "EXPIRED"
    finally:
        for one in servers:
            one.send_signal(signal.SIGTERM)
        outputs = [one.communicate(timeout=60)[0] for one in servers]
    assert [output.splitlines()[-1] for output in outputs] == ["stopped", "stopped"]
    assert [one.returncode for one in servers] == [0, 0]
