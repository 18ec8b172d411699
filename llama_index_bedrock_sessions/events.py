"""The events that the package emits: service calls, and audit events.

Service calls go to LlamaIndex's instrumentation. An audit event records that a conversation was ended, reopened,
hidden, restored, redacted or deleted. It goes to `logging` and to the application. Logs contain the hash of a key, but
no keys and no texts of messages.
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
    """An action on a whole conversation that has completed.

    `time` is the service's time, ISO 8601 in UTC. `sessions` are the ids of the Bedrock sessions that the action
    changed. `messages` are the ids of the redacted messages. `reason` and `approver` come from the application.
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
    """Log an event and pass it to the application's callback.

    The action has completed, so an exception of the callback is logged and not raised.
    """
    logged = {**dataclasses.asdict(event), "key": key_hash(event.key)}
    audit_logger.info("%s", json.dumps({name: value for name, value in logged.items() if value}))
    if callback is not None:
        try:
            callback(event)
        except Exception:
            audit_logger.exception("the audit callback failed after the conversation was %s", event.action)


class ServiceCallEvent(BaseEvent):
    """A completed call to Amazon Bedrock.

    - `operation`: Bedrock's name of the operation, such as "PutInvocationStep".
    - `session`, `step`: their ids, or None if the call has none.
    - `duration`: seconds, including botocore's retries.
    - `retries`: the number of botocore's retries, or None without an answer.
    - `outcome`: "ok", the service's error code, or, without an answer, the class of the error.
    - `response_bytes`: the length of the answer's body, or None if the answer has no Content-Length.
    - `span_id`, `tags`: those of the calling code, even if the call ran in another thread.
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
    """Return the hash that identifies a key in logs: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def record_call(
    operation: str,
    arguments: Mapping[str, Any],
    answer: Mapping[str, Any] | None,
    failure: BaseException | None,
    duration: float,
) -> None:
    """Log a call and emit its `ServiceCallEvent`.

    `answer` is the response that botocore parsed, or None. `failure` is the exception that botocore raised, or None.
    """
    if not (has_handler := _has_handler()) and not logger.isEnabledFor(logging.DEBUG):
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
    if has_handler:
        dispatcher.event(ServiceCallEvent(**event))


def _has_handler() -> bool:
    """Check whether the application has added an event handler; without one, no events are created."""
    at: Dispatcher | None = dispatcher
    while at is not None:
        if any(type(handler) is not NullEventHandler for handler in at.event_handlers):
            return True
        at = at.parent if at.propagate else None
    return False
