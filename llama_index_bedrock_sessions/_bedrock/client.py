"""The only module that calls a client of Bedrock: open, append exactly once, list, fetch, end, delete.

It raises boto3's errors as ours and keeps the service's time. It knows nothing of what a step contains. Everything here
is thread-safe, as boto3 clients are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import botocore.exceptions as aws

from llama_index_bedrock_sessions import events
from llama_index_bedrock_sessions._bedrock.clock import Clock
from llama_index_bedrock_sessions._bedrock.errors import AWS_ERRORS, BEDROCK, NotFound, RequestRejected, translate
from llama_index_bedrock_sessions._bedrock.fork import PerProcess
from llama_index_bedrock_sessions._bedrock.pool import Pool
from llama_index_bedrock_sessions._journal.ids import Home
from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    AccountError,
    BedrockSessionsError,
    RequestRefusedError,
    ThrottledError,
    UnavailableError,
)

if TYPE_CHECKING:
    from types_boto3_bedrock_agent_runtime import AgentsforBedrockRuntimeClient as Client

    from llama_index_bedrock_sessions._journal.message_codec import ContentBlock

logger = logging.getLogger("llama_index_bedrock_sessions")
SETTLE = 2.0
"""Seconds that the service may take to list what was written. Deletions of what no list has shown wait for it."""
PAGE = 1000
"""Entries asked of a list: `maxResults` is 1..1000 (service model)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SessionInfo(NamedTuple):
    """The answer of `GetSession`; times in ms since the epoch."""

    session: str
    status: str
    created: int
    updated: int
    metadata: Mapping[str, str]
    encryption_key_arn: str | None
    arn: str | None = None


class SessionSummary(NamedTuple):
    """A session in the answer of `ListSessions`; times in ms since the epoch."""

    session: str
    status: str
    created: int
    arn: str | None = None
    updated: int = 0


class SessionClient:
    """The session operations of one boto3 client, which each process makes when it first needs it.

    `settle` is in seconds, see `SETTLE`. Every method that calls the service raises AccountError, ConfigurationError
    and ServiceError. Each method names the other errors that it raises.
    """

    def __init__(self, make_client: Callable[[], Client], pool: Pool, settle: float = SETTLE) -> None:
        self._make_client = make_client
        self._client = PerProcess(self._made_client)
        self.pool = pool
        self.clock = Clock()
        self.settle = settle
        self.sleep: Callable[[float], object] = time.sleep

    def wait_until_listed(self) -> None:
        """Wait until lists show everything that was written before, which takes the service `settle` at most."""
        if self.settle:
            self.sleep(self.settle)

    def client(self) -> Client:
        """Return the boto3 client.

        Raises:
            ConfigurationError: no region, an unknown profile, or arguments that boto3 does not take.
            CredentialsError: credentials are incomplete.

        """
        return self._client.get()

    def _made_client(self) -> Client:
        try:
            return self._make_client()
        except BedrockSessionsError:
            raise
        except Exception as error:
            raise translate(error, BEDROCK) from error

    def _call(
        self, operation: str, member: str | None = None, /, *, writes: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        """Call an operation. `member` must be in its answer. `writes`: a failed call may have changed something."""
        method: Callable[..., dict[str, Any]] = getattr(self.client(), operation)
        sent, begun = self.clock.local(), time.perf_counter()
        answer: Mapping[str, Any] | None = None
        failure: Exception | None = None
        try:
            answer = reply = method(**arguments)
        except AWS_ERRORS as error:
            failure = error
            if isinstance(error, aws.ClientError):
                answer = error.response
                self._saw(error.response, sent)
            raise translate(error, BEDROCK, operation=operation, writes=writes) from error
        finally:
            events.record_call(operation, arguments, answer, failure, time.perf_counter() - begun)
        self._saw(reply, sent)
        if member is not None and member not in reply:
            # botocore does not notice that an answer was cut off. It returns a reply without members.
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
        """Create a session. A lost reply leaves an unopened session, which the next process that finds it uses."""
        arguments: dict[str, Any] = {"sessionMetadata": dict(metadata)}
        if tags:
            arguments["tags"] = dict(tags)
        if encryption_key_arn:
            arguments["encryptionKeyArn"] = encryption_key_arn
        try:
            reply = self._call("create_session", "sessionId", writes=True, **arguments)
        except (RequestRejected, NotFound) as refusal:
            raise RequestRefusedError(f"Bedrock refused to create a session: {refusal}") from refusal
        status, created = reply.get("sessionStatus", "ACTIVE"), self._ms(reply, "createdAt")
        arn = reply.get("sessionArn")
        return SessionInfo(reply["sessionId"], status, created, created, metadata, encryption_key_arn, arn)

    def get(self, session: str) -> SessionInfo:
        """Return a session. Raises NotFound."""
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

    def list_sessions(self) -> list[SessionSummary]:
        """Return all sessions of the account and region, in the service's order."""
        try:
            return [
                SessionSummary(
                    s["sessionId"],
                    s.get("sessionStatus", "ACTIVE"),
                    self._ms(s, "createdAt"),
                    s.get("sessionArn"),
                    self._ms(s, "lastUpdatedAt"),
                )
                for s in self._pages("list_sessions", "sessionSummaries")
            ]
        except (RequestRejected, NotFound) as refusal:
            raise RequestRefusedError(f"Bedrock refused to list sessions: {refusal}") from refusal

    def end(self, session: str) -> bool:
        """End a session; return whether this call ended it. Raises NotFound."""
        try:
            self._call("end_session", sessionIdentifier=session)
        except RequestRejected:
            return False
        return True

    def delete(self, session: str) -> None:
        """Delete a session that has ended. Raises NotFound, RequestRejected."""
        self._call("delete_session", writes=True, sessionIdentifier=session)

    def update(self, session: str, metadata: Mapping[str, str]) -> None:
        """Replace the metadata of a session. Whether the service keeps entries that are left out is unknown.

        Raises NotFound, RequestRejected.
        """
        self._call("update_session", sessionIdentifier=session, sessionMetadata=dict(metadata))

    def tag(self, arn: str, tags: Mapping[str, str]) -> None:
        """Add tags to a session. Raises NotFound, RequestRejected."""
        self._call("tag_resource", resourceArn=arn, tags=dict(tags))

    def tags(self, arn: str) -> dict[str, str]:
        """Return the tags of a session, {} if reading them is denied or two answers were cut off. Raises NotFound."""
        with contextlib.suppress(RequestRejected, AccessDeniedError):
            for _ in range(2):
                reply = self._call("list_tags_for_resource", resourceArn=arn)
                length = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-length", "2")
                # The member is optional. An answer without it may have been cut off, unless it is as short as {}.
                if "tags" in reply or length == "2":
                    return dict(reply.get("tags") or {})
        return {}

    # Invocations and steps

    def create_invocation(self, session: str, invocation: str, description: str | None = None) -> bool:
        """Create an invocation; return whether it is new. Raises NotFound, RequestRejected.

        A description may hold lone surrogates, which a request cannot. The service gets a question mark for each.
        """
        arguments: dict[str, Any] = (
            {"description": description.encode(errors="replace").decode()} if description else {}
        )
        try:
            self._call("create_invocation", sessionIdentifier=session, invocationId=invocation, **arguments)
        except RequestRejected as refusal:
            if refusal.code not in {"ConflictException", "409"}:
                raise
            return False
        return True

    def put(self, home: Home, at: int, payload: list[ContentBlock]) -> None:
        """Store a step exactly once; `at` is its time in ms.

        A lost reply makes botocore send the same step again, and the service refuses that as a conflict. So after a
        refusal, and after a failure that leaves the outcome open, this method reads whether the step is stored.

        Raises:
            NotFound: the session or the invocation does not exist.
            RequestRejected: the service refuses the step.
            UnavailableError: with `may_have_happened`, if the outcome is unknown.

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
            # An attempt before the refused one may have been carried out.
            if not failure.may_have_happened or not self._is_there(home, payload, failure):
                raise
        except (RequestRejected, NotFound, UnavailableError, ThrottledError) as failure:
            if not self._is_there(home, payload, failure):
                raise

    def _is_there(self, home: Home, payload: list[ContentBlock], failure: Exception) -> bool:
        try:
            is_there = self.step(home)[0] == payload
        except NotFound:
            pass
        except BedrockSessionsError as error:
            if isinstance(failure, (RequestRejected, NotFound)):
                # The refusal may be due to an earlier attempt that stored the step.
                error.may_have_happened = True
                raise
        else:
            if is_there:
                code = getattr(failure, "code", type(failure).__name__)
                logger.info("step %s of session %s is stored, in spite of %s", home.step, home.session, code)
            return is_there
        if isinstance(failure, UnavailableError):
            # The step may still arrive: the service can execute a request after its connection is gone.
            failure.may_have_happened = True
        return False

    def steps(self, session: str) -> Iterator[tuple[Home, int]]:
        """Yield every listed step of a session and its time in ms. Raises NotFound."""
        for s in self._pages("list_invocation_steps", "invocationStepSummaries", sessionIdentifier=session):
            yield Home(session, s["invocationId"], s["invocationStepId"]), self._ms(s, "invocationStepTime")

    def step(self, home: Home) -> tuple[list[ContentBlock], int]:
        """Return a step's content blocks, and its time in ms. Raises NotFound."""
        try:
            reply = self._call(
                "get_invocation_step",
                "invocationStep",
                sessionIdentifier=home.session,
                invocationIdentifier=home.invocation,
                invocationStepId=home.step,
            )["invocationStep"]
        except RequestRejected as refusal:
            # A stored reference may name something that does not have the form of an id.
            raise NotFound(str(refusal)) from refusal
        return reply.get("payload", {}).get("contentBlocks") or [], self._ms(reply, "invocationStepTime")

    def fetch(self, homes: Iterable[Home]) -> list[tuple[Home, tuple[list[ContentBlock], int] | None]]:
        """Return each step, read in parallel, or None if it does not exist."""

        def get(home: Home) -> tuple[Home, tuple[list[ContentBlock], int] | None]:
            try:
                return home, self.step(home)
            except NotFound:
                return home, None

        return self.pool.map(get, list(homes))

    def _ms(self, reply: Mapping[str, Any], member: str) -> int:
        moment = reply.get(member)
        # Rounded down, as ids are: so no step is later than one that was written after it.
        return (moment - _EPOCH) // timedelta(milliseconds=1) if moment is not None else self.clock.now()


@functools.lru_cache(maxsize=1024)
def default_invocation(session: str) -> str:
    """Return the id of a session's default invocation. Every process derives the same."""
    return str(uuid.uuid5(uuid.UUID(session), "llama-index-bedrock-sessions"))
