"""Random histories of several processes on one emulator, interleaved between any two service calls, and their judge.

Every process is a store of its own whose calls wait for the scheduler, so a history is a function of its seed. What is
judged are the promises: each acknowledged message exactly once, each unconfirmed one at most once, nothing nobody
wrote, what was removed stays removed, a before b where that is promised, and all readers agree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from llama_index.core.llms import ChatMessage
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_bedrock_sessions import BedrockSessionsChatStore, chain
from llama_index_bedrock_sessions.emulator import Behaviour, Emulator
from llama_index_bedrock_sessions.errors import BedrockSessionsError
from llama_index_bedrock_sessions.sessions import Clock

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
GAP = 2.5
"""Seconds after which order is promised although the second writer had not read the first."""
KEY = "history"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Crash(BaseException):
    """Ends an operation as a killed process would: nothing may catch it."""


@dataclass
class Op:
    """One operation of a process: what it was asked, and what came of it."""

    process: int
    kind: str
    tokens: list[str]
    begin: float
    seen: set[str]
    end: float = float("inf")
    ok: bool = False
    result: Any = None
    error: BaseException | None = None
    victims: set[str] = field(default_factory=set)


class Gate:
    """Lets one thread at a time make one service call."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.order: str | None = None
        self.waiting_for = ""

    def wait(self, operation: str) -> str | None:
        self.waiting_for = operation
        self.arrived.release()
        self.go.acquire()
        return self.order


class GatedClient:
    """A client whose calls wait for the scheduler, which says what happens to each."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return functools.partial(self._process.call, operation)


class GatedKVStore(BaseKVStore):
    """A key-value store whose sync calls wait for the scheduler, on one that all processes share."""

    def __init__(self, process: Process, kv: BaseKVStore) -> None:
        self._process, self._kv = process, kv

    def _call(self, operation: str, *arguments: Any) -> Any:
        process, send = self._process, functools.partial(getattr(self._kv, operation), *arguments)
        fault = process.gate.wait(f"kv {operation}") if process.gate else None
        if fault == "crash":
            raise Crash
        if fault == "arrives late" and operation != "get_all":
            process.history.late.append(send)
        if fault == "lost reply":
            send()
        if fault is not None:
            raise ConnectionError("the key-value store does not answer")
        return send()

    def put(self, key: str, val: dict[str, Any], collection: str = "data") -> None:
        self._call("put", key, val, collection)

    def get(self, key: str, collection: str = "data") -> Any:
        return self._call("get", key, collection)

    def get_all(self, collection: str = "data") -> Any:
        return self._call("get_all", collection)

    def delete(self, key: str, collection: str = "data") -> Any:
        return self._call("delete", key, collection)

    async def aput(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    aget = aget_all = adelete = aput


class Process:
    """A store whose calls wait at a gate, with a local clock of its own."""

    def __init__(self, history: History, number: int, skew: float) -> None:
        self.history, self.number, self.skew = history, number, skew
        where: Any = "metadata" if history.kv is None else GatedKVStore(self, history.kv)
        self.store = BedrockSessionsChatStore(client=GatedClient(self), max_concurrency=1, directory=where)
        sessions = self.store._sessions
        sessions.clock = Clock(lambda: history.now() + skew)
        sessions.pool.map = lambda function, items: [function(item) for item in items]  # type: ignore[method-assign]
        self.gate: Gate | None = None
        self.op: Op | None = None
        self.done = False

    def call(self, operation: str, **arguments: Any) -> Any:
        history = self.history
        fault = self.gate.wait(operation) if self.gate else None
        if fault == "crash":
            raise Crash
        send = functools.partial(getattr(history.client, operation), **arguments)
        history.emulator.clock.advance(history.random.uniform(0.005, 0.03))
        if fault == "never arrives":
            raise EndpointConnectionError(endpoint_url="emulator")
        if fault == "arrives late" and operation == "put_invocation_step":
            history.late.append(send)
            raise ReadTimeoutError(endpoint_url="emulator")
        if fault == "lost reply":
            # botocore sends the request again.
            with contextlib.suppress(ClientError):
                send()
            history.emulator.clock.advance(0.01)
        return send()

    def texts(self) -> list[str]:
        return [str(m.content) for m in self.store.get_messages(KEY)]


class History:
    """A run: processes, operations, faults, and the time."""

    def __init__(
        self,
        seed: int,
        *,
        behaviour: Behaviour | None = None,
        processes: int = 3,
        skews: tuple[float, ...] = (0.0,),
        steps: int = 8,
        kv: bool = False,
    ) -> None:
        self.kv = SimpleKVStore() if kv else None
        self.random = random.Random(seed)
        self.emulator = Emulator(behaviour=behaviour)
        self.emulator.clock.stop(START)
        self.client = self.emulator.client()
        self.skews, self.steps = skews, steps
        started = self.emulator.behaviour
        self.is_late = bool(started.steps_listed_after or started.sessions_listed_after)
        # A tool that ends a session leaves those who cache it unaware for up to 50 minutes.
        self.strict = not self.is_late
        self.late: list[Callable[[], object]] = []
        self.ops: list[Op] = []
        self.anomalies: list[tuple[str, str]] = []
        self.log: list[str] = []
        self.tokens = 0
        self.processes = [Process(self, n, skews[n % len(skews)]) for n in range(processes)]

    def now(self) -> float:
        return self.emulator.clock.now().timestamp()

    # Operations

    def start(self, number: int, kind: str, argument: int = 0) -> bool:
        process = self.processes[number]
        if process.op is not None:
            return False
        count = {"add": 1 + (argument % 3 == 0), "set": 2}.get(kind, 0)
        tokens = [f"m{self.tokens + n}" for n in range(count)]
        self.tokens += count
        chat = process.store.conversation(KEY)
        seen = {str(blocks_text(m.record)) for m in chat._chain.fold.alive()} if chat._chain.fold else set()
        op = Op(number, kind, tokens, self.now(), seen)
        self.ops.append(op)
        process.op, process.gate, process.done = op, Gate(), False
        self.note(f"P{number} begins {kind} {' '.join(tokens)}")
        threading.Thread(target=self._run, args=(process, op, argument), daemon=True).start()
        process.gate.arrived.acquire()
        self._finish(process)
        return True

    def _run(self, process: Process, op: Op, argument: int) -> None:
        gate = process.gate
        assert gate is not None
        try:
            op.result = self._perform(process.store, op, argument)
            op.ok = True
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001 - judged by the scheduler
            op.error = error
        process.done = True
        gate.arrived.release()

    def _perform(self, store: BedrockSessionsChatStore, op: Op, argument: int) -> Any:
        messages = [ChatMessage(content=token) for token in op.tokens]
        chat = store.conversation(KEY)
        if op.kind == "add":
            return chat.add(messages)
        if op.kind == "set":
            return chat.set(messages)
        if op.kind == "rm":
            present = chat.messages()
            removed = chat.remove(argument % len(present)) if present else None
            return removed.content if removed else None
        if op.kind == "clear":
            return chat.clear()
        if op.kind == "erase":
            return chat.delete()
        if op.kind == "redact":
            chat.messages()
            there = chat._chain.known().visible()
            if not there:
                return None
            chosen = there[argument % len(there)]
            chat.redact(f"{chosen.id[0]}/{chosen.id[1]}")
            return blocks_text(chosen.record)
        if op.kind == "renew":
            return chat.renew(timedelta(0))
        if op.kind == "end":
            return chat.end()
        if op.kind == "reopen":
            return chat.reopen()
        return [m.content for m in chat.messages()]

    def step(self, number: int, fault: str | None = None) -> bool:
        process = self.processes[number]
        if process.op is None or process.gate is None:
            return False
        self.note(f"  P{number} {process.gate.waiting_for} {fault or ''}")
        process.gate.order = fault
        process.gate.go.release()
        process.gate.arrived.acquire()
        self._finish(process)
        return True

    def _finish(self, process: Process) -> None:
        if not process.done:
            return
        op, process.op, process.gate = process.op, None, None
        assert op is not None
        op.end = self.now()
        outcome = f"returned {op.result}" if op.ok else f"failed {op.error!r}"
        self.note(f"P{process.number} {op.kind} {' '.join(op.tokens)} {outcome}")
        if op.error is not None and not isinstance(op.error, BedrockSessionsError):
            self.anomalies.append(("an error not of our tree", repr(op.error)))
        if op.ok and op.kind == "read" and self.strict:
            self.judge(op.result, op.begin, f"read by P{process.number}", order=False)

    def finish(self, number: int) -> Op:
        op = self.processes[number].op
        for _ in range(3000):
            if not self.step(number):
                break
        else:
            raise AssertionError("no progress")
        return op if op is not None else self.ops[-1]

    def crash(self, number: int) -> None:
        process = self.processes[number]
        if process.op is not None:
            self.step(number, "crash")
            while process.op is not None:
                self.step(number, "crash")
        self.note(f"P{number} crashes")
        self.processes[number] = Process(self, number, process.skew)

    def advance(self, seconds: float) -> None:
        self.emulator.clock.advance(seconds)
        self.note(f"{seconds / 60:.1f} minutes pass")

    def arrive(self) -> None:
        if self.late:
            self.note("a delayed request is executed")
            with contextlib.suppress(ClientError):
                self.late.pop(0)()

    def end_one(self) -> None:
        sessions = [
            s["sessionId"] for s in self.client.list_sessions()["sessionSummaries"] if s["sessionStatus"] == "ACTIVE"
        ]
        if sessions:
            self.client.end_session(sessionIdentifier=self.random.choice(sorted(sessions)))
            self.note("somebody ends a session")

    def note(self, line: str) -> None:
        self.log.append(f"{self.now() - START.timestamp():10.3f} {line}")

    # Judgement

    def judge(self, texts: list[str], at: float, who: str, *, order: bool = True) -> None:
        bad = self.anomalies
        if len(texts) != len(set(texts)):
            bad.append(("duplicate", f"{who}: {texts}"))
        known = {token for op in self.ops for token in op.tokens}
        bad.extend(("nobody wrote it", f"{who}: {t}") for t in texts if t not in known)
        where = {text: position for position, text in enumerate(texts)}
        killers = [op for op in self.ops if op.kind in {"set", "clear", "erase"}]
        removed = [op for op in self.ops if op.kind in {"rm", "redact"}]
        unsure = any(not op.ok for op in removed)
        gone = {op.result for op in removed if op.ok and op.result}
        for op in (o for o in self.ops if o.tokens and o.ok and o.end < at):
            excused = any(k.end > op.begin and k is not op for k in killers if not _did_nothing(k))
            after = [k for k in killers if k.ok and k.begin > op.end and k.end < at and not _did_nothing(k)]
            for token in op.tokens:
                if token not in where and not (excused or unsure or token in gone):
                    bad.append(("lost", f"{who}: {token} of P{op.process} is missing from {texts}"))
                if token in where and after and not self.is_late:
                    bad.append((f"back after {after[-1].kind}", f"{who}: {token} in {texts}"))
        bad.extend(
            ("back after removal", f"{who}: {op.result} in {texts}")
            for op in removed
            if op.ok and op.result in where and op.end < at
        )
        for op in (o for o in self.ops if len(o.tokens) > 1 and not gone and not unsure):
            if 0 < sum(token in where for token in op.tokens) < len(op.tokens):
                bad.append(("torn", f"{who}: {op.tokens} in {texts}"))
        bad.extend(self._written_though_ended(who))
        sets = [op for op in killers if op.kind == "set" and any(token in where for token in op.tokens)]
        if len(sets) > 1:
            bad.append(("two sets", f"{who}: {texts}"))
        if order:
            bad.extend(self._disorder(where, texts, who))

    def _written_though_ended(self, who: str) -> Iterator[tuple[str, str]]:
        others = [op for op in self.ops if op.kind in {"reopen", "erase"}]
        for end in (op for op in self.ops if op.kind == "end" and op.ok and op.result and not self.is_late):
            for op in self.ops:
                taken = op.ok and op.kind == "add" and op.begin > end.end
                if taken and not any(o.end > end.begin and o.begin < op.end for o in others):
                    yield ("written though ended", f"{who}: {op.tokens}")

    def _disorder(self, where: dict[str, int], texts: list[str], who: str) -> Iterator[tuple[str, str]]:
        adds = [op for op in self.ops if op.kind == "add" and op.ok and op.tokens[0] in where]
        for a in adds:
            for b in adds:
                read = a.tokens[0] in b.seen and a.end <= b.begin
                if (a.end + GAP < b.begin or read) and where[a.tokens[0]] > where[b.tokens[0]]:
                    yield ("order", f"{who}: {a.tokens} came before {b.tokens} began: {texts}")

    def quiesce(self) -> None:
        for number in range(len(self.processes)):
            self.crash(number) if self.processes[number].op else None
        self.late.clear()
        was = self.emulator.behaviour
        for _ in range(1 + was.steps_listed_after + was.sessions_listed_after):  # everything becomes visible
            for session in self.client.list_sessions()["sessionSummaries"]:
                self.client.list_invocation_steps(sessionIdentifier=session["sessionId"])
        self.emulator.behaviour = dataclasses.replace(was, steps_listed_after=0, sessions_listed_after=0)

    def cold(self, kind: str = "read", argument: int = 0) -> Op:
        self.processes.append(Process(self, len(self.processes), 0.0))
        self.start(len(self.processes) - 1, kind, argument)
        op = self.ops[-1]
        self.finish(len(self.processes) - 1)
        return op

    def conclude(self, *, days: tuple[float, ...] = ()) -> list[tuple[str, str]]:
        """Judge what is left when everything has come to rest, and after pauses of some days with a write each."""
        self.quiesce()
        living = range(len(self.processes))
        first = self.cold()
        if not first.ok:
            self.anomalies.append(("unreadable", repr(first.error)))
            return self.anomalies
        self.judge(first.result, self.now() + 1, "cold read")
        self.cold("reopen")
        written = self.cold("add", 1)
        if not written.ok:
            self.anomalies.append(("unwritable", repr(written.error)))
            return self.anomalies
        last = self.cold().result
        if [t for t in last if t not in written.tokens] != first.result:
            self.anomalies.append(("readers disagree", f"{first.result} became {last}"))
        half_erased = any(op.kind == "erase" and not op.ok for op in self.ops)
        for number in living:
            if self.processes[number].store.conversation(KEY)._chain.fold is not None:
                self.start(number, "read")
                op = self.ops[-1]
                self.finish(number)
                if op.ok and op.result != last and self.strict and not half_erased:
                    self.anomalies.append(("a warm reader is stale", f"P{number} {op.result}, cold {last}"))
        for pause in days:
            self.advance(pause)
            before = self.cold()
            if not before.ok or before.result != last:
                self.anomalies.append(
                    (f"after {pause / DAY:.1f} days", f"{last} became {before.result} {before.error}")
                )
                break
            more = self.cold("add", 1)
            last = [*last, *more.tokens]
        return self.anomalies


def _did_nothing(op: Op) -> bool:
    return op.ok and op.kind == "clear" and not op.result


def blocks_text(record: Any) -> str:
    """Return the text of a record of one text block."""
    return "".join(item for item in record["b"] if isinstance(item, str))


@contextlib.contextmanager
def short_sessions(steps: int) -> Iterator[None]:
    """Have conversations continue after some steps, so that short histories cross many sessions."""
    before = chain.CONTINUE_AT
    chain.CONTINUE_AT = steps
    try:
        yield
    finally:
        chain.CONTINUE_AT = before


def random_history(
    seed: int,
    *,
    kinds: str = "add add add add read read rm",
    times: tuple[float, ...] = (1.0,),
    actions: int = 60,
    faults: float = 0.05,
    crashes: float = 0.02,
    users: bool = False,
    days: tuple[float, ...] = (2 * HOUR, 9 * DAY, 13 * DAY),
    **settings: Any,
) -> History:
    """Run one history and judge it; its `anomalies` should be empty."""
    history = History(seed, **settings)
    history.strict = history.strict and not users
    choose = random.Random(seed * 7919 + 1)
    with short_sessions(history.steps):
        for _ in range(actions):
            process = choose.randrange(len(history.skews) if len(history.skews) > 3 else len(history.processes))
            draw = choose.random()
            if draw < 0.30:
                history.start(process, choose.choice(kinds.split()), choose.randrange(6))
            elif draw < 0.30 + crashes:
                history.crash(process)
            elif draw < 0.34 + crashes:
                history.advance(choose.choice(times))
            elif users and draw < 0.35 + crashes:
                history.end_one()
            elif draw < 0.37 + crashes:
                history.arrive()
            else:
                for _ in range(choose.choice((1, 1, 2, 4, 30))):
                    fault = choose.choice(("lost reply", "never arrives", "arrives late"))
                    if not history.step(process, fault if choose.random() < faults else None):
                        break
        history.conclude(days=days)
    return history
