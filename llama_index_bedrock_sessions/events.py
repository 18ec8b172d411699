"""What the package reports: calls to the service, and who ended, deleted, hid or redacted what.

Service calls go to LlamaIndex's instrumentation. Each audit event goes to `logging` and to the application. The log
holds a key only as a hash, and never the text of a message.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.dispatcher import Dispatcher
from llama_index_instrumentation.event_handlers import NullEventHandler

logger = logging.getLogger("llama_index_bedrock_sessions")
dispatcher = get_dispatcher("llama_index_bedrock_sessions")
audit_logger = logging.getLogger("llama_index_bedrock_sessions.audit")
Action = Literal["ended", "reopened", "hidden", "restored", "redacted", "deleted"]


@dataclasses.dataclass(frozen=True)
class AuditEvent:
    """Something that was done to a whole conversation, after it was done.

    `time` is the service's, ISO 8601 in UTC; `sessions` are the Bedrock sessions it was done to; `messages` the ids of
    messages that were redacted; `reason` and `approver` what the application gave.
    """

    action: Action
    key: str
    namespace: str
    time: str
    sessions: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    reason: str | None = None
    approver: str | None = None


AuditCallback = Callable[[AuditEvent], None]


def emit(event: AuditEvent, callback: AuditCallback | None) -> None:
    """Log an event, and call the application's function; what that raises is logged: what was done is done."""
    said = {**dataclasses.asdict(event), "key": key_hash(event.key)}
    audit_logger.info("%s", json.dumps({name: value for name, value in said.items() if value}))
    if callback is not None:
        try:
            callback(event)
        except Exception:
            audit_logger.exception("the audit callback failed for a conversation that was %s", event.action)


class ServiceCallEvent(BaseEvent):
    """One call to Amazon Bedrock has ended.

    `operation` is Bedrock's name of it; `session` and `step` are ids, None where the call has none. `duration` is in
    seconds, retries included; `retries` are botocore's, None where no answer came. `outcome` is "ok", or the code of
    the service's error, or the class of the error where no answer came. `response_bytes` is the length of the answer's
    body, None where it is not said. `span_id` and `tags` are those of the code that asked, in whatever thread it ran.
    """

    operation: str
    session: str | None
    step: str | None
    duration: float
    retries: int | None
    outcome: str
    response_bytes: int | None

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the event."""
        return "ServiceCallEvent"


def key_hash(key: str) -> str:
    """Return how a conversation's key is told: the first 16 digits of its SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def record_call(
    operation: str,
    arguments: Mapping[str, Any],
    answer: Mapping[str, Any] | None,
    failure: BaseException | None,
    duration: float,
) -> None:
    """Tell of a call: `answer` is what botocore parsed, None if none came; `failure` is botocore's, None if none."""
    if not (is_heard := _is_heard()) and not logger.isEnabledFor(logging.DEBUG):
        return
    answer = answer or {}
    metadata = answer.get("ResponseMetadata", {})
    length = metadata.get("HTTPHeaders", {}).get("content-length", "")
    code = answer.get("Error", {}).get("Code")
    event = {
        "operation": operation.title().replace("_", ""),
        "session": arguments.get("sessionIdentifier") or answer.get("sessionId"),
        "step": arguments.get("invocationStepId"),
        "duration": duration,
        "retries": metadata.get("RetryAttempts"),
        "outcome": "ok" if failure is None else str(code or type(failure).__name__),
        "response_bytes": int(length) if length.isdecimal() else None,
    }
    logger.debug(
        "%(operation)s: %(outcome)s, session %(session)s, step %(step)s, %(duration).3f s, retries %(retries)s", event
    )
    if is_heard:
        dispatcher.event(ServiceCallEvent(**event))


def _is_heard() -> bool:
    """Whether anybody has added a handler of events: who has not pays nothing."""
    at: Dispatcher | None = dispatcher
    while at is not None:
        if any(type(handler) is not NullEventHandler for handler in at.event_handlers):
            return True
        at = at.parent if at.propagate else None
    return False
