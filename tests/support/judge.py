"""What the operations of several processes on shared keys must have kept, whichever program recorded them.

An `Op` is what a process asked for and was told, and what it `Said`: the changes that it sent to the service, in the
words of the format. So nothing that happens at the same time excuses anything: a message may be missing only if a
change was sent that removes it by its id, which only who has read it can know.

A message *must be there* for a read that begins after its append was acknowledged (or after another read has shown it)
and ends before a change that removes it was sent. It *must not be there* for one that begins after its removal was
acknowledged, or after another read has missed it. `set` and `clear` remove all that had to be there when they began;
`erase` may remove what was begun before it ended. Of several sets the greatest id counts. What was there before `hide`
must not be there after it, until a process begins to restore it; what may be hidden need not be there.
No process writes after `end`, until one begins to reopen the conversation. A refused write has an `end` as the reason.
Order is that of the ids, and the ids keep what is promised: the order of one process, b after a if b's writer had
read a, and b after a if a was acknowledged before b began by more than the clocks of the writers may be wrong.

Late lists
    `late` is the greater of the two times after which the service lists a step and a session. "After" above then means
    more than `late` seconds after. The two times do not add up: a step is never older than its session, so `late`
    seconds after the step was acknowledged a list shows both, and the closing step of each session before it, too.
    Two hops add up: a `set` removes what was acknowledged `late` seconds before it began, and that is gone for reads
    that begin `late` seconds after it ended. An unknown outcome (a crash, a lost reply) excuses nothing more: from
    `late` seconds after one reader has shown a message, all readers show it.

Forks
    What a fork sends to its new key is judged as a read of its source, of messages and named state, that ended when the
    first step was sent. Under the new key it is one write. A fork up to a point holds what had an id up to that point
    and was not removed by a change up to that point. Nothing of a fork that failed for certain is there afterwards. Of
    two forks onto one key at most one succeeds (where lists are immediate), and none where something must be there. A
    refusal needs another write under the key. A message that another process writes first under the key always stays.

Named state and saved contexts are judged in `judge_state.py`.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator

from llama_index_bedrock_sessions._journal.ids import MessageId
from tests.support.judge_state import judge_contexts, judge_state
from tests.support.ops import NEVER, Anomaly, Hidings, Op, Point, Said

REMOVALS = {"remove", "remove last", "archive"}
MONTH = 28 * 86400.0
"""Seconds for which a removed message is certainly in the service, unless its session is deleted on purpose."""
ROUNDING = 0.001
"""Seconds that times which are added up may be wrong."""
_Order = tuple[tuple[int, str], int]


def judge(ops: Iterable[Op], *, late: float = 0.0, dated: bool = True) -> list[Anomaly]:
    """Return every promise that a history breaks.

    `late`: seconds after which lists show everything. `dated`: whether times are those of the service.
    """
    by_key: dict[str, list[Op]] = {}
    copies: dict[str, list[Op]] = {}
    for op in sorted(ops, key=lambda op: op.begin):
        by_key.setdefault(op.key, []).append(op)
        if op.kind == "fork" and op.point and (op.said or op.outcome == "ok"):
            copies.setdefault(op.source, []).append(op)
        elif op.kind == "fork" and not op.point:
            by_key.setdefault(op.source, []).extend(_reads(op))
    return [
        anomaly
        for key, of_key in by_key.items()
        for anomaly in _Key(key, of_key, late=late, dated=dated).judge(copies.get(key, ()))
    ]


def _reads(fork: Op) -> Iterator[Op]:
    """Yield what a fork must have read of its source."""
    copy = fork.copy
    if copy is None and fork.outcome != "ok":
        return
    everything = sorted(copy.added.items()) if copy else []
    archived = {position for change, position in copy.archived if change == copy.change} if copy else set()
    active = [token for position, token in everything if position not in archived]
    state = {name: value[0] for name, value in copy.state.items() if value} if copy else {}
    found: list[tuple[str, str, object]] = [
        ("read", "all", [token for _, token in everything]),
        ("read", "active", active),
        ("named", "active", state),
    ]
    for kind, view, result in found:
        ended = min((change.at for change in fork.said), default=fork.end)
        about = {"outcome": "ok", "result": result, "view": view, "strict": fork.strict}
        yield Op(fork.process, kind, fork.source, fork.begin, [], ended, **about)  # type: ignore[arg-type]


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
    written = collections.Counter(token for op in ops for token in {*op.tokens, *op.copied})
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
    ids: dict[MessageId, Said] = dataclasses.field(default_factory=dict)
    sent: float = NEVER
    there: float = NEVER
    may_go: dict[str, float] = dataclasses.field(default_factory=lambda: {"active": NEVER, "all": NEVER})
    gone: dict[str, float] = dataclasses.field(default_factory=lambda: {"active": NEVER, "all": NEVER})
    half_erased: bool = False
    removals: list[tuple[Said, float]] = dataclasses.field(default_factory=list)
    """The changes that remove it, each with the time from which it certainly has."""

    def leaves(self, view: str, maybe: float, surely: float) -> None:
        for each in {view, "active"}:
            self.may_go[each] = min(self.may_go[each], maybe)
            self.gone[each] = min(self.gone[each], surely)

    @property
    def order(self) -> _Order:
        (((_, position), change),) = self.ids.items()
        return (change.order, position)


class _Key:
    """The operations on one key, in the order in which they began."""

    def __init__(self, key: str, ops: list[Op], *, late: float, dated: bool) -> None:
        self.key, self.late, self.dated = key, late and late + ROUNDING, dated
        self.ops = sorted(ops, key=lambda op: op.begin)
        self.anomalies: list[Anomaly] = []
        self.messages: dict[tuple[int, str, int], _Message] = {}
        self.by_id: dict[MessageId, _Message] = {}
        self.by_text: dict[str, list[_Message]] = {}
        self.hidings = Hidings(self.ops, self.late)
        self.reads = sorted((o for o in self.ops if o.kind == "read" and o.outcome == "ok"), key=lambda o: o.end)

    def judge(self, copies: Iterable[Op]) -> list[Anomaly]:
        self._collect()
        self._note_removals()
        self._begin_to_be_there()
        self._remove_by_what_was_asked()
        open_messages = sorted(self.messages.values(), key=lambda m: m.sent)
        for read in self.reads:
            self._judge_order(read, read.result)
            self._judge_missing(read)
            if read.strict:
                open_messages = self._judge_read(read, open_messages)
        self._judge_ids()
        self._judge_ends()
        for fork in copies:
            self._judge_copy(fork)
        self._judge_forks()
        self._judge_left()
        judge_state(self.ops, self.hidings, self.bad)
        judge_contexts(self.ops, self.hidings, self.bad)
        return self.anomalies

    def bad(self, what: str, shown: object) -> None:
        self.anomalies.append(Anomaly(what, f"{self.key}: {shown}"))

    def _collect(self) -> None:
        for n, op in enumerate(self.ops):
            for change in op.said:
                times: collections.Counter[str] = collections.Counter()
                for position, token in change.added.items():
                    times[token] += 1
                    message = self.messages.setdefault((n, token, times[token]), _Message(op, token))
                    message.ids[change.change, position] = change
                    message.sent = min(message.sent, change.at)
                    self.by_id[change.change, position] = message
            if op.kind == "add" and op.outcome == "ok" and op.sent != op.tokens:
                self.bad("acknowledged and not sent", f"{op} sent {op.sent}")
        for message in self.messages.values():
            self.by_text.setdefault(message.text, []).append(message)

    def _note_removals(self) -> None:
        sets: list[tuple[str, Op, Said]] = []
        for op in (op for op in self.ops if op.may_count):
            for change in op.said:
                surely = op.end if op.outcome == "ok" and change is op.last and op.kind != "erase" else NEVER
                for view, ids in (("all", change.removed), ("active", change.archived)):
                    for message in filter(None, map(self.by_id.get, ids)):
                        message.leaves(view, change.at, surely)
                        if view == "all":
                            message.removals.append((change, surely))
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
                    if greater > change.change and (other.end + self.late >= op.begin or not op.strict):
                        surely = other.end if other.outcome == "ok" and by is other.last else NEVER
                        message.leaves("all", by.at, surely)
                        message.removals.append((by, surely))

    def _begin_to_be_there(self) -> None:
        together: dict[str, list[_Message]] = {}
        for (change, _), message in self.by_id.items():
            together.setdefault(change, []).append(message)
            if message.op.outcome == "ok" and message.op.counts and change == message.op.counts.change:
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
                        surely = ok and op.strict and message.there + self.late < op.begin
                        message.leaves("all", op.begin, op.end if surely else NEVER)
            elif op.kind == "redact" and op.outcome == "ok":
                for of_text in (self.by_text.get(token, []) for token in op.result):
                    if len(of_text) == 1:
                        of_text[0].leaves("all", op.begin, op.end)
            elif op.kind in {"set", "clear"} and op.outcome == "ok" and op.strict and not self.hidings.may_hide(op):
                for message in self.messages.values():
                    if message.there + self.late < op.begin and message.text not in op.tokens:
                        message.leaves("all", op.begin, op.end)

    def _judge_read(self, read: Op, messages: list[_Message]) -> list[_Message]:
        """Judge what a read returned; return the messages that are still to be looked at."""
        view, counts, may_be_hidden = read.view, collections.Counter(read.result), self.hidings.may_hide(read)
        for token, count in counts.items():
            of_text = self.by_text.get(token, [])
            possible = [m for m in of_text if self._may_be_shown(m, read)]
            if not of_text:
                self.bad("no process wrote it", f"{token} in {read}")
            elif not possible:
                failed = any(not m.op.may_count and m.sent < read.end for m in of_text)
                what = "an error said that it did not happen" if failed else "what was removed is back"
                self.bad(what, f"{token} in {read}: " + "; ".join(f"{m.op}, gone {m.gone[view]:.3f}" for m in of_text))
            elif count > len(possible):
                self.bad("more than once", f"{count} of {token} in {read}")
        rest = []
        for m in messages:
            if m.sent >= read.end:
                rest.append(m)
                continue
            is_due = m.there + self.late < read.begin and m.op.may_count and not may_be_hidden
            if is_due and m.text not in counts:
                if m.may_go[view] >= read.end:
                    self.bad("lost", f"{m.text} of {m.op} is missing from {read}: {read.result}")
                if not self._is_being_erased(m, read):
                    m.leaves(view, read.end, read.end)
            if m.gone["all"] > read.end:
                rest.append(m)
        return rest

    def _may_be_shown(self, message: _Message, read: Op) -> bool:
        # A fork that finds another one takes back what it wrote, and then says that it did not happen.
        is_done = message.op.may_count or (message.op.source and read.begin < message.op.end)
        is_there = message.sent < read.end and message.gone[read.view] + self.late > read.begin
        return bool(is_done) and is_there and not self._must_be_hidden(message, read)

    def _is_being_erased(self, message: _Message, read: Op) -> bool:
        """Whether the sessions of a message may be disappearing: what one reader misses another may remember."""
        if message.half_erased:
            return True
        return any(o.kind == "erase" and message.op.begin < o.end and o.begin < read.end < o.end for o in self.ops)

    def _must_be_hidden(self, message: _Message, read: Op) -> bool:
        """Whether a message was there when one hid it, and no process has begun to undo that when it is read."""
        late, hidings = self.late, self.hidings
        return any(
            hide.outcome == "ok" and hide.strict and message.there + late < hide.begin and hide.end + late < read.begin
            for hide in hidings.hides
            if not any(r.end + late > hide.begin and r.begin < read.end for r in hidings.restores)
        )

    def _judge_ends(self) -> None:
        """Judge that none writes to what was ended, until it is reopened or deleted, and that others can write."""
        late = self.late
        others = [op for op in self.ops if op.kind in {"reopen", "erase"} and op.may_count]
        ends = [op for op in self.ops if op.kind == "end" and op.may_count]
        for end in (op for op in ends if op.outcome == "ok" and op.result and op.strict):
            for op in (op for op in self.ops if op.kind == "add" and op.outcome == "ok" and op.begin > end.end + late):
                if not any(o.end + late > end.begin and o.begin < op.end for o in others):
                    self.bad("written though ended", op)
        for op in (op for op in self.ops if op.error == "ConversationEnded" and op.strict):
            if all(self.hidings.undone(end, op, others) for end in ends if end.begin < op.end):
                self.bad("refused though not ended", op)

    # Content in S3

    def _judge_missing(self, read: Op) -> None:
        for token in read.missing:
            of_text = self.by_text.get(token, [])
            if not any(m.may_go["all"] < read.end for m in of_text):
                self.bad("its content is missing", f"{token} in {read}")

    def _judge_left(self) -> None:
        """Judge that contents have left the bucket with their messages."""
        for op in (op for op in self.ops if op.outcome == "ok" and op.kind in {"redact", "erase"}):
            for token in op.left if op.kind == "erase" else {*op.left}.intersection(op.result):
                of_text = self.by_text.get(token, [])
                # A writer that has not returned yet looks once more whether its content is there.
                if len(of_text) == 1 and of_text[0].op.outcome == "ok" and of_text[0].op.end + self.late < op.begin:
                    self.bad("deleted, and its content still in S3", f"{token} by {op}")

    # Forks

    def _must_be_there(self, op: Op) -> bool:
        """Whether some message must be there all through an operation."""
        return not self.hidings.may_hide(op) and any(
            m.there + self.late < op.begin and m.may_go["all"] >= op.end for m in self.messages.values()
        )

    def _judge_forks(self) -> None:
        """Judge which forks onto this key succeeded, and why others were refused."""
        forks = [op for op in self.ops if op.kind == "fork" and op.key == self.key]
        for fork in forks:
            others = [op for op in self.ops if op is not fork and op.begin < fork.end]
            if fork.outcome == "ok" and fork.strict and self._must_be_there(fork):
                self.bad("forked onto what exists", fork)
            is_explained = any(op.said or op.kind in {"fork", "add", "set", "name", "save"} for op in others)
            if fork.error == "ConversationExists" and not is_explained:
                self.bad("refused though there was nothing", fork)
        won = [op for op in forks if op.outcome == "ok" and op.strict] if not self.late else []
        for one, other in itertools.combinations(won, 2):
            undone = any(
                op.kind not in {"read", "named", "add", "fork", "name"}
                and op.may_count
                and op.end > one.begin
                and op.begin < other.end
                for op in self.ops
            )
            if other.begin < one.end and not undone:
                self.bad("two forks onto one key", f"{one}, {other}")

    def _judge_copy(self, fork: Op) -> None:
        """Judge what a fork of this key has copied up to a point."""
        point = fork.point
        assert point
        at = min((change.at for change in fork.said), default=fork.end)
        tokens = [token for token in fork.copied if not token.startswith("[")]
        counts = collections.Counter(tokens)
        self._judge_order(fork, tokens)
        for token, count in counts.items():
            possible = 0
            for m in self.by_text.get(token, []):
                is_removed = any(
                    surely + self.late < fork.begin and self._is_within(removal, 0, point)
                    for removal, surely in m.removals
                )
                is_within = any(self._is_within(change, n, point, added=True) for (_, n), change in m.ids.items())
                possible += is_within and m.op.may_count and m.sent < at and not is_removed
            if count > possible:
                self.bad("was not there at that point", f"{count} of {token} up to {point} in {fork}")
        rewritten = any(op.kind in {"redact", "erase"} and op.begin < fork.end for op in self.ops)
        for m in self.messages.values() if fork.strict and not self.hidings.may_hide(fork) else ():
            is_within = all(self._is_within(change, n, point, added=True) for (_, n), change in m.ids.items())
            if not is_within or m.there + self.late >= fork.begin or m.text in counts:
                continue
            is_kept = self.dated and not rewritten and fork.end - m.sent < MONTH
            removed_later = not any(self._is_within(removal, 0, point) for removal, _ in m.removals)
            if m.may_go["all"] >= at or (is_kept and removed_later):
                self.bad("lost at that point", f"{m.text} of {m.op} up to {point} in {fork}")

    def _is_within(self, change: Said, position: int, point: Point, *, added: bool = False) -> bool:
        """Whether a change (a message that it adds, if `added`) stands up to a point."""
        if change.change != point.change:
            of_point = next(
                (c for (name, _), m in self.by_id.items() if name == point.change for c in m.ids.values()), None
            )
            return of_point is not None and change.order < of_point.order
        if not added:
            return point.position > 0 or point.included
        return position < point.position or (position == point.position and point.included)

    # Order

    def _only(self, tokens: Iterable[str]) -> list[_Message]:
        found = [self.by_text.get(token, []) for token in tokens]
        return [of_text[0] for of_text in found if len(of_text) == 1 and len(of_text[0].ids) == 1]

    def _judge_order(self, read: Op, tokens: Iterable[str]) -> None:
        orders = [(m.order, m.text) for m in self._only(tokens)]
        for before, after in itertools.pairwise(orders):
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
        ours = [m for m in self._only(self.by_text) if not any(change.foreign for change in m.ids.values())]
        for a in sorted(ours, key=lambda m: m.order):
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
