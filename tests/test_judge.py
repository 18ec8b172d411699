"""The judge of histories finds each anomaly in a few operations, and none where the promises are kept."""

from __future__ import annotations

from typing import Any

import pytest

from llama_index_bedrock_sessions.journal import Kind, MessageId, new_id
from tests.judge import agree, judge, redacted
from tests.ops import Op, Said

pytestmark = pytest.mark.once


class Story:
    """Writes a history: each operation takes a second, and begins ten after the one before it ended."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ops: list[Op] = []
        self.ids: dict[str, MessageId] = {}

    def op(
        self,
        process: str,
        kind: str,
        tokens: str = "",
        *,
        removes: str = "",
        at: float = 0,
        early: float = 0,
        **more: Any,
    ) -> Story:
        """Add an operation and the change it sends, whose id is of the time `at` if given; it began `early`."""
        self.now += 10
        change = new_id(int(at or self.now) * 1000, Kind.CHANGE)
        op = Op(process, kind, "k", self.now - early, tokens.split(), self.now + 1, **{"outcome": "ok", **more})
        if removes or (tokens and kind != "name"):
            gone = frozenset(self.ids[token] for token in removes.split())
            added = dict(enumerate(op.tokens))
            op.say(Said(self.now, change, added, gone, frozenset(), kind == "set", 1.25))
            self.ids |= {token: (change, position) for position, token in added.items()}
        self.now += 1
        self.ops.append(op)
        return self

    def add(self, process: str, tokens: str, **more: Any) -> Story:
        return self.op(process, "add", tokens, **more)

    def read(self, texts: str, process: str = "r", **more: Any) -> Story:
        return self.op(process, "read", result=texts.split(), **more)

    def remove(self, token: str, **more: Any) -> Story:
        return self.op("d", "remove", removes=token, **{"result": [token], **more})


def kept() -> Story:
    return (
        Story().add("p", "a").add("q", "b c").read("a b c").remove("b").read("a c").op("s", "set", "d", removes="a c")
    )


def test_a_history_that_keeps_the_promises() -> None:
    """Appends, reads, a removal and a set as they should be are no anomaly, nor hiding, ending, an unknown outcome."""
    assert judge(kept().read("d").ops) == []
    hidden = Story().add("p", "a").op("h", "hide").add("p", "b").read("b").op("h", "restore").read("a b")
    assert judge(hidden.ops) == []
    ended = (
        Story().op("e", "end", result=True).add("p", "", outcome="failed", error="ConversationEnded").op("e", "reopen")
    )
    assert judge(ended.add("p", "a").read("a").ops) == []
    for outcome in ("a", ""):
        assert judge(Story().add("p", "a", outcome="unknown").read(outcome).ops) == []


def state(*values: str, read: str | None) -> Story:
    story = Story()
    for value in values:
        story.op("p", "name", value, name="cart")
    return story.op("r", "named", result={"cart": read} if read else {})


BROKEN: dict[str, tuple[Story, str]] = {
    "an append is missing": (Story().add("p", "a").read(""), "lost"),
    "half of an append is missing": (Story().add("p", "a b", outcome="unknown").read("a").read("a"), "lost"),
    "an append is there twice": (Story().add("p", "a", outcome="unknown").read("a a"), "more than once"),
    "nobody wrote it": (Story().read("x"), "nobody wrote it"),
    "it was said not to have happened": (Story().add("p", "a", outcome="failed").read("a"), "an error said that"),
    "a removed message": (kept().read("a"), "what was removed is back"),
    "missed, and there again": (Story().add("p", "a").read("").read("a"), "what was removed is back"),
    "another one was removed": (Story().add("p", "a b").remove("a", result=["b"]), "removed something else"),
    "lost to a set that had not seen it": (Story().add("p", "a").op("s", "set", "b", early=15).read("b"), "lost"),
    "after what it had read": (
        Story().add("p", "a").read("a", process="q").add("q", "b", at=5).read("b a"),
        "order",
    ),
    "before an earlier one of its process": (Story().add("p", "a").add("p", "b", at=5).read("b a"), "order"),
    "before one of long ago": (Story().add("p", "a").add("q", "b", at=5).read("b a"), "order by time"),
    "not in the order of the ids": (Story().add("p", "a").add("q", "b").read("b a"), "readers disagree on the order"),
    "erased and back": (Story().add("p", "a").op("d", "erase").read("a"), "what was removed is back"),
    "hidden and shown": (Story().add("p", "a").op("h", "hide").read("a"), "what was removed is back"),
    "hidden and restored, and missing": (
        Story().add("p", "a").op("h", "hide").read("").op("h", "restore").read(""),
        "lost",
    ),
    "redacted and back": (Story().add("p", "a").op("d", "redact", removes="a", result=["a"]).read("a"), "what was"),
    "written though ended": (Story().op("e", "end", result=True).add("p", "a"), "written though ended"),
    "refused though reopened": (
        Story().op("e", "end", result=True).op("e", "reopen").add("p", "", outcome="failed", error="ConversationEnded"),
        "refused though not ended",
    ),
    "an older state": (state("v1", "v2", read="v1"), "an older state counts"),
    "no state": (state("v1", read=None), "state lost"),
    "a state nobody wrote": (state("v1", read="x"), "nobody wrote this state"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_broken_promise_is_found(case: str) -> None:
    """A history with one broken promise is judged to break it."""
    story, what = BROKEN[case]
    assert any(anomaly.what.startswith(what) for anomaly in judge(story.ops))


def test_what_was_refused_removed_nothing() -> None:
    """Who replaces finds its step refused, all hidden meanwhile, and opens a session that changes nothing."""
    story = Story().add("p", "a").op("h", "hide").op("q", "set", removes="a")
    assert [anomaly.what for anomaly in judge(Story.read(story.op("h", "restore"), "a").ops)] == [
        "what was removed is back"
    ]
    story.ops[2].say(None)
    assert list(judge(story.ops)) == []


def test_what_was_redacted_and_is_left() -> None:
    """A text that was redacted is in no step, unless another operation wrote it, too."""
    story = Story().add("p", "a b").op("d", "redact", removes="a", result=["a"])
    for left in ("{'text': 'a'}", '["user",["a"]]'):
        assert [anomaly.what for anomaly in redacted(story.ops, left)] == ["redacted, and still in the service"]
    assert list(redacted(story.ops, "{'text': 'b'}")) == []
    failed = Story().add("p", "a").op("d", "redact", result=["a"], outcome="unknown")
    for other in (failed, story.add("q", "a")):
        assert list(redacted(other.ops, "{'text': 'a'}")) == []


def test_readers_that_disagree_at_rest() -> None:
    """Two readers with nothing written between them return the same."""
    assert list(agree(Story().read("a b").read("a b").ops)) == []
    assert [anomaly.what for anomaly in agree(Story().read("a b").read("a").ops)] == ["readers disagree"]
