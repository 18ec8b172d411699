"""Talking to the service: an append happens exactly once whatever fails, and every failure is one of our errors."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ConnectTimeoutError,
    IncompleteReadError,
    ParamValidationError,
    TokenRetrievalError,
)
from botocore.stub import Stubber
from botocore.utils import parse_timestamp
from hypothesis import given
from hypothesis import strategies as st

from llama_index_bedrock_sessions._bedrock.client import SessionClient, SessionSummary, default_invocation
from llama_index_bedrock_sessions._bedrock.clock import Clock
from llama_index_bedrock_sessions._bedrock.connection import new_botocore_session
from llama_index_bedrock_sessions._bedrock.errors import NotFound, RequestRejected
from llama_index_bedrock_sessions._bedrock.fork import ForkSafeLock, PerProcess, reset_inherited
from llama_index_bedrock_sessions._bedrock.pool import Pool
from llama_index_bedrock_sessions._journal.ids import Home, Kind, new_id
from llama_index_bedrock_sessions.emulator import Behaviour, Emulator
from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    BedrockSessionsError,
    ConfigurationError,
    CredentialsError,
    RequestRefusedError,
    ThrottledError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from types_boto3_bedrock_agent_runtime import AgentsforBedrockRuntimeClient as Client

START = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
MS = int(START.timestamp() * 1000)
UNKNOWN = "00000000-0000-4000-8000-000000000000"
FAULTS = ["throttle", "internal", "unavailable", "refused", "reset", "lost_reply", "read_timeout", "torn_body"]


class Service:
    """An emulator under one behaviour, our side of it, and an open session."""

    def __init__(self, attempts: int = 1, **behaviour: Any) -> None:
        self.emulator = Emulator(behaviour=replace(Behaviour(), **behaviour))
        self.emulator.clock.stop(START)
        self.attempts = attempts
        self.sessions = SessionClient(self.client, Pool(4))
        self.session = self.sessions.create({}, {}, None).session
        self.invocation = default_invocation(self.session)
        self.sessions.create_invocation(self.session, self.invocation)
        self.count = 0

    def client(self) -> Client:
        # `retries` has a backoff of a second; with the retry handler taken out, a new request is made at once.
        client = self.emulator.client(config=Config(retries={"total_max_attempts": self.attempts, "mode": "standard"}))
        handlers: Any = client.meta.events
        handlers.unregister("needs-retry.bedrock-agent-runtime", unique_id="retry-config-bedrock-agent-runtime")
        handlers.register("needs-retry.bedrock-agent-runtime", self.retry)
        return client

    def retry(self, response: Any, attempts: int, caught_exception: Any, **_: Any) -> int | None:
        """Send again, as botocore does, but without its pause."""
        failed = caught_exception is not None or response[0].status_code >= 500 or response[0].status_code == 429
        return 0 if failed and attempts < self.attempts else None

    def home(self) -> Home:
        self.count += 1
        return Home(self.session, self.invocation, new_id(MS + self.count, Kind.CHANGE))

    def stored(self) -> list[str]:
        self.emulator.faults.clear()
        return sorted(home.step for home, _ in self.sessions.steps(self.session))

    def fail(self, operation: str, fault: str, times: int | None = None) -> None:
        self.emulator.faults.add(operation, 1, fault, times)


def text(content: str = "hello") -> list[dict[str, Any]]:
    """The payload of a step."""
    return [{"text": content}]


# Appending


@pytest.mark.parametrize("known", Behaviour.choices()["known_step_id"])
@pytest.mark.parametrize("fault", FAULTS)
def test_repeated_append_is_stored_once(fault: str, known: str) -> None:
    """Whatever happens to the first attempt, the step is acknowledged and is there exactly once."""
    service = Service(attempts=3, known_step_id=known)
    service.fail("PutInvocationStep", fault, 1)
    home = service.home()
    service.sessions.put(home, MS, text())
    assert service.stored() == [home.step]
    assert service.sessions.step(home) == (text(), MS)


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_append_reports_may_have_happened(fault: str) -> None:
    """Without retries the append is acknowledged if it is there; if not, the error does not claim that it is not."""
    service = Service()
    service.fail("PutInvocationStep", fault)
    home = service.home()
    if fault in {"lost_reply", "read_timeout", "torn_body"}:
        service.sessions.put(home, MS, text())
        assert service.stored() == [home.step]
        return
    with pytest.raises((ThrottledError, UnavailableError)) as raised:
        service.sessions.put(home, MS, text())
    assert raised.value.retryable
    assert raised.value.may_have_happened is (fault != "throttle")
    assert service.stored() == []


@pytest.mark.parametrize("look", ["throttle", "internal", "refused", "access_denied", "torn_body"])
@pytest.mark.parametrize("fault", ["refused", "lost_reply", "internal"])
def test_an_append_nobody_can_look_after_may_have_happened(fault: str, look: str) -> None:
    """Where the look for the step fails too, the error that is raised says that the append may have happened."""
    service = Service()
    service.fail("PutInvocationStep", fault)
    service.fail("GetInvocationStep", look)
    with pytest.raises(UnavailableError) as raised:
        service.sessions.put(service.home(), MS, text())
    assert raised.value.may_have_happened


def test_a_conflict_nobody_can_look_into_may_have_happened() -> None:
    """A step that is refused as known because of its own lost reply is not reported as plainly refused."""
    service = Service(attempts=2)
    service.fail("PutInvocationStep", "lost_reply", 1)
    service.fail("GetInvocationStep", "internal")
    home = service.home()
    with pytest.raises(UnavailableError) as raised:
        service.sessions.put(home, MS, text())
    assert raised.value.may_have_happened
    assert service.stored() == [home.step]


@pytest.mark.parametrize(
    ("then", "error"),
    [("throttle", ThrottledError), ("access_denied", AccessDeniedError), ("internal", UnavailableError)],
)
def test_a_refusal_after_a_lost_reply_is_looked_into(then: str, error: type[BedrockSessionsError]) -> None:
    """The last attempt's refusal says nothing of the first: the step is looked for, and if that fails, may be there."""
    service = Service(attempts=2)
    service.fail("PutInvocationStep", "lost_reply", 1)
    service.fail("PutInvocationStep", then)
    home = service.home()
    service.sessions.put(home, MS, text())
    assert service.stored() == [home.step]

    service.fail("PutInvocationStep", "lost_reply", 1)
    service.fail("PutInvocationStep", then)
    service.fail("GetInvocationStep", "unavailable")
    home = service.home()
    with pytest.raises(error) as raised:
        service.sessions.put(home, MS, text())
    assert raised.value.may_have_happened
    assert home.step in service.stored()


def test_an_append_that_is_not_allowed_did_not_happen() -> None:
    """AccessDenied at the only attempt is raised as such, without a further call."""
    service = Service()
    service.fail("PutInvocationStep", "access_denied")
    with pytest.raises(AccessDeniedError) as raised:
        service.sessions.put(service.home(), MS, text())
    assert not raised.value.may_have_happened
    assert not raised.value.retryable
    assert service.emulator.calls[-1].operation == "PutInvocationStep"


def test_a_known_id_with_other_content_is_refused() -> None:
    """Only equal content means that an append had succeeded before."""
    service = Service()
    home = service.home()
    service.sessions.put(home, MS, text("one"))
    service.sessions.put(home, MS, text("one"))
    with pytest.raises(RequestRejected) as raised:
        service.sessions.put(home, MS, text("two"))
    assert raised.value.code == "ConflictException"
    error = raised.value.error()
    assert isinstance(error, RequestRefusedError)
    assert "ConflictException" in str(error)


def test_an_append_to_what_is_not_there_says_so() -> None:
    """A session or an invocation that does not exist is `NotFound`, an ended session `RequestRejected`."""
    service = Service()
    with pytest.raises(NotFound):
        service.sessions.put(service.home()._replace(invocation=UNKNOWN), MS, text())
    with pytest.raises(NotFound):
        service.sessions.put(service.home()._replace(session=UNKNOWN), MS, text())
    assert service.sessions.end(service.session)
    with pytest.raises(RequestRejected):
        service.sessions.put(service.home(), MS, text())


def test_images_are_compared_by_their_bytes() -> None:
    """A repeated append of an image is recognised as stored."""
    service = Service(attempts=2)
    service.fail("PutInvocationStep", "lost_reply", 1)
    home, payload = service.home(), [{"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}}, *text()]
    service.sessions.put(home, MS, payload)
    assert service.sessions.step(home)[0] == payload


# Reading


@given(ms=st.integers(1, 4_102_444_800_000))
def test_times_come_back_to_the_millisecond(ms: int) -> None:
    """The time a step is put with is the time it is listed with."""
    home = SHARED.home()
    SHARED.sessions.put(home, ms, text())
    assert SHARED.sessions.step(home)[1] == ms


SHARED = Service()


@pytest.mark.parametrize("pages", Behaviour.choices()["pages"])
def test_lists_are_read_to_their_last_page(pages: str) -> None:
    """Short and empty pages in between do not end a list, of steps or of sessions."""
    service = Service(pages=pages, largest_page=2)
    homes = [service.home() for _ in range(7)]
    for home in homes:
        service.sessions.put(home, MS, text())
    others = [service.sessions.create({}, {}, None).session for _ in range(4)]
    assert dict(service.sessions.steps(service.session)) == dict.fromkeys(homes, MS)
    listed = service.sessions.list_sessions()
    assert sorted(s.session for s in listed) == sorted([service.session, *others])
    assert set(listed) == {SessionSummary(s.session, "ACTIVE", MS, s.arn, MS) for s in listed}


@pytest.mark.parametrize("operation", ["GetSession", "ListSessions", "ListInvocationSteps", "GetInvocationStep"])
def test_truncated_response_is_not_read_as_empty(operation: str) -> None:
    """botocore does not notice a torn body; reading it raises, and never shows a list without its entries."""
    service = Service()
    home = service.home()
    service.sessions.put(home, MS, text())
    calls: dict[str, Callable[[], object]] = {
        "GetSession": lambda: service.sessions.get(service.session),
        "ListSessions": service.sessions.list_sessions,
        "ListInvocationSteps": lambda: list(service.sessions.steps(service.session)),
        "GetInvocationStep": lambda: service.sessions.step(home),
    }
    service.fail(operation, "torn_body", 1)
    with pytest.raises(UnavailableError, match="cut off") as raised:
        calls[operation]()
    assert not raised.value.may_have_happened
    calls[operation]()


def test_a_session_whose_creation_was_cut_off_may_exist() -> None:
    """A torn answer to CreateSession raises an error that says so."""
    service = Service()
    service.fail("CreateSession", "torn_body", 1)
    with pytest.raises(UnavailableError) as raised:
        service.sessions.create({}, {}, None)
    assert raised.value.may_have_happened
    assert len(service.sessions.list_sessions()) == 2


def test_a_step_whose_name_has_not_the_form_of_an_id_is_gone() -> None:
    """What a stored reference names is not there, whatever the service says of such names."""
    service = Service()
    with pytest.raises(NotFound):
        service.sessions.step(Home(service.session, "nonsense", "x"))


def test_fetch_returns_each_step_or_none() -> None:
    """Steps are got in parallel and come in the order asked for; one that is gone is None."""
    service = Service()
    homes = [service.home() for _ in range(6)]
    for home in homes[:5]:
        service.sessions.put(home, MS, text(home.step))
    fetched = service.sessions.fetch(homes)
    assert [home for home, _ in fetched] == homes
    assert [found and found[0] for _, found in fetched] == [*(text(h.step) for h in homes[:5]), None]
    service.fail("GetInvocationStep", "internal", 1)
    with pytest.raises(UnavailableError):
        service.sessions.fetch(homes)


# Sessions


def test_session_is_created_with_given_settings() -> None:
    """Metadata, tags and the encryption key arrive, and are read back with times in ms."""
    service = Service()
    arn = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000"
    summary = service.sessions.create({"a": "b"}, {"team": "red"}, arn)
    info = service.sessions.get(summary.session)
    assert summary.arn == info.arn
    assert (info.status, info.created, info.updated) == ("ACTIVE", MS, MS)
    assert (info.metadata, info.encryption_key_arn) == ({"a": "b"}, arn)
    assert info.arn
    assert service.sessions.tags(info.arn) == {"team": "red"}
    bare = service.sessions.get(service.session)
    assert (bare.metadata, bare.encryption_key_arn) == ({}, None)


def test_tags_that_may_not_be_read_are_none() -> None:
    """Reading tags needs a permission of its own: without it, and for what is no ARN, there are none."""
    service = Service()
    arn = service.sessions.get(service.session).arn
    assert arn
    service.fail("ListTagsForResource", "access_denied", 1)
    assert service.sessions.tags(arn) == {}
    assert service.sessions.tags("this is not an ARN at all") == {}
    with pytest.raises(NotFound):
        service.sessions.tags(arn.replace(service.session, UNKNOWN))


def test_refusal_to_create_a_session_is_reported() -> None:
    """A refused CreateSession is our error with the service's reason."""
    service = Service(sessions_per_account=1)
    with pytest.raises(RequestRefusedError, match="create a session: ServiceQuotaExceededException"):
        service.sessions.create({}, {}, None)


def test_a_session_is_ended_and_deleted() -> None:
    """An active session cannot be deleted, an ended one can, and is gone then."""
    service = Service(end_when_closed="ConflictException")
    with pytest.raises(RequestRejected):
        service.sessions.delete(service.session)
    assert service.sessions.end(service.session)
    assert not service.sessions.end(service.session)
    service.sessions.delete(service.session)
    for call in (service.sessions.get, service.sessions.end, service.sessions.delete):
        with pytest.raises(NotFound):
            call(service.session)


def test_an_invocation_that_exists_is_fine() -> None:
    """Creating an invocation twice succeeds; an id or a description that is not accepted is refused."""
    service = Service()
    service.sessions.create_invocation(service.session, service.invocation, "a description")
    with pytest.raises(RequestRejected):
        service.sessions.create_invocation(service.session, "nonsense")
    with pytest.raises(NotFound):
        service.sessions.create_invocation(UNKNOWN, service.invocation)


def test_the_default_invocation_follows_from_the_session() -> None:
    """Everybody derives the same id, and of each session another one; it is part of the format."""
    assert default_invocation(UNKNOWN) == "49637325-c964-5746-91fa-1f9d9db5e746"
    assert default_invocation(UNKNOWN.replace("0", "1")) != default_invocation(UNKNOWN)


# Errors


def stubbed(method: str, code: str, message: str, status: int) -> SessionClient:
    """Sessions over a client that answers one call with an error the emulator does not produce."""
    client: Any = Emulator().client()
    stubber = Stubber(client)
    stubber.add_client_error(method, service_error_code=code, service_message=message, http_status_code=status)
    stubber.activate()
    return SessionClient(lambda: client, Pool(1))


def test_an_expired_token_is_a_matter_of_credentials() -> None:
    """AWS answers 403 for an expired token too; it is told apart from a policy that denies."""
    sessions = stubbed("get_session", "ExpiredTokenException", "The security token has expired.", 403)
    with pytest.raises(CredentialsError, match=r"expired\. Renew"):
        sessions.get(UNKNOWN)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, NotFound), (403, AccessDeniedError), (409, RequestRejected), (429, ThrottledError), (502, UnavailableError)],
)
def test_an_error_without_a_type_is_understood_by_its_status(status: int, expected: type[Exception]) -> None:
    """Proxies and load balancers answer without an error type: botocore's code is the status then."""
    with pytest.raises(expected):
        stubbed("get_session", str(status), "", status).get(UNKNOWN)


def test_refusal_to_list_sessions_is_reported() -> None:
    """ListSessions has no session that could be gone: any refusal is raised as our error."""
    with pytest.raises(RequestRefusedError, match="list sessions"):
        stubbed("list_sessions", "ValidationException", "no", 400).list_sessions()


def test_the_text_of_a_denial_is_kept() -> None:
    """IAM's denials spell `Message` with a capital: its text and the missing action are in our error."""
    service = Service()
    service.fail("GetSession", "access_denied")
    with pytest.raises(AccessDeniedError, match=r"User is not authorized .* Allow bedrock:GetSession"):
        service.sessions.get(service.session)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("throttle", ThrottledError),
        ("internal", UnavailableError),
        ("unavailable", UnavailableError),
        ("refused", UnavailableError),
        ("reset", UnavailableError),
        ("lost_reply", UnavailableError),
        ("read_timeout", UnavailableError),
        ("access_denied", AccessDeniedError),
    ],
)
def test_every_fault_of_the_service_or_the_network_has_its_error(
    fault: str, expected: type[BedrockSessionsError]
) -> None:
    """A read that fails raises the error of its kind, which never claims that something may have happened."""
    service = Service()
    service.fail("GetSession", fault)
    with pytest.raises(expected) as raised:
        service.sessions.get(service.session)
    assert type(raised.value) is expected
    assert not raised.value.may_have_happened
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectTimeoutError(endpoint_url="https://example.com"), UnavailableError),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), UnavailableError),
        (TokenRetrievalError(provider="sso", error_msg="expired"), CredentialsError),
        (ParamValidationError(report="no"), RequestRefusedError),
    ],
)
def test_what_botocore_raises_by_itself_has_our_error(error: Exception, expected: type[BedrockSessionsError]) -> None:
    """Errors that no service answered are translated as well, raised here by a hook before the request is signed."""

    def client() -> Client:
        made = Emulator().client()
        made.meta.events.register("before-call", fail)
        return made

    def fail(**_: Any) -> None:
        raise error

    with pytest.raises(expected) as raised:
        SessionClient(client, Pool(1)).get(UNKNOWN)
    assert type(raised.value) is expected


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which boto3 finds nothing."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


def of_boto3(profile_name: str | None = None, region_name: str | None = None, **arguments: str) -> Client:
    """A client as any boto3 program makes it."""
    session: Any = boto3.Session(profile_name=profile_name, region_name=region_name)
    client: Client = session.client("bedrock-agent-runtime", **arguments)
    return client


def test_no_region_is_said_clearly(isolated: Path) -> None:
    """Without a region the error names the ways to set one, and the way without an account."""
    with pytest.raises(ConfigurationError, match=r"region_name=.*BedrockSessionsChatStore\.local"):
        SessionClient(of_boto3, Pool(1)).list_sessions()


def test_no_credentials_are_said_clearly(isolated: Path) -> None:
    """Without credentials nothing is sent, and the error says what to do."""
    sessions = SessionClient(lambda: of_boto3(region_name="us-east-1"), Pool(1))
    with pytest.raises(CredentialsError, match="Configure them as for any boto3 program"):
        sessions.list_sessions()


def test_an_unknown_profile_is_said_clearly(isolated: Path) -> None:
    """A profile that does not exist is named, when the client is first needed."""
    sessions = SessionClient(lambda: of_boto3("nobody"), Pool(1))
    with pytest.raises(ConfigurationError, match="nobody"):
        sessions.client()


def test_arguments_that_make_no_client_are_said_clearly(isolated: Path) -> None:
    """Whatever boto3 raises for an endpoint that is none is a matter of configuration; ours is passed on."""

    def refuse() -> Client:
        raise CredentialsError("ours")

    sessions = SessionClient(lambda: of_boto3(region_name="us-east-1", endpoint_url="nonsense"), Pool(1))
    with pytest.raises(ConfigurationError, match="nonsense"):
        sessions.client()
    with pytest.raises(CredentialsError, match=r"^ours$"):
        SessionClient(refuse, Pool(1)).client()


SECRETS = {
    "aws_access_key_id": "AKIDSECRETSECRET",
    "aws_secret_access_key": "wJalrSECRETSECRETSECRET",
    "aws_session_token": "FwoGSECRETSECRETSECRET",
}


@pytest.mark.parametrize("fault", ["access_denied", "internal", "refused", "reset", "read_timeout", "throttle"])
def test_no_error_of_a_call_tells_a_secret(fault: str) -> None:
    """However a call fails, no credential is in the error or in what it was raised from."""
    emulator = Emulator()
    config = Config(retries={"total_max_attempts": 1})
    sessions = SessionClient(lambda: emulator.client(config=config, **SECRETS), Pool(1))
    emulator.faults.add(None, 1, fault)
    with pytest.raises(BedrockSessionsError) as raised:
        sessions.list_sessions()
    told = f"{raised.value!r} {raised.value} {raised.value.__cause__!r}"
    assert not [secret for secret in SECRETS.values() if secret in told]


def test_no_error_of_making_a_client_tells_a_secret(isolated: Path) -> None:
    """Incomplete or unusable credentials are reported without their values."""
    (isolated / "credentials").write_text("[half]\naws_access_key_id = AKIDSECRETSECRET\n")
    makers: list[Callable[[], Client]] = [
        lambda: of_boto3(region_name="us-east-1", aws_access_key_id="AKIDSECRETSECRET"),
        lambda: of_boto3(region_name="us-east-1", aws_secret_access_key="wJalrSECRET"),
        lambda: of_boto3("half", "us-east-1"),
    ]
    for maker in makers:
        with pytest.raises(CredentialsError) as raised:
            SessionClient(maker, Pool(1)).client()
        assert "SECRET" not in f"{raised.value!r} {raised.value.__cause__!r}"


# The clock


def header(seconds: float) -> str:
    """A `Date` header for a time: whole seconds, cut off."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def clock_at(local: float) -> Clock:
    """A clock whose local time stands still."""
    return Clock(lambda: local)


def test_a_local_clock_that_may_be_right_is_trusted() -> None:
    """Where the replies allow that the local clock is right, its time is the time, with its milliseconds."""
    clock = clock_at(1000.25)
    assert clock.now() == 1_000_250
    clock.saw(header(1000.25), 1000.2, 1000.3)
    assert clock.now() == 1_000_250


@given(offset=st.floats(-1e6, 1e6), latency=st.lists(st.floats(0, 0.5), min_size=1, max_size=8))
def test_wrong_local_clock_is_corrected_to_a_second(offset: float, latency: list[float]) -> None:
    """However far off the local clock is, the error is at most a second and the shortest round trip."""
    local = 2e9
    clock = clock_at(local)
    for n, seconds in enumerate(latency):
        sent = local + n / 10
        clock.saw(header(sent + offset + seconds / 2), sent, sent + seconds)
    assert abs(clock.now() / 1000 - (local + offset)) <= 1 + min(latency) + 0.002


def test_bounds_that_exclude_each_other_start_anew() -> None:
    """When a clock has been set, what was learnt before counts no more."""
    clock = clock_at(5000.0)
    clock.saw(header(9000), 5000.0, 5000.1)
    assert 8_999_000 <= clock.now() <= 9_001_100
    clock.saw(header(5000.5), 5000.0, 5000.1)
    assert clock.now() == 5_000_000
    clock.saw(header(1000), 5000.0, 5000.1)
    assert 999_800 <= clock.now() <= 1_001_100


@pytest.mark.parametrize(
    "date", [None, "", "yesterday", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 32 Jan 2024 00:00:00 GMT"]
)
def test_a_date_that_is_none_teaches_nothing(date: str | None) -> None:
    """A missing or unreadable `Date` header leaves the clock as it was."""
    clock = clock_at(1000.0)
    clock.saw(date, 1000.0, 1000.0)
    assert clock.now() == 1_000_000


def test_service_time_is_read_from_every_reply() -> None:
    """With a local clock that is minutes off, an answered call of any kind is enough to know the time."""
    for method in ("list_sessions", "get"):
        service = Service()
        service.sessions.clock = clock_at(START.timestamp() - 600)
        if method == "get":
            with pytest.raises(NotFound):
                service.sessions.get(UNKNOWN)
        else:
            service.sessions.list_sessions()
        assert abs(service.sessions.clock.now() - MS) <= 1000


# The pool

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(4)
    yield pool
    pool.close()


def test_what_is_mapped_runs_in_parallel(pool: Pool) -> None:
    """As many as there are threads, and the caller, run at once, and results keep their order."""
    everybody = threading.Barrier(4, timeout=30)

    def meet(item: int) -> int:
        everybody.wait()
        return item * 10

    assert pool.map(meet, [1, 2, 3, 4]) == [10, 20, 30, 40]
    assert pool.map(lambda item: item, [7]) == [7]
    assert pool.map(lambda item: item, []) == []


def test_a_pool_of_one_thread_maps_within_itself() -> None:
    """Work in the pool that waits for work in the pool does it itself: nothing waits for ever."""
    pool = Pool(1)

    def nested(depth: int) -> int:
        return sum(pool.map(nested, [depth - 1] * 3)) if depth else 1

    try:
        assert asyncio.run(pool.run(lambda: nested(3))) == 27
    finally:
        pool.close()


def test_the_callers_context_is_seen_in_the_pool(pool: Pool) -> None:
    """Context variables (tracing) pass into the pool, and what is set there does not come back."""

    def seen(value: str) -> str:
        before = colour.get()
        colour.set(value)
        return before

    async def main() -> str:
        colour.set("red")
        return await pool.run(lambda: seen("blue")) + colour.get()

    assert asyncio.run(main()) == "redred"
    token = colour.set("green")
    assert set(pool.map(lambda _: colour.get(), range(20))) == {"green"}
    colour.reset(token)


def test_an_error_is_raised_when_everything_has_ended(pool: Pool) -> None:
    """Of several errors the first in order is raised, and no work is left behind."""
    ended: list[int] = []

    def work(item: int) -> int:
        ended.append(item)
        if item in wrong:
            raise ValueError(item)
        return item

    # The caller does the first itself.
    for wrong in ({0, 3, 6}, {1, 4, 7}):
        ended.clear()
        with pytest.raises(ValueError, match=rf"^{min(wrong)}$"):
            pool.map(work, range(9))
        assert sorted(ended) == list(range(9))


def test_work_that_has_begun_is_waited_for() -> None:
    """A task another thread has begun is not done twice, and its error is passed on."""
    pool, begun, go = Pool(1), threading.Event(), threading.Event()
    ran: list[str] = []

    def work(item: str) -> str:
        ran.append(item)
        if item == "first":
            assert begun.wait(30)
            go.set()
        else:
            begun.set()
            assert go.wait(30)
        if item == "fails":
            raise ValueError(item)
        return item

    try:
        assert pool.map(work, ["first", "second"]) == ["first", "second"]
        begun.clear()
        go.clear()
        with pytest.raises(ValueError, match="fails"):
            pool.map(work, ["first", "fails"])
        assert sorted(ran) == ["fails", "first", "first", "second"]
    finally:
        pool.close()


def test_a_closed_pool_starts_again_when_it_is_needed(pool: Pool) -> None:
    """Closing lets the threads go; later work finds new ones."""
    pool.close()
    pool.close()
    assert pool.map(lambda item: item, [1, 2]) == [1, 2]


def test_a_child_makes_its_own_client_and_threads() -> None:
    """A forked child has neither the client nor the threads of its parent; it makes them when they are needed."""
    made: list[Client] = []
    emulator = Emulator()

    def client() -> Client:
        made.append(emulator.client())
        return made[-1]

    pool = Pool(2)
    sessions = SessionClient(client, pool)
    pool.map(lambda item: item, [1, 2])
    assert sessions.client() is sessions.client()
    reset_inherited()
    assert sessions.client() is sessions.client()
    assert pool.map(lambda item: item, [1, 2]) == [1, 2]
    assert len(made) == 2
    pool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_can_use_what_its_parent_used() -> None:
    """After a fork, a pool whose threads exist only in the parent works in the child."""
    script = """
import os, sys
from llama_index_bedrock_sessions._bedrock.pool import Pool
pool = Pool(2)
assert pool.map(str, [1, 2, 3]) == ["1", "2", "3"]
child = os.fork()
if child == 0:
    done = pool.map(str, [4, 5, 6]) == ["4", "5", "6"]
    os._exit(0 if done else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_lock_is_free_in_a_forked_child() -> None:
    """Locks that the forking thread and another thread hold are free in the child, which can leave its own."""
    script = """
import os, sys, threading
from llama_index_bedrock_sessions._bedrock.fork import ForkSafeLock, PerProcess
own, other, held, made = ForkSafeLock(), ForkSafeLock(), threading.Event(), []
def make():
    if not made:
        made.append(os.getpid())
        held.set()
        threading.Event().wait()
    return os.getpid()
resource = PerProcess(make)
def hold():
    with other:
        resource.get()
threading.Thread(target=hold, daemon=True).start()
held.wait()
with own:
    child = os.fork()
    if child == 0:
        def use():
            with own, own, other:
                assert resource.get() == os.getpid()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        use()
if child == 0:
    use()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


def test_a_lock_excludes_other_threads() -> None:
    """A thread can enter it twice, and no other thread can until it has left it twice."""
    lock, entered = ForkSafeLock(), threading.Event()

    def enter() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=enter)
    with lock:
        with lock:
            thread.start()
        assert not entered.wait(0.01)
    thread.join()
    assert entered.is_set()


def test_a_failed_resource_is_made_by_the_next_use() -> None:
    """An error of making it is raised; what was made is kept until it is taken."""
    made = iter([0, 1, 2])
    resource = PerProcess(lambda: 1 / next(made))
    with pytest.raises(ZeroDivisionError):
        resource.get()
    assert (resource.get(), resource.get(), resource.take(), resource.take(), resource.get()) == (1, 1, 1, None, 0.5)


def test_what_is_reset_after_a_fork_can_be_collected() -> None:
    """That a lock or a resource would be reset in a child does not keep it in memory."""
    resource = PerProcess(ForkSafeLock)
    references: list[weakref.ref[Any]] = [weakref.ref(resource), weakref.ref(resource.get())]
    reset_inherited()
    assert references[1]() is None
    del resource
    assert references[0]() is None


def test_the_client_is_made_once_by_many_threads() -> None:
    """Threads that need the client at the same moment get the same one."""
    made: list[Client] = []
    emulator = Emulator()

    def client() -> Client:
        made.append(emulator.client())
        return made[-1]

    pool = Pool(4)
    sessions = SessionClient(client, pool)
    assert len(set(map(id, pool.map(lambda _: sessions.client(), range(8))))) == 1
    assert len(made) == 1
    pool.close()


def test_a_session_of_botocore_serves_as_well() -> None:
    """A client made from a botocore session works: nothing depends on boto3's own."""
    emulator = Emulator()
    assert botocore.session.get_session().get_config_variable("profile") is None
    assert SessionClient(emulator.client, Pool(1)).list_sessions() == []


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T21:12:25.123Z",
        "2026-11-22T21:12:25Z",
        "2026-11-22T21:12:25.1+02:00",
        "2026-11-22T21:12:25.123",  # without a zone
        "1795381945.5",
    ],
)
def test_timestamps_are_parsed_as_botocore_does(text: str) -> None:
    ours: Any = new_botocore_session().get_component("response_parser_factory").create_parser("rest-json")
    assert ours._timestamp_parser(text) == parse_timestamp(text)
    with pytest.raises(ValueError, match="yesterday"):
        ours._timestamp_parser("yesterday")
