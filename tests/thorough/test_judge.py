"""The judge of histories finds each anomaly in a few operations, and none where the promises are kept."""

from __future__ import annotations

from typing import Any

import pytest

from llama_index_bedrock_sessions._journal.ids import Kind, MessageId, new_id
from tests.support.judge import agree, judge, redacted
from tests.support.ops import Op, Point, Said

pytestmark = pytest.mark.thorough


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
        archives: str = "",
        at: float = 0,
        early: float = 0,
        key: str = "k",
        state: dict[str, list[str]] | None = None,
        **more: Any,
    ) -> Story:
        """Add an operation and the change it sends, whose id is of the time `at` if given; it began `early`."""
        self.now += 10
        change = new_id(int(at or self.now) * 1000, Kind.CHANGE)
        op = Op(process, kind, key, self.now - early, tokens.split(), self.now + 1, **{"outcome": "ok", **more})
        if removes or archives or state or (tokens and kind not in {"name", "save"}):
            gone = frozenset(self.ids[token] for token in removes.split())
            added = dict(enumerate(op.tokens))
            self.ids |= {token: (change, position) for position, token in added.items()}
            archived = frozenset(self.ids[token] for token in archives.split())
            op.say(Said(self.now, change, added, gone, archived, kind == "set", 1.25, state or {}))
        self.now += 1
        self.ops.append(op)
        return self

    def add(self, process: str, tokens: str, **more: Any) -> Story:
        return self.op(process, "add", tokens, **more)

    def read(self, texts: str, process: str = "r", **more: Any) -> Story:
        return self.op(process, "read", result=texts.split(), **more)

    def save(self, token: str, **more: Any) -> Story:
        return self.op("p", "save", token, **{"name": "n", **more})

    def load(self, token: str, process: str = "q", kind: str = "load", **more: Any) -> Story:
        return self.op(process, kind, **{"name": "n", "result": token, **more})

    def refused(self, error: str, kind: str = "load", **more: Any) -> Story:
        return self.op("q", kind, outcome="failed", error=error, **{"name": "n", **more})

    def fork(self, tokens: str, point: str = "", *, included: bool = True, **more: Any) -> Story:
        """Add a fork of `k` onto `f` that holds these texts, up to a point."""
        if point:
            more["point"] = Point(*self.ids[point], included)
        return self.op("f", "fork", tokens, **{"source": "k", "key": "f", **more})

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


def two() -> Story:
    return Story().add("p", "a").add("q", "b")


BROKEN: dict[str, tuple[Story, str]] = {
    "an append is missing": (Story().add("p", "a").read(""), "lost"),
    "half of an append is missing": (Story().add("p", "a b", outcome="unknown").read("a").read("a"), "lost"),
    "an append is there twice": (Story().add("p", "a", outcome="unknown").read("a a"), "more than once"),
    "no process wrote it": (Story().read("x"), "no process wrote it"),
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
    "a state that no process wrote": (state("v1", read="x"), "no process wrote this state"),
    "lost before it is removed": (Story().add("p", "a").read("").remove("a"), "lost"),
    "a fork lacks a message": (two().fork("a"), "lost"),
    "a fork has what was removed": (two().remove("a").fork("a b"), "what was removed is back"),
    "a fork lacks a state": (Story().op("p", "name", "v", name="cart").add("p", "a").fork("a"), "state lost"),
    "a fork shows what is archived": (
        two().op("p", "archive", archives="a", result=["a"]).fork("a b"),
        "what was removed is back",
    ),
    "a fork of what came after": (two().fork("a b", "a"), "was not there at that point"),
    "a fork of what was removed before": (two().remove("a").add("p", "c").fork("a b c", "c"), "was not there at"),
    "a fork lacks what was there": (two().add("p", "c").fork("a", "b"), "lost at that point"),
    "a fork lacks what was removed later": (two().remove("a").fork("b", "b"), "lost at that point"),
    "a fork is not in the order": (two().fork("b a"), "readers disagree on the order"),
    "a fork that failed is there": (
        two().fork("a b", outcome="failed", error="ConversationExists").read("a b", key="f"),
        "an error said that",
    ),
    "a fork loses a message": (two().fork("a b").read("a", key="f"), "lost"),
    "a later message of the source in the fork": (
        two().fork("a b").add("p", "c").read("a b c", key="f"),
        "no process wrote it",
    ),
    "a first message is lost to a fork": (
        two().fork("a b", early=5).add("p", "x", key="f").read("a b", key="f"),
        "lost",
    ),
    "two forks at once": (two().fork("a b").fork("a b", early=15), "two forks onto one key"),
    "a fork onto what exists": (two().add("p", "x", key="f").fork("a b"), "forked onto what exists"),
    "a fork is refused without a reason": (
        two().fork("", outcome="failed", error="ConversationExists"),
        "refused though there was nothing",
    ),
    "a context is loaded twice": (Story().save("c").load("c").load("c", "r"), "loaded twice"),
    "a context is loaded after it was loaded again": (
        Story().save("c").load("c", kind="load_again").load("c"),
        "loaded twice",
    ),
    "an older context": (Story().save("c").save("d").load("c"), "an older context counts"),
    "a context that no process saved": (Story().save("c").load("x"), "no process saved this context"),
    "a context is lost": (Story().save("c").refused("InvalidContextError"), "a saved context is lost"),
    "a context's content is lost": (Story().save("c").refused("StoredDataError"), "a saved context is lost"),
    "an erased context": (Story().save("c").op("d", "erase").load("c"), "erased context is back"),
    "a context is refused to the first": (Story().save("c").refused("AlreadyResumed"), "refused though no process"),
    "a context is refused for an older load": (
        Story().save("c").load("c").save("d").refused("AlreadyResumed"),
        "refused though no process",
    ),
    "a content is missing": (Story().add("p", "a+").read("a+", missing=["a+"]), "its content is missing"),
    "a redacted content is left": (
        Story().add("p", "a+").op("d", "redact", removes="a+", result=["a+"], left=["a+"]),
        "deleted, and its content still in S3",
    ),
    "an erased content is left": (
        Story().add("p", "a+").op("d", "erase", left=["a+"]),
        "deleted, and its content still in S3",
    ),
}


KEPT: dict[str, Story] = {
    "a fork of all there is": two().fork("a b").add("p", "c").read("a b c").read("a b", key="f"),
    "a fork of what was there": two().add("p", "c").fork("a b", "b").read("a b", key="f").read("a b c"),
    "a fork of what was before": two().fork("a", "b", included=False).read("a", key="f"),
    "a fork of what was removed later": two().remove("a").fork("a b", "b"),
    "a fork without what was removed before": two().remove("a").add("p", "c").fork("b c", "c"),
    "a fork of an empty conversation": Story().add("p", "a").remove("a").fork(""),
    "a fork with state": Story().op("p", "name", "v", name="cart").fork("", state={"cart": ["v"]}),
    "a fork with what is archived": two().op("p", "archive", archives="a", result=["a"]).fork("a b", archives="a"),
    "a fork is refused": two().add("p", "x", key="f").fork("", outcome="failed", error="ConversationExists"),
    "a first message beside a fork": two().fork("a b", early=5).add("p", "x", key="f").read("a b x", key="f"),
    "a fork that takes back what it wrote": (
        two().fork("a b", early=5).fork("a b", outcome="failed", error="ConversationExists").read("a b", key="f")
    ),
    "a context is saved, loaded, and loaded again": (
        Story().save("c").load("c").refused("AlreadyResumed").load("c", kind="load_again")
    ),
    "a context is saved again": Story().save("c").load("c").save("d").load("d"),
    "a load that may have happened": Story().save("c").load("", outcome="unknown").refused("AlreadyResumed"),
    "there was no context": Story().refused("InvalidContextError").save("c"),
    "a context is hidden": Story().save("c").op("h", "hide").refused("InvalidContextError"),
    "a context is erased": Story().save("c").op("d", "erase").refused("InvalidContextError"),
    "the content is missing of what is removed": Story().add("p", "a+").remove("a+").read(""),
    "the content of a message is gone while it is redacted": (
        Story().add("p", "a+").op("d", "redact", removes="a+", result=["a+"], early=0).read("", missing=["a+"])
    ),
    "the content is left of a writer that was still writing": (
        Story().add("p", "a+", outcome="unknown").op("d", "redact", removes="a+", result=["a+"], left=["a+"])
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_keeps_the_promises_is_no_anomaly(case: str) -> None:
    """A history of forks, contexts or media that keeps every promise is not judged to break one."""
    assert judge(KEPT[case].ops) == []


LATE: dict[str, tuple[Story, str]] = {
    "an append is missing": (Story().add("p", "a").read(""), "lost"),
    "a removed message": (Story().add("p", "a").remove("a").read("a"), "what was removed is back"),
    "missed, and there again": (
        Story().add("p", "a").op("d", "remove", removes="a", outcome="unknown").read("").read("a"),
        "what was removed is back",
    ),
    "erased and back": (Story().add("p", "a").op("d", "erase").read("a"), "what was removed is back"),
    "hidden and shown": (Story().add("p", "a").op("h", "hide").read("a"), "what was removed is back"),
    "no state": (state("v1", read=None), "state lost"),
    "an older state": (state("v1", "v2", read="v1"), "an older state counts"),
    "a context is lost": (Story().save("c").refused("InvalidContextError"), "a saved context is lost"),
    "written though ended": (Story().op("e", "end", result=True).add("p", "a"), "written though ended"),
}


@pytest.mark.parametrize("case", LATE)
def test_lists_excuse_only_what_they_are_late_by(case: str) -> None:
    """An anomaly stays one where lists are 8 seconds late, and is none where they are later than 10 seconds."""
    story, what = LATE[case]
    assert any(anomaly.what.startswith(what) for anomaly in judge(story.ops, late=8))
    assert judge(story.ops, late=30) == []


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
