"""The first program anybody writes on Bedrock sessions: a step a message, everything listed and got to read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock


@dataclass
class ByHand:
    """A conversation whose owner remembers its places: the (session, invocation) pairs it was written to, in order."""

    client: Any
    places: list[list[str]] = field(default_factory=list)

    def open(self) -> None:
        """Begin in a new session; what was said before stays in the older ones."""
        session = self.client.create_session()["sessionId"]
        self.places.append([session, self.client.create_invocation(sessionIdentifier=session)["invocationId"]])

    def add(self, message: ChatMessage, at: float) -> None:
        """Put a step, in a new session where this one takes no more."""
        if not self.places:
            self.open()
        try:
            self._put(message, at)
        except (self.client.exceptions.ConflictException, self.client.exceptions.ServiceQuotaExceededException):
            self.open()
            self._put(message, at)

    def _put(self, message: ChatMessage, at: float) -> None:
        session, invocation = self.places[-1]
        calls = [block.model_dump() for block in message.blocks if isinstance(block, ToolCallBlock)]
        blocks: list[dict[str, Any]] = [
            {"text": json.dumps({"role": message.role.value, "content": message.content, "calls": calls})}
        ]
        pictures = [block.resolve_image().read() for block in message.blocks if isinstance(block, ImageBlock)]
        blocks += [{"image": {"format": "png", "source": {"bytes": picture}}} for picture in pictures]
        self.client.put_invocation_step(
            sessionIdentifier=session,
            invocationIdentifier=invocation,
            invocationStepTime=at,
            payload={"contentBlocks": blocks},
        )

    def read(self) -> list[ChatMessage]:
        """List every step of every session, and get each."""
        found = []
        for session, _ in self.places:
            pages = self.client.get_paginator("list_invocation_steps").paginate(sessionIdentifier=session)
            for summary in [summary for page in pages for summary in page["invocationStepSummaries"]]:
                step = self.client.get_invocation_step(
                    sessionIdentifier=session,
                    invocationIdentifier=summary["invocationId"],
                    invocationStepId=summary["invocationStepId"],
                )["invocationStep"]
                found.append((step["invocationStepTime"], step["payload"]["contentBlocks"]))
        return [self._message(blocks) for _, blocks in sorted(found, key=lambda pair: pair[0])]

    @staticmethod
    def _message(content: list[dict[str, Any]]) -> ChatMessage:
        said = json.loads(content[0]["text"])
        blocks: list[Any] = [TextBlock(text=said["content"])] if said["content"] else []
        blocks += [ToolCallBlock(**call) for call in said["calls"]]
        blocks += [ImageBlock(image=block["image"]["source"]["bytes"]) for block in content[1:]]
        return ChatMessage(role=said["role"], blocks=blocks)
