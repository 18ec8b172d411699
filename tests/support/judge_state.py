"""What named state and saved contexts of one key must have kept.

Of named state the last write counts. So it does of the contexts saved under one name, and a load returns just what was
saved. Of all that load a saved context without `again` at most one succeeds, and none after another has loaded it with
`again`. A load is refused only where another has loaded that context or may have. A context that was saved is there
until its key is hidden or erased: no renewal, redaction or day takes it away.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.support.ops import NEVER, Hidings, Op, Report

_NOT_THERE = {"InvalidContextError", "StoredDataError"}


class _Write(NamedTuple):
    op: Op
    value: str

    @property
    def written(self) -> float:
        """The latest that it can have counted from."""
        op = self.op
        return op.end if op.outcome == "ok" else max((c.at + c.wrong for c in op.said), default=NEVER)


class _Value:
    """The writes of one name, and which of them may count when something is read."""

    def __init__(self, writes: Sequence[_Write], erases: Sequence[Op], late: float) -> None:
        self.writes, self.erases, self.late = writes, erases, late

    def known(self, read: Op) -> list[Op]:
        """Return the writes that a read must know of."""
        return [w.op for w in self.writes if w.op.outcome == "ok" and w.op.strict and w.op.end + self.late < read.begin]

    def must_be_there(self, read: Op) -> Op | None:
        """Return a write that certainly happened and that nothing has erased."""
        for op in self.known(read):
            if not any(e.end + self.late > op.begin and e.begin < read.end for e in self.erases):
                return op
        return None

    def judge(self, what: str, write: _Write, read: Op, bad: Report) -> None:
        """Judge that a write that was read is the last one, and was not erased."""
        for later in self.known(read):
            if later.begin > write.written + self.late:
                bad(f"an older {what} counts", f"{write.op} in {read}, after {later}")
        for e in self.erases:
            if e.outcome == "ok" and e.begin > write.written + self.late and e.end + self.late < read.begin:
                bad(f"erased {what} is back", f"{write.op} in {read}")


def judge_state(ops: Iterable[Op], hidings: Hidings, bad: Report) -> None:
    """Judge the named state of a key."""
    ops = list(ops)
    writes: dict[str, list[_Write]] = collections.defaultdict(list)
    failed: set[tuple[str, str]] = set()
    for op in ops:
        if op.kind == "name":
            found = {op.name: op.tokens[0]}
        elif op.kind == "fork":
            found = {name: value[0] for change in op.said for name, value in change.state.items() if value}
        else:
            continue
        for name, brought in found.items():
            writes[name].append(_Write(op, brought)) if op.may_count else failed.add((name, brought))
    erases = [op for op in ops if op.kind == "erase" and op.may_count]
    reads = [op for op in ops if op.kind == "named" and op.outcome == "ok" and op.strict]
    for name in {*writes, *(name for read in reads for name in read.result), *(name for name, _ in failed)}:
        value = _Value(writes[name], erases, hidings.late)
        by_value = {write.value: write for write in writes[name]}
        for read in reads:
            found_value = read.result.get(name)
            if found_value is None:
                if not hidings.may_hide(read) and (lost := value.must_be_there(read)):
                    bad("state lost", f"{lost} in {read}")
                continue
            write = by_value.get(found_value)
            if write is not None:
                value.judge("state", write, read, bad)
            elif not _is_being_taken_back(name, found_value, read, ops):
                bad("no process wrote this state", f"{found_value} in {read}")


def _is_being_taken_back(name: str, value: str, read: Op, ops: Iterable[Op]) -> bool:
    """Whether a fork brought a value that finds another one, takes it back, and has not returned yet."""
    return any(
        op.source and not op.may_count and read.begin < op.end and any(value in c.state.get(name, ()) for c in op.said)
        for op in ops
    )


def judge_contexts(ops: Iterable[Op], hidings: Hidings, bad: Report) -> None:
    """Judge the saved contexts of a key."""
    ops = list(ops)
    erases = [op for op in ops if op.kind == "erase" and op.may_count]
    for name in {op.name for op in ops if op.kind in {"save", "load", "load_again"}}:
        saves = [_Write(op, op.tokens[0]) for op in ops if op.kind == "save" and op.name == name and op.may_count]
        loads = [op for op in ops if op.kind in {"load", "load_again"} and op.name == name]
        value = _Value(saves, erases, hidings.late)
        _judge_loads(value, loads, hidings, bad)
        _judge_once(loads, hidings.late, bad)


def _judge_loads(value: _Value, loads: Sequence[Op], hidings: Hidings, bad: Report) -> None:
    by_token = {save.value: save for save in value.writes}
    for load in (op for op in loads if op.strict):
        if load.outcome == "ok":
            save = by_token.get(load.result)
            if save is None:
                bad("no process saved this context", f"{load.result} in {load}")
            else:
                value.judge("context", save, load, bad)
        elif load.error in _NOT_THERE and not hidings.may_hide(load):
            if lost := value.must_be_there(load):
                bad("a saved context is lost", f"{lost} in {load}")
        elif load.error == "AlreadyResumed" and not any(_may_have_taken(o, load, value) for o in loads):
            bad("refused though no process has loaded it", load)


def _may_have_taken(other: Op, load: Op, value: _Value) -> bool:
    """Whether another load may have taken the context that counts when `load` is refused."""
    if other is load or not other.may_count or other.begin >= load.end:
        return False
    known = value.known(load)
    current = [
        save
        for save in value.writes
        if save.op.begin < load.end and not any(later.begin > save.written + value.late for later in known)
    ]
    taken = [save for save in current if other.end > save.op.begin]
    return any(other.outcome != "ok" or other.result == save.value for save in taken)


def _judge_once(loads: Sequence[Op], late: float, bad: Report) -> None:
    done = [op for op in loads if op.outcome == "ok"]
    first: dict[str, Op] = {}
    for load in (op for op in done if op.kind == "load"):
        before = first.setdefault(load.result, load)
        if before is not load:
            bad("loaded twice", f"{before}, {load}")
        for again in (op for op in done if op.kind == "load_again" and op.result == load.result):
            if again.end + late < load.begin:
                bad("loaded twice", f"{again}, {load}")
