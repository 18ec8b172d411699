"""What the operations of several processes on shared keys must have kept, whoever recorded them.

An `Op` is what a process asked for and was told, and what it `Said`: the changes that it sent to the service, in the
words of the format. So nothing that happens at the same time excuses anything: a message may be missing only if a
change was sent that removes it by its id, which only who has read it can know.

A message *must be there* for a read that begins after its append was acknowledged (or after another read has shown it)
and ends before a change that removes it was sent. It *must not be there* for one that begins after its removal was
acknowledged, or after another read has missed it. `set` and `clear` remove all that had to be there when they began;
`erase` may remove what was begun before it ended. Of several sets the greatest id counts. Of named state the last write
counts. What was there before `hide` must not be there after it, until somebody begins to restore it; what may be hidden
need not be there. Nobody writes after `end`, until somebody begins to reopen the conversation, and who is refused has
an `end` as the reason. Order is that of the ids, and the ids keep what is promised: the order of one process, b after a
if b's writer had read a, and b after a if a was acknowledged before b began by more than the clocks of the writers may
be wrong.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llama_index_bedrock_sessions.journal import Home, MessageId, read_step

NEVER = float("inf")
CLOCK = 1.25
"""Seconds that a writer's idea of the service's time may be wrong, besides the time a call takes."""
REMOVALS = {"remove", "remove last", "archive"}


class Anomaly(NamedTuple):
    """A broken promise: which, and what shows it."""

    what: str
    shown: str


@dataclasses.dataclass(frozen=True)
class Said:
    """A change that was sent; `wrong`: seconds that the sender's clock may have been ahead or behind at most."""

    at: float
    change: str
    added: Mapping[int, str]
    removed: frozenset[MessageId]
    archived: frozenset[MessageId]
    is_set: bool
    wrong: float


@dataclasses.dataclass
class Op:
    """One operation of a process. `outcome`: ok, failed (it did not happen), unknown.

    `tokens`: what a write brings, each text once in a history; for `set`, all it wants; for `name`, one value.
    `result`: what a read or a removal returned. `strict`: whether its process had a way to know of all that was there.
    `said`: what its steps said, of which `last` counts if it succeeded.
    `ended`: whether it was refused because the conversation had ended.
    """

    process: str
    kind: str
    key: str
    begin: float
    tokens: list[str] = dataclasses.field(default_factory=list)
    end: float = NEVER
    outcome: str = "unknown"
    result: Any = None
    said: list[Said] = dataclasses.field(default_factory=list)
    view: str = "active"
    name: str = ""
    strict: bool = True
    ended: bool = False
    last: Said | None = None

    def say(self, change: Said | None) -> None:
        """Note what a step says that it sends; None: an opening that changes nothing, since all before was refused."""
        self.last = change
        if change:
            self.said.append(change)

    def __str__(self) -> str:
        about = f" {' '.join(self.tokens)}" if self.tokens else ""
        return f"{self.process} {self.kind}{about} [{self.begin:.3f} {self.end:.3f}] {self.outcome}"


def said(home: Home, payload: Sequence[Any], at: float, wrong: float) -> Said | None:
    """Return what the change of a step that is about to be put says, None if it says nothing."""
    _, change = read_step(home, payload, 0).contents[0]
    if change is None:
        return None
    added = {position: text(message.record) for position, message in change.messages.items()}
    return Said(at, change.id, added, change.removed, change.archived, change.is_set, wrong)


def text(record: Any) -> str:
    """Return the text of a record of text blocks."""
    return "".join(item for item in record["b"] if isinstance(item, str))


def judge(ops: Iterable[Op]) -> list[Anomaly]:
    """Return every promise that a history breaks."""
    by_key: dict[str, list[Op]] = {}
    for op in sorted(ops, key=lambda op: op.begin):
        by_key.setdefault(op.key, []).append(op)
    return [anomaly for key, of_key in by_key.items() for anomaly in _Key(key, of_key).judge()]


def agree(reads: Iterable[Op]) -> Iterator[Anomaly]:
    """Yield the readers that do not agree, where nothing was written between them."""
    first: dict[tuple[str, str, str], Op] = {}
    for read in reads:
        before = first.setdefault((read.key, read.kind, read.view), read)
        if read.result != before.result:
            yield Anomaly("readers disagree", f"{before} {before.result}, {read} {read.result}")


def redacted(ops: Iterable[Op], left: str) -> Iterator[Anomaly]:
    """Yield what was redacted and is among all that is `left` in the service; not what several operations wrote."""
    ops = list(ops)
    written = collections.Counter(token for op in ops for token in set(op.tokens))
    for op in (op for op in ops if op.kind == "redact" and op.outcome == "ok"):
        for token in op.result:
            # As a text of its own: of a block as boto3 gives it, or in JSON.
            if written[token] == 1 and (repr(token) in left or json.dumps(token) in left):
                yield Anomaly("redacted, and still in the service", f"{token} by {op}")


@dataclasses.dataclass(eq=False)
class _Message:
    """A text that an operation brought: since when it had to be there, may have gone, and must have gone."""

    op: Op
    text: str
    ids: set[MessageId] = dataclasses.field(default_factory=set)
    sent: float = NEVER
    there: float = NEVER
    may_go: dict[str, float] = dataclasses.field(default_factory=lambda: {"active": NEVER, "all": NEVER})
    gone: dict[str, float] = dataclasses.field(default_factory=lambda: {"active": NEVER, "all": NEVER})
    half_erased: bool = False

    def leaves(self, view: str, maybe: float, surely: float) -> None:
        for each in {view, "active"}:
            self.may_go[each] = min(self.may_go[each], maybe)
            self.gone[each] = min(self.gone[each], surely)


class _Key:
    """The operations on one key, in the order in which they began."""

    def __init__(self, key: str, ops: list[Op]) -> None:
        self.key, self.ops = key, ops
        self.anomalies: list[Anomaly] = []
        self.messages: dict[tuple[int, str], _Message] = {}
        self.by_id: dict[MessageId, _Message] = {}
        self.by_text: dict[str, list[_Message]] = {}
        self.hides = [op for op in ops if op.kind == "hide" and op.outcome != "failed"]
        self.restores = [op for op in ops if op.kind in {"restore", "erase"} and op.outcome != "failed"]
        self.reads = sorted((o for o in ops if o.kind == "read" and o.outcome == "ok"), key=lambda o: o.end)

    def judge(self) -> list[Anomaly]:
        self._collect()
        self._say_what_is_removed()
        self._begin_to_be_there()
        self._remove_by_what_was_asked()
        open_messages = sorted(self.messages.values(), key=lambda m: m.sent)
        for read in self.reads:
            self._judge_order(read)
            if read.strict:
                open_messages = self._judge_read(read, open_messages)
        self._judge_ids()
        self._judge_ends()
        for name in {op.name for op in self.ops if op.kind == "name"}:
            self._judge_state(name)
        return self.anomalies

    def bad(self, what: str, shown: object) -> None:
        self.anomalies.append(Anomaly(what, f"{self.key}: {shown}"))

    def _collect(self) -> None:
        for n, op in enumerate(self.ops):
            for change in op.said:
                for position, token in change.added.items():
                    message = self.messages.setdefault((n, token), _Message(op, token))
                    message.ids.add((change.change, position))
                    message.sent = min(message.sent, change.at)
                    self.by_id[change.change, position] = message
            if op.kind == "add" and op.outcome == "ok":
                sent = [token for _, token in sorted(op.last.added.items())] if op.last else []
                if sent != op.tokens:
                    self.bad("acknowledged and not sent", f"{op} sent {sent}")
        for message in self.messages.values():
            self.by_text.setdefault(message.text, []).append(message)

    def _say_what_is_removed(self) -> None:
        sets: list[tuple[str, Op, Said]] = []
        for op in (op for op in self.ops if op.outcome != "failed"):
            for change in op.said:
                surely = op.end if op.outcome == "ok" and change is op.last and op.kind != "erase" else NEVER
                for view, ids in (("all", change.removed), ("active", change.archived)):
                    for message in filter(None, map(self.by_id.get, ids)):
                        message.leaves(view, change.at, surely)
                if change.is_set:
                    sets.append((change.change, op, change))
            if op.kind in REMOVALS and op.outcome == "ok":
                named = {m for change in op.said for m in change.removed | change.archived}
                told = sorted(self.by_id[m].text for m in named if m in self.by_id)
                if told != sorted(op.result):
                    self.bad("removed something else", f"{op} returned {op.result}, removed {told}")
        for _, op, change in sets:
            for position in change.added:
                message = self.by_id[change.change, position]
                for greater, other, by in sets:
                    if greater > change.change and (other.end >= op.begin or not op.strict):
                        surely = other.end if other.outcome == "ok" and by is other.last else NEVER
                        message.leaves("all", by.at, surely)

    def _begin_to_be_there(self) -> None:
        together: dict[str, list[_Message]] = {}
        for (change, _), message in self.by_id.items():
            together.setdefault(change, []).append(message)
            if message.op.outcome == "ok" and message.op.last and change == message.op.last.change:
                message.there = message.op.end
        for read in self.reads:
            for token in read.result:
                of_text = self.by_text.get(token, [])
                if len(of_text) == 1:
                    # All that one change adds is there at once.
                    for message in (m for change, _ in of_text[0].ids for m in together[change]):
                        message.there = min(message.there, read.end)

    def _remove_by_what_was_asked(self) -> None:
        for op in self.ops:
            if op.kind == "erase":
                for message in self.messages.values():
                    if message.op.begin < op.end:
                        ok = op.outcome == "ok"
                        message.half_erased = message.half_erased or not ok
                        surely = ok and op.strict and message.there < op.begin
                        message.leaves("all", op.begin, op.end if surely else NEVER)
            elif op.kind == "redact" and op.outcome == "ok":
                for of_text in (self.by_text.get(token, []) for token in op.result):
                    if len(of_text) == 1:
                        of_text[0].leaves("all", op.begin, op.end)
            elif op.kind in {"set", "clear"} and op.outcome == "ok" and op.strict and not self._may_be_hidden(op):
                for message in self.messages.values():
                    if message.there < op.begin and message.text not in op.tokens:
                        message.leaves("all", op.begin, op.end)

    def _judge_read(self, read: Op, messages: list[_Message]) -> list[_Message]:
        """Judge what a read returned; return the messages that are still to be looked at."""
        view, counts, may_be_hidden = read.view, collections.Counter(read.result), self._may_be_hidden(read)
        for token, count in counts.items():
            possible: dict[int, bool] = {}
            for m in self.by_text.get(token, []):
                may = m.sent < read.end and m.gone[view] > read.begin and m.op.outcome != "failed"
                may = may and not self._must_be_hidden(m, read)
                possible[id(m.op)] = possible.get(id(m.op), False) or may
            if token not in self.by_text:
                self.bad("nobody wrote it", f"{token} in {read}")
            elif not any(possible.values()):
                of_text = self.by_text[token]
                failed = any(m.op.outcome == "failed" and m.sent < read.end for m in of_text)
                what = "an error said that it did not happen" if failed else "what was removed is back"
                self.bad(what, f"{token} in {read}: " + "; ".join(f"{m.op}, gone {m.gone[view]:.3f}" for m in of_text))
            elif count > sum(possible.values()):
                self.bad("more than once", f"{count} of {token} in {read}")
        rest = []
        for m in messages:
            if m.sent >= read.end:
                rest.append(m)
                continue
            if m.there < read.begin and m.text not in counts and m.gone[view] == NEVER and not may_be_hidden:
                if m.may_go[view] >= read.end:
                    self.bad("lost", f"{m.text} of {m.op} is missing from {read}: {read.result}")
                if not self._is_being_erased(m, read):
                    m.leaves(view, read.end, read.end)
            if m.gone["all"] == NEVER:
                rest.append(m)
        return rest

    def _is_being_erased(self, message: _Message, read: Op) -> bool:
        """Whether the sessions of a message may be disappearing: what one reader misses another may remember."""
        if message.half_erased:
            return True
        return any(o.kind == "erase" and message.op.begin < o.end and o.begin < read.end < o.end for o in self.ops)

    def _may_be_hidden(self, op: Op) -> bool:
        """Whether a hiding may be in effect at some time of an operation."""
        return any(not self._undone(hide, op, self.restores) for hide in self.hides if hide.begin < op.end)

    def _must_be_hidden(self, message: _Message, read: Op) -> bool:
        """Whether a message was there when one hid it, which nobody has begun to undo when it is read."""
        return any(
            hide.outcome == "ok" and hide.strict and message.there < hide.begin and hide.end < read.begin
            for hide in self.hides
            if not any(r.end > hide.begin and r.begin < read.end for r in self.restores)
        )

    def _undone(self, what: Op, before: Op, by: Iterable[Op]) -> bool:
        """Whether something was surely undone before an operation began."""
        return any(o.outcome == "ok" and o.strict and what.end < o.begin and o.end < before.begin for o in by)

    def _judge_ends(self) -> None:
        """Judge that nobody writes to what was ended, until it is reopened or deleted, and that others can write."""
        others = [op for op in self.ops if op.kind in {"reopen", "erase"} and op.outcome != "failed"]
        ends = [op for op in self.ops if op.kind == "end" and op.outcome != "failed"]
        for end in (op for op in ends if op.outcome == "ok" and op.result and op.strict):
            for op in (op for op in self.ops if op.kind == "add" and op.outcome == "ok" and op.begin > end.end):
                if not any(o.end > end.begin and o.begin < op.end for o in others):
                    self.bad("written though ended", op)
        for op in (op for op in self.ops if op.ended and op.strict):
            if all(self._undone(end, op, others) for end in ends if end.begin < op.end):
                self.bad("refused though not ended", op)

    # Order

    def _only(self, tokens: Iterable[str]) -> list[_Message]:
        found = [self.by_text.get(token, []) for token in tokens]
        return [of_text[0] for of_text in found if len(of_text) == 1 and len(of_text[0].ids) == 1]

    def _judge_order(self, read: Op) -> None:
        ids = [(next(iter(m.ids)), m.text) for m in self._only(read.result)]
        for before, after in itertools.pairwise(ids):
            if before > after:
                self.bad("readers disagree on the order", f"{before} before {after} in {read}")

    def _judge_ids(self) -> None:
        """Judge whether the ids, in their order, keep what is promised of it."""
        seen: dict[str, dict[str, float]] = {}
        for read in self.reads:
            for token in read.result:
                seen.setdefault(read.process, {}).setdefault(token, read.end)
        ahead, latest = self._ahead(), 0.0
        newest: dict[str, _Message] = {}
        earliest_allowed: _Message | None = None
        for a in sorted(self._only(self.by_text), key=lambda m: next(iter(m.ids))):
            # Every message in `newest`, and `earliest_allowed`, has a smaller id than `a`: they come before it.
            for process, b in newest.items():
                in_program = process == a.op.process and a.op.begin < b.op.begin
                if in_program or (a.op.end < b.op.begin and seen.get(process, {}).get(a.text, NEVER) <= b.op.begin):
                    self.bad("order", f"{b.text} of {b.op} comes before {a.text} of {a.op}")
            if earliest_allowed and max(a.op.end, ahead(a.op.end)) < latest:
                self.bad("order by time", f"{earliest_allowed.text} of {earliest_allowed.op} before {a.text} of {a.op}")
            if a.op.process not in newest or newest[a.op.process].op.begin < a.op.begin:
                newest[a.op.process] = a
            began = a.op.begin - max(change.wrong for change in a.op.said)
            if began > latest:
                latest, earliest_allowed = began, a

    def _ahead(self) -> Callable[[float], float]:
        """Return a function of a time: the latest that an id sent before it may claim to be of."""
        sent = sorted((c.at, c.at + c.wrong) for op in self.ops for c in op.said)
        reached: list[tuple[float, float]] = []
        for at, claimed in sent:
            reached.append((at, max(claimed, reached[-1][1] if reached else 0.0)))
        times = [at for at, _ in reached]

        def ahead(time: float) -> float:
            n = bisect.bisect_right(times, time)
            return reached[n - 1][1] if n else 0.0

        return ahead

    # Named state

    def _judge_state(self, name: str) -> None:
        writes = [op for op in self.ops if op.kind == "name" and op.name == name and op.outcome != "failed"]
        by_value = {op.tokens[0]: op for op in writes}
        erases = [op for op in self.ops if op.kind == "erase" and op.outcome != "failed"]
        for read in (o for o in self.ops if o.kind == "named" and o.outcome == "ok" and o.strict):
            value = read.result.get(name)
            known = [w for w in writes if w.outcome == "ok" and w.strict and w.end < read.begin]
            if value is None:
                for w in known if not self._may_be_hidden(read) else ():
                    if not any(e.end > w.begin and e.begin < read.end for e in erases):
                        self.bad("state lost", f"{w} in {read}")
                continue
            write = by_value.get(value)
            if write is None:
                self.bad("nobody wrote this state", f"{value} in {read}")
                continue
            written = write.end if write.outcome == "ok" else max((c.at + c.wrong for c in write.said), default=NEVER)
            for later in known:
                if later.begin > written:
                    self.bad("an older state counts", f"{write} in {read}, after {later}")
            for e in erases:
                if e.outcome == "ok" and e.begin > written and e.end < read.begin:
                    self.bad("erased state is back", f"{write} in {read}")
