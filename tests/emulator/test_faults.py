"""Faults as data: what reaches the service and what reaches boto3, in process and over HTTP alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from llama_index_bedrock_sessions.emulator import FAULTS, Emulator, Faults

if TYPE_CHECKING:
    from types_boto3_bedrock_agent_runtime import AgentsforBedrockRuntimeClient

pytestmark = pytest.mark.thorough

Connect = Callable[..., "AgentsforBedrockRuntimeClient"]
ONCE: Any = {"total_max_attempts": 1}
# fault -> (what a client without retries raises, in process and over HTTP; whether the service carried the call out)
EXPECTED: dict[str, tuple[Any, Any, bool]] = {
    "throttle": ("ThrottlingException", "ThrottlingException", False),
    "internal": ("InternalServerException", "InternalServerException", False),
    "unavailable": ("503", "503", False),
    "access_denied": ("AccessDeniedException", "AccessDeniedException", False),
    "refused": (EndpointConnectionError, ConnectionClosedError, False),
    "reset": (ConnectionClosedError, ConnectionClosedError, False),
    "lost_reply": (ConnectionClosedError, ConnectionClosedError, True),
    "read_timeout": (ReadTimeoutError, ReadTimeoutError, True),
    "torn_body": (None, (None, ConnectionClosedError), True),  # botocore 1.37 checks the Content-Length
    "slow": (None, None, True),
}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(params=["in process", "over HTTP"])
def connect(request: pytest.FixtureRequest, emulator: Emulator) -> Iterator[Connect]:
    """Give what makes clients, of either transport."""
    if request.param == "in process":
        yield emulator.client
        return
    with emulator.serve() as server:

        def connect(config: Config) -> Any:
            return botocore.session.Session().create_client(
                "bedrock-agent-runtime",
                endpoint_url=server.url,
                region_name="us-east-1",
                aws_access_key_id="a",
                aws_secret_access_key="b",
                config=config,
            )

        yield connect


def outcome(call: Callable[[], Any]) -> Any:
    """Return the error code or the exception class a call ends with, None if it returns."""
    try:
        call()
    except ClientError as error:
        response: Any = error.response
        return response["Error"]["Code"]
    except (ConnectionClosedError, EndpointConnectionError, ReadTimeoutError) as error:
        return type(error)
    return None


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_each_fault_has_its_effect(
    fault: str, connect: Connect, emulator: Emulator, request: pytest.FixtureRequest
) -> None:
    """The client sees the fault as botocore shows it, and the service has or has not carried the call out."""
    client = connect(config=Config(retries=ONCE, read_timeout=1))
    emulator.faults.add("CreateSession", 1, fault, seconds=0.001)
    in_process, over_http, carried_out = EXPECTED[fault]
    expected = in_process if "in process" in request.node.name else over_http
    assert outcome(client.create_session) in (expected if isinstance(expected, tuple) else (expected,))
    assert [fired.fault for fired in emulator.faults.fired] == [fault]
    assert len(client.list_sessions()["sessionSummaries"]) == int(carried_out)


@pytest.mark.parametrize("mode", ["standard", "legacy"])
@pytest.mark.parametrize("fault", sorted(FAULTS - {"access_denied", "slow", "torn_body"}))
def test_botocore_retries_what_it_retries_on_aws(
    fault: str, mode: str, connect: Connect, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passing fault is retried by botocore, and a reply lost after the commit makes it send the call again."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # botocore's pause before a retry
    retries: Any = {"mode": mode, "total_max_attempts": 3}
    client = connect(config=Config(retries=retries, read_timeout=1))
    emulator.faults.add("CreateSession", 1, fault)
    answer = client.create_session()
    assert answer["ResponseMetadata"]["RetryAttempts"] == 1
    assert len(client.list_sessions()["sessionSummaries"]) == (2 if EXPECTED[fault][2] else 1)


def test_a_torn_body_goes_unnoticed_by_botocore(emulator: Emulator) -> None:
    """Half an answer is returned as an answer without its members: a program has to look for them."""
    client = emulator.client(config=Config(retries=ONCE))
    emulator.faults.add("CreateSession", 1, "torn_body")
    answer = client.create_session()
    assert "sessionId" not in answer
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 201


def test_iam_s_refusal_has_a_capital_message(emulator: Emulator) -> None:
    """AccessDenied comes as {"Message": ...}, as IAM's refusals were seen, and botocore reads it."""
    client = emulator.client()
    emulator.faults.add(None, 1, "access_denied")
    with pytest.raises(ClientError, match="not authorized to perform: bedrock:ListSessions"):
        client.list_sessions()
    assert emulator.calls[-1].response_body.startswith(b'{"Message":')


def test_a_delay_beyond_the_read_timeout_is_a_timeout(emulator: Emulator) -> None:
    """`slow` carries the call out; a client that waits less than that gets a ReadTimeoutError."""
    client = emulator.client(config=Config(retries=ONCE, read_timeout=0.001))
    emulator.faults.add("CreateSession", 1, "slow", seconds=30)
    assert outcome(client.create_session) is ReadTimeoutError
    assert emulator.calls.count("CreateSession") == 1


def test_rules_count_matching_calls(emulator: Emulator) -> None:
    """`nth` counts calls of the operation from when the fault was added, `times` how many fail."""
    client = emulator.client(config=Config(retries=ONCE))
    client.list_sessions()
    emulator.faults.add("ListSessions", 2, "throttle", times=2)
    emulator.faults.add("*", 6, "internal", times=None)
    client.create_session()
    codes = [outcome(client.list_sessions) for _ in range(6)]
    throttled, failed = "ThrottlingException", "InternalServerException"
    assert codes == [None, throttled, throttled, None, failed, failed]
    emulator.faults.clear()
    assert emulator.faults.fired == []
    assert outcome(client.list_sessions) is None


def test_the_first_of_several_faults_on_a_call_happens(emulator: Emulator) -> None:
    """Two faults on one call: the one added first fires, and both have counted the call."""
    client = emulator.client(config=Config(retries=ONCE))
    emulator.faults.add(None, 1, "throttle")
    emulator.faults.add("ListSessions", 1, "internal")
    assert outcome(client.list_sessions) == "ThrottlingException"
    assert outcome(client.list_sessions) is None


def test_calls_say_what_was_done_to_them(emulator: Emulator) -> None:
    """A call that reached the service is recorded with its fault; one that did not is only among the fired."""
    client = emulator.client(config=Config(retries=ONCE))
    for fault in ("reset", "lost_reply"):
        emulator.faults.add(None, 1, fault)
        outcome(client.create_session)
    client.create_session()
    assert [call.fault for call in emulator.calls] == ["lost_reply", None]
    assert [(fired.operation, fired.fault) for fired in emulator.faults.fired] == [
        ("CreateSession", "reset"),
        ("CreateSession", "lost_reply"),
    ]


def test_latency_is_added_to_every_call(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """`latency` is the pause before each answer, in seconds."""
    paused: list[float] = []
    monkeypatch.setattr("time.sleep", paused.append)
    client = emulator.client()
    emulator.faults.latency = 0.02
    client.list_sessions()
    client.create_session()
    assert paused == [0.02, 0.02]


@pytest.mark.parametrize("wrong", [("GetSession", 1, "earthquake"), (None, 0, "reset"), (None, 1, "reset", 0)])
def test_wrong_faults_are_refused(wrong: Any) -> None:
    """An unknown fault, and counting from zero, are a ValueError."""
    with pytest.raises(ValueError, match=r"fault|count"):
        Faults().add(*wrong)
