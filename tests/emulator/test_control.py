"""The emulator from the command line and from other languages: its command, its control endpoint, its profiles."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from click.testing import CliRunner

from llama_index_bedrock_sessions.cli.commands import main
from llama_index_bedrock_sessions.emulator import Behaviour, BehaviourError, Emulator, Server

pytestmark = pytest.mark.thorough

VARIABLE = "AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def server(emulator: Emulator) -> Iterator[Server]:
    with emulator.serve(control=True) as server:
        yield server


def connect(url: str) -> Any:
    return boto3.client(
        "bedrock-agent-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(retries={"total_max_attempts": 1}),
    )


def ask(
    url: str, method: str, path: str, body: Any = None, content_type: str = "application/json"
) -> tuple[int, dict[str, Any]]:
    """Send a request to the control endpoint without any AWS SDK; return status and JSON."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", content, {"Content-Type": content_type}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# The control endpoint


def test_faults_are_set_over_http(server: Server) -> None:
    """A fault that was posted happens to the call it names, is listed as fired, and can be forgotten."""
    client = connect(server.url)
    lost = {"operation": "CreateSession", "fault": "lost_reply"}
    assert ask(server.url, "POST", "/__control__/faults", lost)[0] == 200
    assert ask(server.url, "POST", "/__control__/faults", {"fault": "throttle", "nth": 4})[0] == 200
    with pytest.raises(ConnectionClosedError):
        client.create_session()
    assert len(client.list_sessions()["sessionSummaries"]) == 1
    fired = {"operation": "CreateSession", "fault": "lost_reply", "seconds": 0.0}
    assert ask(server.url, "GET", "/__control__/faults") == (200, {"latency": 0.0, "fired": [fired]})
    assert ask(server.url, "DELETE", "/__control__/faults") == (200, {})
    assert ask(server.url, "GET", "/__control__/faults") == (200, {"latency": 0.0, "fired": []})
    for _ in range(3):
        client.list_sessions()


def test_latency_is_set_over_http(server: Server, emulator: Emulator) -> None:
    """Latency is what was posted, in seconds."""
    assert ask(server.url, "POST", "/__control__/latency", {"seconds": 0.001}) == (200, {"latency": 0.001})
    assert emulator.faults.latency == 0.001


def test_the_clock_is_moved_over_http(server: Server) -> None:
    """The clock stops now or at a time, advances by seconds, and starts again."""
    client = connect(server.url)
    session = client.create_session()["sessionId"]

    def move(body: Any) -> Any:
        status, answer = ask(server.url, "POST", "/__control__/clock", body)
        assert (status, answer) == (200, ask(server.url, "GET", "/__control__/clock")[1])
        return answer["now"]

    move({"stop": True})
    move({"advance": 3600})
    assert client.get_session(sessionIdentifier=session)["sessionStatus"] == "EXPIRED"
    assert move({"stop": "2026-01-02T03:04:05Z"}) == "2026-01-02T03:04:05.000000Z"
    assert move({"advance": 0.25}) == "2026-01-02T03:04:05.250000Z"
    assert ask(server.url, "POST", "/__control__/clock", {"start": True})[0] == 200
    assert client.create_session()["createdAt"] < datetime(2026, 1, 3, tzinfo=UTC)


def test_behaviour_is_set_over_http(server: Server, emulator: Emulator) -> None:
    """Settings that are posted change, all others stay."""
    emulator.behaviour = Behaviour(time_precision="seconds")
    status, answer = ask(server.url, "POST", "/__control__/behaviour", {"default_page_size": 1})
    assert (status, answer) == (200, Behaviour(time_precision="seconds", default_page_size=1).to_dict())
    assert ask(server.url, "GET", "/__control__/behaviour") == (200, answer)
    assert emulator.behaviour == Behaviour.from_dict(answer)


def test_calls_are_counted_over_http(server: Server) -> None:
    """Calls served are counted by operation; what is asked of the control endpoint is none of them."""
    client = connect(server.url)
    client.create_session()
    client.list_sessions()
    client.list_sessions()
    assert ask(server.url, "GET", "/__control__/calls") == (200, {"CreateSession": 1, "ListSessions": 2})
    assert ask(server.url, "DELETE", "/__control__/calls") == (200, {})
    assert ask(server.url, "GET", "/__control__/calls") == (200, {})


@pytest.mark.parametrize(
    ("place", "body", "message"),
    [
        ("faults", {"fault": "explode"}, "unknown fault 'explode': there are access_denied"),
        ("faults", {}, "unknown fault None: there are"),
        ("faults", {"fault": ["throttle"]}, "unknown fault ['throttle']"),
        ("faults", {"fault": "throttle", "operation": "PutStep"}, "unknown operation 'PutStep': there are *, Create"),
        ("faults", {"fault": "throttle", "operation": 7}, "unknown operation 7"),
        ("faults", {"fault": "throttle", "nth": 0}, "nth=0, times=1: both count from 1"),
        ("faults", {"fault": "throttle", "nth": True}, "nth=True"),
        ("faults", {"fault": "throttle", "times": 1.5}, "times=1.5"),
        ("faults", {"fault": "slow", "seconds": "1"}, "seconds='1': a number from 0"),
        ("faults", {"fault": "slow", "seconds": -1}, "seconds=-1"),
        ("faults", {"fault": "slow", "second": 1}, "unknown: second; there are fault, nth"),
        ("latency", {}, "'seconds' takes a number of seconds from 0, not None"),
        ("latency", {"seconds": True}, "not True"),
        ("clock", {}, 'one of "advance", "stop" and "start"'),
        ("clock", {"advance": 1, "stop": True}, 'one of "advance", "stop" and "start"'),
        ("clock", {"advance": -1}, "'advance' takes a number of seconds from 0, not -1"),
        ("clock", {"advance": "1"}, "not '1'"),
        ("clock", {"stop": "yesterday"}, "'yesterday' is no time"),
        ("clock", {"stop": "2026-01-02T03:04:05"}, "has no time zone"),
        ("clock", {"start": False}, '"start" takes true'),
        ("clock", {"back": 1}, "unknown: back"),
        ("behaviour", {"step_order": "random"}, "step_order='random': accepted are 'time'"),
        ("behaviour", {"step_ordre": "id"}, "unknown behaviour settings: step_ordre. Did you mean step_order?"),
        ("clock", b"{", "the body is not JSON"),
        ("clock", b"[]", "the body is not a JSON object"),
        ("clock", b"[" * 100_000, "the body is not JSON"),
    ],
)
def test_wrong_orders_are_refused(server: Server, emulator: Emulator, place: str, body: Any, message: str) -> None:
    """What cannot be done is answered with 400 and what is accepted, and changes nothing."""
    emulator.clock.stop(datetime(2026, 1, 2, tzinfo=UTC))
    before = emulator.clock.now(), emulator.behaviour, emulator.faults.latency, len(emulator.faults._rules)
    status, answer = ask(server.url, "POST", f"/__control__/{place}", body)
    assert status == 400
    assert message in answer["message"]
    assert before == (emulator.clock.now(), emulator.behaviour, emulator.faults.latency, len(emulator.faults._rules))


def test_time_has_an_end(server: Server, emulator: Emulator) -> None:
    """The clock goes no further than times can be written, so that no order leaves a service that cannot answer."""
    answers = [ask(server.url, "POST", "/__control__/clock", {"advance": 3.2e9}) for _ in range(80)]
    assert answers[0][0] == 200
    assert answers[-1][0] == 400
    assert answers[-1][1]["message"].startswith("time ends with the year 9000:")
    assert connect(server.url).list_sessions()["sessionSummaries"] == []


def test_a_page_cannot_give_orders(server: Server, emulator: Emulator) -> None:
    """An order whose type a web page could send without asking is refused."""
    status, answer = ask(server.url, "POST", "/__control__/latency", {"seconds": 1}, content_type="text/plain")
    assert (status, answer) == (400, {"message": "the Content-Type has to be application/json"})
    assert emulator.faults.latency == 0


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/clock", 405)])
def test_unknown_orders_are_told_what_there_is(server: Server, method: str, path: str, status: int) -> None:
    """A path or a method that is not there is answered with those that are."""
    names = ask(server.url, "GET", "/__control__/")[1]
    assert "POST /__control__/faults" in names
    found, answer = ask(server.url, method, f"/__control__{path}", b"" if method == "PUT" else None)
    assert found == status
    assert all(name in answer["message"] for name in names)


def test_there_is_no_control_unless_asked_for(emulator: Emulator) -> None:
    """A server that was not told otherwise has nothing beneath /__control__ but AWS's 404."""
    with emulator.serve() as server:
        request = urllib.request.Request(f"{server.url}/__control__/clock", b'{"advance": 1}', method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 404
    assert refused.value.read() == b"<UnknownOperationException/>\n"


# Profiles


def test_a_profile_is_a_file(tmp_path: Path) -> None:
    """A JSON object of settings is read; what it does not name keeps its default."""
    path = tmp_path / "profile.json"
    path.write_text('{"known_step_id": "overwrite", "default_page_size": 10}')
    assert Behaviour.load(path) == Behaviour(known_step_id="overwrite", default_page_size=10)
    path.write_text(json.dumps(Behaviour(step_order="id").to_dict()))
    assert Behaviour.load(str(path)) == Behaviour(step_order="id")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON in UTF-8"),
        (b"{'a': 1}", "not JSON in UTF-8"),
        (b'{"step_order": "\xff"}', "not JSON in UTF-8"),
        (b"[" * 100_000, "not JSON in UTF-8"),
        (b'{"step_order": "id", "step_order": "time"}', "a name is there twice"),
        (b"[]", "not a JSON object of settings, but list"),
        (b'{"step_ordre": "id"}', "unknown behaviour settings: step_ordre. Did you mean step_order?"),
        (b'{"zzz": "id"}', "There are write_to_ended, "),
        (b'{"step_order": "random"}', "step_order='random': accepted are 'time'"),
        (b'{"default_page_size": "10"}', "default_page_size='10': accepted are whole numbers from 1 to 1000"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """The error names the file, what is wrong in it, and what would be right."""
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(BehaviourError) as refused:
        Behaviour.load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fault", "PutInvocationStep:2"], "'PutInvocationStep:2': OPERATION:NTH:FAULT is accepted, such as"),
        (["--fault", "PutInvocationStep:x:throttle"], "OPERATION:NTH:FAULT is accepted"),
        (["--fault", "PutInvocationStep:1:throttle=2"], "OPERATION:NTH:FAULT is accepted"),
        (["--fault", "Put:1:throttle"], "unknown operation 'Put'"),
        (["--fault", "*:0:throttle"], "nth=0"),
        (["--fault", "*:1:explode"], "unknown fault 'explode'"),
        (["--fault", "*:1:slow=soon"], "could not convert string to float: 'soon'"),
        (["--latency", "-1"], "not in the range"),
        (["--port", "70000"], "not in the range"),
        (["--behaviour", "nothing.json"], "does not exist"),
        (["--database", "nothing/chats.db"], "nothing"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command cannot do it says, in a line, and serves nothing."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["emulate", *arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert VARIABLE not in result.output


class Command:
    """`bedrock-sessions emulate` in a process of its own; `url` is what it printed."""

    def __init__(self, *arguments: str) -> None:
        program = [sys.executable, "-m", "llama_index_bedrock_sessions.cli", "emulate", *arguments]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout
        exported = self.process.stdout.readline()
        found = re.fullmatch(rf"export {VARIABLE}=(http://127\.0\.0\.1:\d+)\n", exported)
        assert found, exported + self.process.communicate()[1]
        self.url = found[1]
        self.ready = self.process.stdout.readline()

    def stop(self, kind: int) -> tuple[int, str, str]:
        """Send a signal; return the exit status, and what else came on standard output and error."""
        self.process.send_signal(kind)
        output, log = self.process.communicate(timeout=60)
        return self.process.returncode, output, log


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    """It prints the variable to set and that it is ready, keeps its file, logs requests, and ends cleanly."""
    database, profile = tmp_path / "chats.db", tmp_path / "profile.json"
    profile.write_text('{"default_page_size": 1}')
    command = Command(
        *("--database", str(database), "--behaviour", str(profile), "--region", "eu-west-1", "-v", "--control"),
        *("--fault", "GetSession:1:throttle", "--fault", "EndSession:1:slow=0.001", "--latency", "0.001"),
    )
    client = connect(command.url)
    assert (
        command.ready == f"Ready: Amazon Bedrock sessions in eu-west-1, stored in {database}. Press Ctrl+C to stop.\n"
    )
    session = client.create_session(sessionMetadata={"secret": "content"})["sessionId"]
    client.create_session()
    with pytest.raises(ClientError, match="Throttling"):
        client.get_session(sessionIdentifier=session)
    assert client.end_session(sessionIdentifier=session)["sessionArn"].startswith("arn:aws:bedrock:eu-west-1:")
    assert len(client.list_sessions()["sessionSummaries"]) == 1
    assert ask(command.url, "GET", "/__control__/faults")[1]["latency"] == 0.001
    status, output, log = command.stop(signal.SIGINT)
    assert (status, output) == (0, "")
    assert [" ".join(line.split()[:3]) for line in log.splitlines()] == [
        "201 PUT /sessions/",
        "201 PUT /sessions/",
        f"429 GET /sessions/{session}/",
        f"200 PATCH /sessions/{session}",
        "200 POST /sessions/",
        "200 GET /__control__/faults",
    ]
    assert "content" not in log
    assert not database.with_name("chats.db-wal").exists()
    with Emulator(database, region_name="eu-west-1") as emulator:
        assert emulator.client().get_session(sessionIdentifier=session)["sessionStatus"] == "ENDED"


_SCRIPT = """
import boto3, datetime
client = boto3.client("bedrock-agent-runtime")
session = client.create_session(tags={"team": "a"})["sessionId"]
invocation = client.create_invocation(sessionIdentifier=session, description="a conversation")["invocationId"]
step = client.put_invocation_step(
    sessionIdentifier=session,
    invocationIdentifier=invocation,
    invocationStepTime=datetime.datetime.now(datetime.timezone.utc),
    payload={"contentBlocks": [{"text": "hello"}, {"image": {"format": "png", "source": {"bytes": b"bytes"}}}]},
)["invocationStepId"]
pages = client.get_paginator("list_invocation_steps").paginate(sessionIdentifier=session)
listed = [summary["invocationStepId"] for page in pages for summary in page["invocationStepSummaries"]]
blocks = client.get_invocation_step(
    sessionIdentifier=session, invocationIdentifier=invocation, invocationStepId=listed[0]
)["invocationStep"]["payload"]["contentBlocks"]
assert blocks[0]["text"] == "hello" and blocks[1]["image"]["source"]["bytes"] == b"bytes"
try:
    client.delete_session(sessionIdentifier=session)
except client.exceptions.ConflictException:
    client.end_session(sessionIdentifier=session)
    client.delete_session(sessionIdentifier=session)
print(len(listed), client.list_sessions()["sessionSummaries"])
"""


def foreign(url: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has never heard of this project: led to the server by AWS's variable, far from the sources."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        VARIABLE: url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_foreign_script_works_by_the_variable_alone() -> None:
    """A boto3 script that knows nothing of this project runs against the command; SIGTERM ends the command cleanly."""
    command = Command()
    done = foreign(command.url, sys.executable, "-c", _SCRIPT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 []\n", "")
    assert command.stop(signal.SIGTERM) == (0, "", "")


def test_the_aws_cli_works_by_the_variable_alone(emulator: Emulator) -> None:
    """The AWS CLI creates, writes, lists, reads, ends and deletes, and shows our refusals as AWS's."""
    with emulator.serve() as server:

        def aws(*arguments: str) -> Any:
            command = (sys.executable, "-m", "awscli", "bedrock-agent-runtime", *arguments, "--output", "json")
            done = foreign(server.url, *command)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout or "null")

        session = aws("create-session", "--session-metadata", "who=cli")["sessionId"]
        arn = aws("get-session", "--session-identifier", session)["sessionArn"]
        where = ("--session-identifier", arn, "--invocation-identifier")
        invocation = aws("create-invocation", *where[:2])["invocationId"]
        image = {"image": {"format": "png", "source": {"bytes": "Ynl0ZXM="}}}
        payload = json.dumps({"contentBlocks": [{"text": "from the CLI"}, image]})
        moment = ("--invocation-step-time", "2026-01-02T03:04:05Z")
        step = aws("put-invocation-step", *where, invocation, *moment, "--payload", payload)["invocationStepId"]
        (listed,) = aws("list-invocation-steps", *where[:2])["invocationStepSummaries"]
        assert (listed["invocationStepId"], listed["sessionId"]) == (step, session)
        got = aws("get-invocation-step", *where, invocation, "--invocation-step-id", step)["invocationStep"]
        assert got["payload"]["contentBlocks"][0] == {"text": "from the CLI"}
        early = foreign(
            server.url, sys.executable, "-m", "awscli", "bedrock-agent-runtime", "delete-session", *where[:2]
        )
        assert "An error occurred (ConflictException) when calling the DeleteSession operation" in early.stderr
        assert aws("end-session", *where[:2])["sessionStatus"] == "ENDED"
        aws("delete-session", *where[:2])
        assert aws("list-sessions") == {"sessionSummaries": []}
