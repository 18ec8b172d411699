"""The events of the package: calls to the service, and audit events of whole conversations.

Service calls go to LlamaIndex's instrumentation. Each audit event goes to `logging` and to the application. Logs
contain a key only as a hash, and never the text of a message.
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
    """An action on a whole conversation, reported after it was done.

    `time` is the service's time, ISO 8601 in UTC. `sessions` are the affected Bedrock sessions, `messages` the ids of
    redacted messages. The application gave `reason` and `approver`.
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
    """Log an event and call the application's function. Its errors are logged, because the action is done."""
    said = {**dataclasses.asdict(event), "key": key_hash(event.key)}
    audit_logger.info("%s", json.dumps({name: value for name, value in said.items() if value}))
    if callback is not None:
        try:
            callback(event)
        except Exception:
            audit_logger.exception("the audit callback failed for a conversation that was %s", event.action)


class ServiceCallEvent(BaseEvent):
    """One call to Amazon Bedrock has ended.

    - `operation`: Bedrock's name of the operation.
    - `session` and `step`: their ids; None if the call has none.
    - `duration`: seconds, with retries.
    - `retries`: the number of botocore's retries; None without a response.
    - `outcome`: "ok", the error code of the service, or the class of the error without a response.
    - `response_bytes`: the length of the response body; None if unknown.
    - `span_id` and `tags`: those of the calling code, in whichever thread the call ran.
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
    """Return the name of a key in logs: the first 16 digits of its SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def record_call(
    operation: str,
    arguments: Mapping[str, Any],
    answer: Mapping[str, Any] | None,
    failure: BaseException | None,
    duration: float,
) -> None:
    """Report a call. `answer` is the response that botocore parsed, `failure` its error; either can be None."""
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
    """Whether an event handler was added. Without one, events cost nothing."""
    at: Dispatcher | None = dispatcher
    while at is not None:
        if any(type(handler) is not NullEventHandler for handler in at.event_handlers):
            return True
        at = at.parent if at.propagate else None
    return False
