"""The only module that talks to a boto3 client: open, append exactly once, list, fetch, end, delete.

It turns botocore's errors into ours, keeps the service's time, and knows nothing of what a step says. boto3 clients are
thread-safe; everything here is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, ParamSpec, TypeVar

import botocore.exceptions as aws
import botocore.session
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from llama_index_bedrock_sessions import instrumentation
from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    AccountError,
    BedrockSessionsError,
    ConfigurationError,
    CredentialsError,
    RequestRefusedError,
    ThrottledError,
    UnavailableError,
)
from llama_index_bedrock_sessions.journal import Home

if TYPE_CHECKING:
    from types_boto3_bedrock_agent_runtime import AgentsforBedrockRuntimeClient as Client

    from llama_index_bedrock_sessions.blocks import ContentBlock

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

logger = logging.getLogger("llama_index_bedrock_sessions")

SETTLE = 2.0
"""Seconds in which the service has to list what was written, where something is deleted that no list has shown."""
PAGE = 1000
"""Entries asked of a list: `maxResults` is 1..1000 (service model)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
BAD_CREDENTIALS = {
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "ExpiredTokenException",
    "ExpiredToken",
    "InvalidClientTokenId",
    "IncompleteSignature",
    "MissingAuthenticationTokenException",
}


class Gone(RequestRefusedError):  # noqa: N818 - a fact about a session
    """The session, or the step, does not exist (any more): a fact that is acted upon, and rarely an error."""


class Refused(RequestRefusedError):  # noqa: N818 - an answer of the service
    """The service refused the request; `code` is its word for it. What it means is read from GetSession, never here."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self._message = message

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:
        return type(self), (self.code, self._message)

    def error(self) -> RequestRefusedError:
        """Return it as an error for the caller."""
        return RequestRefusedError(f"Bedrock refused the request: {self}")


class SessionInfo(NamedTuple):
    """What `GetSession` says; times in ms since the epoch."""

    session: str
    status: str
    created: int
    updated: int
    metadata: Mapping[str, str]
    encryption_key_arn: str | None
    arn: str | None = None


class Summary(NamedTuple):
    """What `ListSessions` says of a session; times in ms since the epoch."""

    session: str
    status: str
    created: int
    arn: str | None = None
    updated: int = 0


class Pool:
    """A bounded thread pool that cannot deadlock on itself: who waits for a task that has not begun does it himself."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        after_fork(self)

    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = concurrent.futures.ThreadPoolExecutor(self.size, "bedrock-sessions")
            return self._executor

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return [function(item)] in order, done in parallel; the first error is raised after all have ended."""
        if len(items) <= 1:
            return [function(item) for item in items]
        run = self._pool()
        futures = [run.submit(contextvars.copy_context().run, function, item) for item in items[1:]]
        outcomes: list[Callable[[], R]] = [_attempt(function, items[0])]
        for future, item in zip(futures, items[1:], strict=True):
            outcomes.append(_attempt(function, item) if future.cancel() else _settled(future))
        return [outcome() for outcome in outcomes]

    async def run(self, function: Callable[[], R]) -> R:
        """Run a function in the pool, in a copy of the caller's context."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool(), context.run, function)

    def forget(self) -> None:
        """Drop the threads: in a forked child they do not exist."""
        self._lock = threading.Lock()
        self._executor = None

    def close(self) -> None:
        """Let the threads go once they are idle."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)


def _attempt(function: Callable[[T], R], item: T) -> Callable[[], R]:
    try:
        result = function(item)
    except Exception as error:  # noqa: BLE001 - raised by the caller, once everything has ended
        return functools.partial(_raise, error)
    return lambda: result


def _settled(future: concurrent.futures.Future[R]) -> Callable[[], R]:
    concurrent.futures.wait([future])
    return future.result


def _raise(error: BaseException) -> NoReturn:
    raise error


_forgetful: weakref.WeakSet[Any] = weakref.WeakSet()


def after_fork(thing: Any) -> None:
    """Have `thing.forget()` called in every child this process forks: locks, threads and sockets do not survive it."""
    _forgetful.add(thing)


def _forget_all() -> None:
    for thing in list(_forgetful):
        thing.forget()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)


class Clock:
    """The service's time. The `Date` header of each reply bounds how wrong the local clock is, to about a second."""

    def __init__(self, local: Callable[[], float] = time.time) -> None:
        self.local = local
        self._low, self._high = -math.inf, math.inf

    def saw(self, date: str | None, sent: float, received: float) -> None:
        """Learn from a reply: its `Date` header, and the local times (seconds) around it."""
        stamp = _seconds(date) if date else None
        if stamp is None:
            return
        low, high = stamp - received, stamp + 1 - sent
        both = max(low, self._low), min(high, self._high)
        # Bounds that exclude each other: one of the clocks was set.
        self._low, self._high = both if both[0] <= both[1] else (low, high)

    def now(self) -> int:
        """Return the service's time in ms since the epoch: the local one, where that is possible."""
        offset = 0.0 if self._low <= 0 <= self._high else self._low if self._low > 0 else self._high
        return int((self.local() + offset) * 1000)


@functools.lru_cache(maxsize=16)  # replies of one second say the same
def _seconds(date: str) -> float | None:
    """Return the seconds since the epoch of a `Date` header, None if it cannot be read."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def new_botocore_session() -> botocore.session.Session:
    """Return a botocore session whose clients read a list of steps quickly.

    botocore reads every timestamp by dateutil, most of the time that a list takes: 41 us for what `fromisoformat`
    reads in 0.1 us (Python 3.11). What that does not read, botocore does.
    """
    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp)
    return session


def timestamp(value: Any) -> datetime:
    """Return a timestamp of a reply, as botocore's parser does."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(value.replace("Z", "+00:00"))  # Python 3.10 does not know Z
            if found.tzinfo is not None:
                return found
    parsed: datetime = parse_timestamp(value)
    return parsed


class Sessions:
    """The session operations of one client, in our words. The client is made when it is first needed."""

    def __init__(self, make_client: Callable[[], Client], pool: Pool, settle: float = SETTLE) -> None:
        self._make_client = make_client
        self._client: Client | None = None
        self._lock = threading.Lock()
        self.pool = pool
        self.clock = Clock()
        self.settle = settle
        self.sleep: Callable[[float], object] = time.sleep
        after_fork(self)

    def wait_until_listed(self) -> None:
        """Return once lists show all that was written before, if the service needs no longer than `settle` for it."""
        if self.settle:
            self.sleep(self.settle)

    def forget(self) -> None:
        """Drop the client: its connections belong to the process that opened them."""
        self._lock = threading.Lock()
        self._client = None

    def client(self) -> Client:
        """Return the boto3 client.

        Raises:
            ConfigurationError: no region, or arguments boto3 does not take.
            CredentialsError: the profile does not exist, or credentials are incomplete.

        """
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._make_client()
                except BedrockSessionsError:
                    raise
                except Exception as error:
                    raise translated(error, writes=False) from error
            return self._client

    def _call(
        self, operation: str, member: str | None = None, /, *, writes: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        """Call an operation; `member` has to be in its answer."""
        method: Callable[..., dict[str, Any]] = getattr(self.client(), operation)
        sent, begun = self.clock.local(), time.perf_counter()
        answer: Mapping[str, Any] | None = None
        failure: Exception | None = None
        try:
            answer = reply = method(**arguments)
        except aws.ClientError as error:
            answer, failure = error.response, error
            self._saw(error.response, sent)
            raise _client_error(error, writes=writes) from error
        except ResponseParserError as error:
            failure = error
            what = f"Bedrock's answer to {operation} cannot be read: {error}"
            raise UnavailableError(what, may_have_happened=writes) from error
        except aws.BotoCoreError as error:
            failure = error
            raise translated(error, writes=writes) from error
        finally:
            instrumentation.called(operation, arguments, answer, failure, time.perf_counter() - begun)
        self._saw(reply, sent)
        if member is not None and member not in reply:
            # botocore does not notice that an answer was cut off: it returns none of its members.
            raise UnavailableError(f"Bedrock's answer has no {member}: it was cut off.", may_have_happened=writes)
        return reply

    def _saw(self, reply: Mapping[str, Any], sent: float) -> None:
        headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        self.clock.saw(headers.get("date"), sent, self.clock.local())

    def _pages(self, operation: str, member: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, Any] = {}
        while True:
            reply = self._call(operation, member, maxResults=PAGE, **arguments, **token)
            yield from reply[member]
            if not reply.get("nextToken"):
                return
            token = {"nextToken": reply["nextToken"]}

    # Sessions

    def create(
        self, metadata: Mapping[str, str], tags: Mapping[str, str], encryption_key_arn: str | None
    ) -> SessionInfo:
        """Create a session. A lost reply leaves a session nobody opens; it is adopted by the next who looks."""
        arguments: dict[str, Any] = {"sessionMetadata": dict(metadata)}
        if tags:
            arguments["tags"] = dict(tags)
        if encryption_key_arn:
            arguments["encryptionKeyArn"] = encryption_key_arn
        try:
            reply = self._call("create_session", "sessionId", writes=True, **arguments)
        except (Refused, Gone) as refusal:
            raise RequestRefusedError(f"Bedrock refused to create a session: {refusal}") from refusal
        status, created = reply.get("sessionStatus", "ACTIVE"), self._ms(reply, "createdAt")
        arn = reply.get("sessionArn")
        return SessionInfo(reply["sessionId"], status, created, created, metadata, encryption_key_arn, arn)

    def get(self, session: str) -> SessionInfo:
        """Return what the service says of a session. Raises Gone."""
        reply = self._call("get_session", "sessionStatus", sessionIdentifier=session)
        return SessionInfo(
            session=reply.get("sessionId", session),
            status=reply["sessionStatus"],
            created=self._ms(reply, "createdAt"),
            updated=self._ms(reply, "lastUpdatedAt"),
            metadata=reply.get("sessionMetadata") or {},
            encryption_key_arn=reply.get("encryptionKeyArn"),
            arn=reply.get("sessionArn"),
        )

    def list_sessions(self) -> list[Summary]:
        """Return all sessions of the account and region, in the service's order."""
        try:
            return [
                Summary(
                    s["sessionId"],
                    s.get("sessionStatus", "ACTIVE"),
                    self._ms(s, "createdAt"),
                    s.get("sessionArn"),
                    self._ms(s, "lastUpdatedAt"),
                )
                for s in self._pages("list_sessions", "sessionSummaries")
            ]
        except (Refused, Gone) as refusal:
            raise RequestRefusedError(f"Bedrock refused to list sessions: {refusal}") from refusal

    def end(self, session: str) -> bool:
        """End a session; return whether it takes no more writes now because of this call. Raises Gone."""
        try:
            self._call("end_session", sessionIdentifier=session)
        except Refused:
            return False
        return True

    def delete(self, session: str) -> None:
        """Delete a session, ended before. Raises Gone, Refused."""
        self._call("delete_session", writes=True, sessionIdentifier=session)

    def update(self, session: str, metadata: Mapping[str, str]) -> None:
        """Make this the metadata of a session; whether the service keeps entries left out is unknown.

        Raises Gone, Refused.
        """
        self._call("update_session", sessionIdentifier=session, sessionMetadata=dict(metadata))

    def tag(self, arn: str, tags: Mapping[str, str]) -> None:
        """Add tags to a session. Raises Gone, Refused."""
        self._call("tag_resource", resourceArn=arn, tags=dict(tags))

    def tags(self, arn: str) -> dict[str, str]:
        """Return the tags of a session, {} where they may not be read, or two answers were cut off. Raises Gone."""
        with contextlib.suppress(Refused, AccessDeniedError):
            for _ in range(2):
                reply = self._call("list_tags_for_resource", resourceArn=arn)
                length = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-length", "2")
                # The member is optional. An answer without it that is longer than {} may have been cut off.
                if "tags" in reply or length == "2":
                    return dict(reply.get("tags") or {})
        return {}

    # Invocations and steps

    def create_invocation(self, session: str, invocation: str, description: str | None = None) -> bool:
        """Create an invocation; return whether this call has, and not one before it. Raises Gone, Refused.

        A description may hold lone surrogates, which no request can: the service gets a question mark for each.
        """
        arguments: dict[str, Any] = (
            {"description": description.encode(errors="replace").decode()} if description else {}
        )
        try:
            self._call("create_invocation", sessionIdentifier=session, invocationId=invocation, **arguments)
        except Refused as refusal:
            if refusal.code not in {"ConflictException", "409"}:
                raise
            return False
        return True

    def put(self, home: Home, at: int, payload: list[ContentBlock]) -> None:
        """Store a step exactly once; `at` is its time in ms.

        After any refusal, and after a failure that leaves the outcome open, it looks whether the step is there: a lost
        reply makes botocore send the same step again, which is refused as known.

        Raises:
            Gone: the session or the invocation does not exist.
            Refused: the service does not take it.
            UnavailableError: with `may_have_happened`, if nobody can say.

        """
        try:
            self._call(
                "put_invocation_step",
                writes=True,
                sessionIdentifier=home.session,
                invocationIdentifier=home.invocation,
                invocationStepId=home.step,
                invocationStepTime=at / 1000,
                payload={"contentBlocks": payload},
            )
        except AccountError as failure:
            # An attempt before the one that was refused may have been carried out.
            if not failure.may_have_happened or not self._is_there(home, payload, failure):
                raise
        except (Refused, Gone, UnavailableError, ThrottledError) as failure:
            if not self._is_there(home, payload, failure):
                raise

    def _is_there(self, home: Home, payload: list[ContentBlock], failure: Exception) -> bool:
        try:
            is_there = self.step(home)[0] == payload
        except Gone:
            pass
        except BedrockSessionsError as error:
            if isinstance(failure, (Refused, Gone)):
                # It may have been refused because an attempt before had stored it.
                error.may_have_happened = True
                raise
        else:
            if is_there:
                said = getattr(failure, "code", type(failure).__name__)
                logger.info("step %s of session %s is stored, in spite of %s", home.step, home.session, said)
            return is_there
        if isinstance(failure, UnavailableError):
            # The step may still arrive: a request can be executed after its connection is gone.
            failure.may_have_happened = True
        return False

    def steps(self, session: str) -> Iterator[tuple[Home, int]]:
        """Yield every listed step of a session and its time in ms. Raises Gone."""
        for s in self._pages("list_invocation_steps", "invocationStepSummaries", sessionIdentifier=session):
            yield Home(session, s["invocationId"], s["invocationStepId"]), self._ms(s, "invocationStepTime")

    def step(self, home: Home) -> tuple[list[ContentBlock], int]:
        """Return a step's content blocks, and its time in ms. Raises Gone."""
        try:
            reply = self._call(
                "get_invocation_step",
                "invocationStep",
                sessionIdentifier=home.session,
                invocationIdentifier=home.invocation,
                invocationStepId=home.step,
            )["invocationStep"]
        except Refused as refusal:
            # What a stored reference names may not even have the form of an id.
            raise Gone(str(refusal)) from refusal
        return reply.get("payload", {}).get("contentBlocks") or [], self._ms(reply, "invocationStepTime")

    def fetch(self, homes: Iterable[Home]) -> list[tuple[Home, tuple[list[ContentBlock], int] | None]]:
        """Return each step, or None where it is gone; in parallel."""

        def get(home: Home) -> tuple[Home, tuple[list[ContentBlock], int] | None]:
            try:
                return home, self.step(home)
            except Gone:
                return home, None

        return self.pool.map(get, list(homes))

    def _ms(self, reply: Mapping[str, Any], member: str) -> int:
        moment = reply.get(member)
        # Rounded down, like our own ids: a step is not later than one that was written after it.
        return (moment - _EPOCH) // timedelta(milliseconds=1) if moment is not None else self.clock.now()


@functools.lru_cache(maxsize=1024)
def default_invocation(session: str) -> str:
    """Return the id of a session's default invocation, which everybody derives alike."""
    return str(uuid.uuid5(uuid.UUID(session), "llama-index-bedrock-sessions"))


def _client_error(error: aws.ClientError, *, writes: bool) -> Exception:
    body = error.response.get("Error", {})
    code, message = str(body.get("Code", "")), str(body.get("Message", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    # Of several attempts the last one is known to have been refused, no other.
    repeated = writes and int(metadata.get("RetryAttempts", 0)) > 0
    if code == "ResourceNotFoundException" or (status == 404 and code in {"404", ""}):
        return Gone(message)
    if code in BAD_CREDENTIALS:
        return CredentialsError(
            f"AWS does not accept the credentials ({code}): {message} Renew or replace them.",
            may_have_happened=repeated,
        )
    if code.startswith("AccessDenied") or status == 403:
        return AccessDeniedError(
            f"AWS does not allow {error.operation_name} ({code}): {message} Allow bedrock:{error.operation_name} on "
            "the sessions of this account, and the use of the KMS key if one is set; the README has a policy to paste.",
            may_have_happened=repeated,
        )
    if code.startswith("Throttl") or status == 429:
        return ThrottledError(
            f"Bedrock throttled {error.operation_name} even after retries: {message}", may_have_happened=repeated
        )
    if status >= 500 or code == "InternalServerException":
        return UnavailableError(
            f"Bedrock failed in {error.operation_name} ({code}): {message}", may_have_happened=writes
        )
    return Refused(code, message)


def other_aws_error(error: Exception, what: str) -> BedrockSessionsError | None:
    """Return what boto3 raised for another service of AWS as one of ours; None if it is none of boto3's.

    `what` says what failed, as the beginning of a sentence.
    """
    if isinstance(error, aws.BotoCoreError):
        return translated(error, writes=False, service=what)
    if not isinstance(error, aws.ClientError):
        return None
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in BAD_CREDENTIALS:
        return CredentialsError(f"{what}: AWS does not accept the credentials: {error}")
    if code.startswith("AccessDenied") or status == 403:
        return AccessDeniedError(f"{what}: AWS does not allow {error.operation_name}: {error}")
    if code.startswith("Throttl") or code in {"ProvisionedThroughputExceededException", "RequestLimitExceeded"}:
        return ThrottledError(f"{what} was throttled even after retries: {error}")
    if status >= 500:
        return UnavailableError(f"{what} failed: {error}")
    return ConfigurationError(f"{what} cannot be used as it is: {error}")


def translated(error: Exception, *, writes: bool, service: str = "Bedrock") -> BedrockSessionsError:
    """Return what botocore raised as an error of ours; `writes`: the request may have been carried out."""
    if isinstance(error, aws.NoRegionError):
        return ConfigurationError(
            "No AWS region is configured. Pass region_name=..., or set AWS_REGION, or a region in the profile. "
            "Without an AWS account, use BedrockSessionsChatStore.local(path)."
        )
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)):
        return CredentialsError(
            f"No usable AWS credentials: {error}. Configure them as for any boto3 program. "
            "Without an AWS account, use BedrockSessionsChatStore.local(path)."
        )
    if isinstance(error, (aws.TokenRetrievalError, aws.UnauthorizedSSOTokenError, aws.SSOTokenLoadError)):
        return CredentialsError(f"The AWS sign-in has expired: {error}")
    if isinstance(error, aws.ProfileNotFound):
        return ConfigurationError(f"{error}. Pass another profile_name=... or create the profile.")
    if isinstance(error, aws.ParamValidationError):
        return RequestRefusedError(f"boto3 refused the request: {error}")
    if isinstance(error, (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError)):
        begun = writes and not isinstance(error, (aws.EndpointConnectionError, aws.ConnectTimeoutError))
        return UnavailableError(f"{service} did not answer, even after retries: {error}", may_have_happened=begun)
    return ConfigurationError(f"The AWS client cannot be made: {error}")
