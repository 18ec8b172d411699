"""What is about to be written: a change, where its native blocks go, and the step that is composed of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llama_index_bedrock_sessions._journal.encoding import facts_json
from llama_index_bedrock_sessions._journal.ids import Home, MessageId, Place, parse_id
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock, Encoded
from llama_index_bedrock_sessions._journal.model import Change, Mark, Message, Segment, Step
from llama_index_bedrock_sessions._journal.values import JSON, dump


@dataclasses.dataclass(slots=True)
class Draft:
    """A change that is to be written.

    `id` is set once the change has been sent: it keeps its id when it has to go to another session. Until then an id of
    "" in `archived` names a message of the draft itself.
    """

    messages: Encoded = dataclasses.field(default_factory=lambda: Encoded([], []))
    removed: frozenset[MessageId] = frozenset()
    archived: frozenset[MessageId] = frozenset()
    is_set: bool = False
    state: Mapping[str, list[JSON]] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, Mark] = dataclasses.field(default_factory=dict)
    invocations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: JSON = None
    rewind: JSON = None
    by: str | None = None
    id: str | None = None
    preceding: Sequence[Draft] = ()
    """Drafts that become part of the conversation with this one: those of a fork that one step cannot hold."""
    _size: int | None = None

    def size(self) -> int:
        """Return the approximate bytes it takes to carry the change."""
        if self._size is None:
            texts = sum(len(b["text"].encode()) for b in self.messages.blocks if "text" in b)
            facts = facts_json(self.change("", {}, None))
            self._size = sum(self.messages.record_sizes()) + texts + (len(dump(facts).encode()) if facts else 2)
        return self._size

    def change(self, change_id: str, messages: Mapping[int, Message], written: Place | None) -> Change:
        """Return the change that the draft becomes."""
        parsed = parse_id(change_id)
        return Change(
            id=change_id,
            time=parsed.ms if parsed else 0,
            messages=messages,
            removed=self.removed,
            archived=frozenset((named or change_id, position) for named, position in self.archived),
            is_set=self.is_set,
            state=self.state,
            marks=self.marks,
            invocations=self.invocations,
            origin=self.origin,
            rewind=self.rewind,
            by=self.by,
            written=written,
            count=len(messages),
        )


class Placed(NamedTuple):
    """Where the native blocks of a draft are.

    Block i of the draft is block n of the step `homes[h]`, where (h, n) is `positions[i]`. None in `homes` is the
    draft's own step, which contains `rest`. Without `homes` all blocks are in the draft's own step.
    """

    homes: tuple[Home | None, ...] = ()
    positions: tuple[tuple[int, int], ...] = ()
    rest: tuple[ContentBlock, ...] = ()


class Composed(NamedTuple):
    """A step that is ready to be put, its content blocks, and the segments that it carries."""

    step: Step
    payload: list[ContentBlock]
    taken: tuple[Segment, ...]
