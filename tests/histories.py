"""Random histories of several processes on one emulator, interleaved between any two service calls.

Every process is a store of its own whose calls wait for the scheduler, so a history is a function of its seed. What
they must have kept is said in `judge.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from llama_index.core.llms import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_bedrock_sessions import BedrockSessionsChatStore, chain
from llama_index_bedrock_sessions.emulator import Behaviour, Emulator
from llama_index_bedrock_sessions.errors import BedrockSessionsError, ConversationEnded
from llama_index_bedrock_sessions.fold import Draft
from llama_index_bedrock_sessions.journal import Home, Kind, parse_id, parts, parts_json
from llama_index_bedrock_sessions.sessions import Clock, timestamp
from tests.judge import CLOCK, Anomaly, Op, judge, redacted, said, text
from tests.service import QUICK, stored

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
KEY = "history"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Crash(BaseException):
    """Ends an operation as a killed process would: nothing may catch it."""


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
        history.born += 1
        self.name = f"P{number}-{history.born}"
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
        if operation == "put_invocation_step" and self.op:
            home = _home(arguments)
            change = said(home, arguments["payload"]["contentBlocks"], history.now(), CLOCK)
            if change or ((parsed := parse_id(home.step)) and parsed.kind is Kind.OPENING):
                self.op.say(change)
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
        self.client = self.emulator.client(config=Config(**QUICK), timestamp_parser=timestamp)
        self.skews, self.steps = skews, steps
        started = self.emulator.behaviour
        self.lateness = max(started.steps_listed_after_seconds, started.sessions_listed_after_seconds)
        self.is_late = bool(self.lateness)
        self.strict = not self.is_late
        """Whether a process sees at once what others did; not where a tool ends sessions: that takes 50 minutes."""
        self.late: list[Callable[[], object]] = []
        self.ops: list[Op] = []
        self.anomalies: list[Anomaly] = []
        self.log: list[str] = []
        self.tokens = 0
        self.born = 0
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
        kind, view = ("read", "all") if kind == "all" else (kind, "active")
        op = Op(process.name, kind, KEY, self.now(), tokens, view=view, strict=self.strict)
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
            op.outcome = "ok"
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001 - told, and judged
            ours = isinstance(error, BedrockSessionsError)
            if not ours:
                self.anomalies.append(Anomaly("an error not of our tree", repr(error)))
            op.result = repr(error)
            op.ended = isinstance(error, ConversationEnded)
            if ours and not error.may_have_happened:  # type: ignore[attr-defined]
                op.outcome = "failed"
        process.done = True
        gate.arrived.release()

    def _perform(self, store: BedrockSessionsChatStore, op: Op, argument: int) -> Any:
        messages = [ChatMessage(content=token) for token in op.tokens]
        chat = store.conversation(KEY)
        if op.kind == "add":
            return chat.add(messages)
        if op.kind == "set":
            return chat.set(messages)
        if op.kind == "remove":
            present = chat.messages()
            return contents([chat.remove(argument % len(present)) if present else None])
        if op.kind == "clear":
            return contents(chat.clear())
        if op.kind == "erase":
            return contents(chat.delete())
        if op.kind == "redact":
            chat.messages()
            there = chat._chain.known().visible()
            if not there:
                return []
            chosen = there[argument % len(there)]
            chat.redact(f"{chosen.id[0]}/{chosen.id[1]}")
            return [text(chosen.record)]
        if op.kind == "save":
            return chat._chain.append_with(["x" * 20_000], lambda there: Draft(state={"saved": [parts_json(there)]}))
        if op.kind == "load":
            return chat._chain.texts(parts(chat._chain.refresh(force=True).state()["saved"]))
        if op.kind == "renew":
            return chat.renew(timedelta(0))
        if op.kind == "hide":
            return contents(chat.hide())
        if op.kind in {"end", "reopen", "restore"}:
            return getattr(chat, op.kind)()
        if op.kind == "archive":
            return contents(chat.archive_oldest(1 + argument % 3))
        return contents(chat.messages(status=None if op.view == "all" else MessageStatus.ACTIVE))

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
        self.note(f"{op} {op.result}")

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

    # In the end

    def quiesce(self) -> None:
        for number in range(len(self.processes)):
            self.crash(number) if self.processes[number].op else None
        self.late.clear()
        self.emulator.clock.advance(self.lateness)  # everything is listed now, and from here on at once
        self.emulator.behaviour = dataclasses.replace(
            self.emulator.behaviour, steps_listed_after_seconds=0, sessions_listed_after_seconds=0
        )

    def cold(self, kind: str = "read", argument: int = 0) -> Op:
        self.processes.append(Process(self, len(self.processes), 0.0))
        self.start(len(self.processes) - 1, kind, argument)
        op = self.ops[-1]
        self.finish(len(self.processes) - 1)
        return op

    def conclude(self, *, days: tuple[float, ...] = ()) -> list[Anomaly]:
        """Judge what is left when everything has come to rest, and after pauses of some days with a write each."""
        self.quiesce()
        self.anomalies += redacted(self.ops, stored(self.client))
        rest = len(self.ops)
        living, is_aware, self.strict = range(len(self.processes)), self.strict, True
        first, _, written, last = self.cold(), self.cold("reopen"), self.cold("add", 1), self.cold()
        self.expect("readers disagree", last, [*self.texts(first), *written.tokens])
        half_erased = any(op.kind == "erase" and op.outcome != "ok" for op in self.ops)
        for number in living if is_aware and not half_erased else ():
            if self.processes[number].store.conversation(KEY)._chain.fold is not None:
                self.start(number, "read")
                self.expect("a warm reader is stale", self.finish(number), self.texts(last))
        for pause in days:
            self.advance(pause)
            before = self.cold()
            self.expect(f"after {pause / DAY:.1f} days", before, self.texts(last))
            self.cold("add", 1)
            last = self.cold()
        self.cold("all")
        self.anomalies += [
            Anomaly("does not work at rest", f"{op} {op.result}") for op in self.ops[rest:] if op.outcome != "ok"
        ]
        self.anomalies += judge(self.ops)
        return self.anomalies

    def texts(self, read: Op) -> list[str]:
        return list(read.result) if read.outcome == "ok" else []

    def expect(self, what: str, read: Op, texts: list[str]) -> None:
        if read.outcome == "ok" and read.result != texts:
            self.anomalies.append(Anomaly(what, f"{texts} became {read.result}"))


def contents(found: Iterable[ChatMessage | None] | None) -> list[Any]:
    """Return the texts of what a store returned."""
    return [message.content for message in found or () if message is not None]


def _home(arguments: dict[str, Any]) -> Home:
    return Home(arguments["sessionIdentifier"], arguments["invocationIdentifier"], arguments["invocationStepId"])


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
    kinds: str = "add add add add read read remove",
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
