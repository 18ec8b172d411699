"""Who ended, deleted, hid or redacted what: one event each, to `logging` and to the application.

The log has the key only as a hash, like everything this package logs, and never the text of a message.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Literal

from llama_index_bedrock_sessions.instrumentation import hashed

logger = logging.getLogger("llama_index_bedrock_sessions.audit")

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


def tell(event: AuditEvent, callback: AuditCallback | None) -> None:
    """Log an event, and call the application's function; what that raises is logged: what was done is done."""
    said = {**dataclasses.asdict(event), "key": hashed(event.key)}
    logger.info("%s", json.dumps({name: value for name, value in said.items() if value}))
    if callback is not None:
        try:
            callback(event)
        except Exception:
            logger.exception("the audit callback failed for a conversation that was %s", event.action)
