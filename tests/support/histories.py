"""Random histories of several processes on one emulator, interleaved between any two service calls.

Every process is a store of its own whose calls wait for the scheduler, so a history is a function of its seed. What
the processes do is in `operations.py`, what they must have kept in `judge.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_bedrock_sessions import BedrockSessionsChatStore, Conversation, S3MediaStore
from llama_index_bedrock_sessions._bedrock.clock import Clock
from llama_index_bedrock_sessions._bedrock.connection import timestamp
from llama_index_bedrock_sessions._conversation import continuation
from llama_index_bedrock_sessions._journal.ids import Home, Kind, parse_id
from llama_index_bedrock_sessions.emulator import Behaviour, Emulator
from llama_index_bedrock_sessions.errors import BedrockSessionsError
from tests.support import operations
from tests.support.judge import judge, redacted
from tests.support.operations import CONTENT, THRESHOLD, content
from tests.support.ops import CLOCK, Anomaly, Op, said
from tests.support.s3 import S3
from tests.support.service import QUICK, stored

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
KEY = "history"
FORKS = ("fork-0", "fork-1", "fork-2", "fork-3")
"""The keys that forks are made under."""
TOOL = "tool"
"""Stands for the key of a session that another tool has made, which is its id."""
NAMES = ("cart", "mood")
"""The names of named state, and of saved contexts."""
NAMED = {"name", "save", "load", "load_again"}
_ANY = {"ACTIVE", "EXPIRED", "ENDED"}
READS = {"read": _ANY, "named": _ANY}
"""The statuses of a session in which these operations work; others need an ACTIVE one."""
START = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = 19 * DAY
"""Seconds for which everything lives after a write: 30 days less the nine after which it is carried, and a day."""
SETTLE = 2.0
"""Seconds that the library waits for late lists before it deletes."""


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


class GatedS3:
    """An S3 client whose calls wait for the scheduler."""

    def __init__(self, process: Process, client: Any) -> None:
        self._process, self._client = process, client

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return functools.partial(self._call, operation)

    def _call(self, operation: str, **arguments: Any) -> Any:
        gate, send = self._process.gate, functools.partial(getattr(self._client, operation), **arguments)
        fault = gate.wait(f"s3 {operation}") if gate else None
        if fault == "crash":
            raise Crash
        if fault == "lost reply":
            send()
        if fault is not None:
            raise EndpointConnectionError(endpoint_url="s3")
        return send()


class Process:
    """A store whose calls wait at a gate, with a local clock of its own."""

    def __init__(self, history: History, number: int, skew: float) -> None:
        self.history, self.number, self.skew = history, number, skew
        history.born += 1
        self.name = f"P{number}-{history.born}"
        where: Any = "metadata" if history.kv is None else GatedKVStore(self, history.kv)
        bucket = history.s3
        media = (
            S3MediaStore(bucket.bucket, threshold=THRESHOLD, client=GatedS3(self, bucket.client)) if bucket else None
        )
        self.store = BedrockSessionsChatStore(client=GatedClient(self), max_concurrency=1, directory=where, media=media)
        service: Any = self.store._sessions
        service.clock = Clock(lambda: history.now() + skew)
        service.pool.map = lambda function, items: [function(item) for item in items]
        service.settle, service.sleep = SETTLE, self.sleep
        self.gate: Gate | None = None
        self.op: Op | None = None
        self.done = False

    def conversation(self, key: str) -> Conversation:
        """Return a conversation: by its key, or by the id of the session that another tool has made."""
        return self.store.attach(key) if key == self.history.session else self.store.conversation(key)

    def sleep(self, seconds: float) -> None:
        """Wait as a call does, and let the time pass."""
        if self.gate and self.gate.wait("settle") == "crash":
            raise Crash
        self.history.advance(seconds)

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
        keys: Sequence[str] = (KEY,),
        media: bool = False,
    ) -> None:
        self.kv = SimpleKVStore() if kv else None
        self.s3 = S3() if media else None
        self.random = random.Random(seed)
        self.emulator = Emulator(behaviour=behaviour)
        self.emulator.clock.stop(START)
        self.client = self.emulator.client(config=Config(**QUICK), timestamp_parser=timestamp)
        self.skews, self.steps = skews, steps
        started = self.emulator.behaviour
        self.lateness = max(started.steps_listed_after_seconds, started.sessions_listed_after_seconds)
        self.are_sessions_late = started.sessions_listed_after_seconds > 0
        self.strict = True
        """Whether a process sees what others did; not where a tool ends sessions: that takes 50 minutes."""
        self.late: list[Callable[[], object]] = []
        self.ops: list[Op] = []
        self.anomalies: list[Anomaly] = []
        self.log: list[str] = []
        self.tokens = 0
        self.born = 0
        self.session = self._session_of_a_tool() if TOOL in keys else ""
        self.keys = [self.session if key == TOOL else key for key in keys]
        self.processes = [Process(self, n, skews[n % len(skews)]) for n in range(processes)]

    def _session_of_a_tool(self) -> str:
        """Create a session as another tool does; return its id."""
        session = str(self.client.create_session()["sessionId"])
        self.invocation = str(self.client.create_invocation(sessionIdentifier=session)["invocationId"])
        return session

    def now(self) -> float:
        return self.emulator.clock.now().timestamp()

    # Operations

    def start(  # noqa: PLR0917
        self, number: int, kind: str, argument: int = 0, key: str = KEY, name: str = "", source: str = KEY
    ) -> bool:
        """Begin an operation; `name` is that of a context or of state, or what another `redact` has chosen."""
        process = self.processes[number]
        if process.op is not None:
            return False
        count = {"add": 1 + (argument % 3 == 0), "set": 2, "name": 1, "save": 1}.get(kind, 0)
        ends = CONTENT if self.s3 and kind in {"add", "set"} and argument % 4 else ""
        tokens = [f"m{self.tokens + n}{ends}" for n in range(count)]
        self.tokens += count
        kind, view = ("read", "all") if kind == "all" else (kind, "active")
        if kind in NAMED and not name:
            name = NAMES[argument // 2 % len(NAMES)]
        op = Op(process.name, kind, key, self.now(), tokens, view=view, strict=self.strict, name=name)
        op.source = source if kind == "fork" else ""
        self.ops.append(op)
        process.op, process.gate, process.done = op, Gate(), False
        self.note(f"P{number} begins {kind} {key if key != KEY else ''} {name} {' '.join(tokens)}")
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
            op.result, op.error = repr(error), type(error).__name__
            if ours and not error.may_have_happened:  # type: ignore[attr-defined]
                op.outcome = "failed"
        process.done = True
        gate.arrived.release()

    def _perform(self, store: BedrockSessionsChatStore, op: Op, argument: int) -> Any:
        process = next(process for process in self.processes if process.store is store)
        return operations.perform(store, process.conversation(op.key), op, argument)

    def write_as_tool(self) -> None:
        """Append a message to the session that another tool has made, as it does."""
        self.tokens += 1
        op = Op("tool", "add", self.session, self.now(), [f"m{self.tokens - 1}"])
        payload: Any = [{"text": op.tokens[0]}]
        time = self.emulator.clock.now()
        try:
            reply = self.client.put_invocation_step(
                sessionIdentifier=self.session,
                invocationIdentifier=self.invocation,
                invocationStepTime=time,
                payload={"contentBlocks": payload},
            )
        except ClientError as error:
            self.note(f"the tool writes nothing: {error}")
            return
        home = Home(self.session, self.invocation, reply["invocationStepId"])
        op.say(said(home, payload, self.now(), CLOCK, int(time.timestamp() * 1000)))
        op.outcome, op.end = "ok", self.now()
        self.ops.append(op)
        self.note(str(op))

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
        if self.s3 and op.kind in {"redact", "erase"}:
            op.left = self._left(process, op.key)
        if op.error == "SessionClosed" and self._status(op.key) in READS.get(op.kind, {"ACTIVE"}):
            self.anomalies.append(Anomaly("refused though its session takes it", str(op)))
        self.note(f"{op} {op.result}")

    def _left(self, process: Process, key: str) -> list[str]:
        """Return the texts whose content is in S3, for one key."""
        assert self.s3
        assert process.store._bucket
        folder = process.store._bucket.objects(process.store.namespace, key).folder
        stored = {self.s3.content(name) for name in self.s3.names() if name.startswith(folder)}
        return sorted(token for op in self.ops for token in op.tokens if content(token) in stored)

    def _status(self, session: str) -> str | None:
        with contextlib.suppress(ClientError):
            return str(self.client.get_session(sessionIdentifier=session)["sessionStatus"])
        return None

    def finish(self, number: int) -> Op:
        op = self.processes[number].op
        for _ in range(3000):
            if not self.step(number):
                break
        else:
            raise AssertionError("no progress")
        return op if op is not None else self.ops[-1]

    def do(  # noqa: PLR0917
        self, number: int, kind: str, argument: int = 0, key: str = KEY, name: str = "", until: str = ""
    ) -> Op:
        """Have a process do something until it is about to make such a call, or to the end."""
        self.start(number, kind, argument, key, name)
        op = self.ops[-1]
        self.go_on(number, until)
        return op

    def go_on(self, number: int, until: str = "") -> None:
        """Have a process continue until it is about to make such a call, or to the end."""
        process = self.processes[number]
        while process.gate and process.gate.waiting_for != until:
            self.step(number)

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
        if self.s3 and seconds > MINUTE:
            self.s3.later(timedelta(seconds=seconds))
        self.note(f"{seconds / 60:.1f} minutes pass")

    def unwritten(self) -> float:
        """Return the seconds since the conversation was written that was not written for longest."""
        written = {op.key: op.end for op in self.ops if op.outcome == "ok" and op.said}
        return max((self.now() - end for end in written.values()), default=0.0)

    def arrive(self) -> None:
        if self.late:
            self.note("a delayed request is executed")
            with contextlib.suppress(ClientError):
                self.late.pop(0)()

    def end_one(self) -> None:
        active = [
            s["sessionId"] for s in self.client.list_sessions()["sessionSummaries"] if s["sessionStatus"] == "ACTIVE"
        ]
        if active:
            self.client.end_session(sessionIdentifier=self.random.choice(sorted(active)))
            self.note("a tool ends a session")

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

    def cold(self, kind: str = "read", argument: int = 0, key: str = KEY, name: str = "") -> Op:
        """Have a process that remembers nothing do something."""
        self.processes.append(Process(self, len(self.processes), 0.0))
        self.start(len(self.processes) - 1, kind, argument, key, name)
        op = self.ops[-1]
        self.finish(len(self.processes) - 1)
        return op

    def conclude(self, *, days: tuple[float, ...] = ()) -> list[Anomaly]:
        """Judge what is left when everything has come to rest, and after pauses of some days with a write each."""
        self.quiesce()
        self.anomalies += redacted(self.ops, stored(self.client))
        living, is_aware, self.strict = len(self.processes), self.strict, True
        last = {key: self._at_rest(key, range(living if is_aware else 0)) for key in dict.fromkeys(self.keys)}
        for pause in days:
            self.advance(pause)
            last = {key: self._after_days(key, pause, read) for key, read in last.items()}
        for key in last:
            self._need(self.cold("all", 0, key))
        # Two sessions that are opened at once, since lists show neither, are found three settling times later.
        beside = 3 * SETTLE if self.are_sessions_late else 0.0
        self.anomalies += judge(self.ops, late=max(self.lateness, beside))
        return self.anomalies

    def _at_rest(self, key: str, living: range) -> Op:
        """Have processes that remember nothing, and those that do, read and write a key; return the last read."""
        first = self._need(self.cold("read", 0, key))
        self._need(self.cold("reopen", 0, key)) if key != self.session else None
        written = self.cold("add", 1, key)
        last = self._need(self.cold("read", 0, key))
        if key != self.session:
            self._need(written)
        there = [*self.texts(first), *(written.tokens if written.outcome == "ok" else [])]
        self.expect("readers disagree", last, there)
        self._need(self.cold("named", 0, key))
        for name in self._saved(key):
            self.cold("load", 0, key, name)
        half_erased = any(op.key == key and op.kind == "erase" and op.outcome != "ok" for op in self.ops)
        for number in living if not half_erased else ():
            if self._remembers(number, key):
                self.start(number, "read", 0, key)
                self.expect("a warm reader is stale", self._need(self.finish(number)), self.texts(last))
                self.start(number, "named", 0, key)
                self._need(self.finish(number))
        return last

    def _saved(self, key: str) -> list[str]:
        """Return the names under which contexts were saved."""
        return sorted({op.name for op in self.ops if op.key == key and op.kind == "save"})

    def _remembers(self, number: int, key: str) -> bool:
        known = self.processes[number].store._cache._alive.get((key, key != self.session))
        return known is not None and known.reader.journal is not None

    def _after_days(self, key: str, pause: float, last: Op) -> Op:
        """Read and write a key after a pause; return the last read."""
        before = self._need(self.cold("read", 0, key))
        self.expect(f"after {pause / DAY:.1f} days", before, self.texts(last))
        self._need(self.cold("named", 0, key))
        if key == self.session:
            return before
        self._need(self.cold("add", 1, key))
        for name in self._saved(key):
            self.cold("load_again", 0, key, name)
        return self._need(self.cold("read", 0, key))

    def _need(self, op: Op) -> Op:
        """Note that an operation did not work though all is at rest."""
        is_gone = op.key == self.session and self._status(op.key) is None
        if op.outcome != "ok" and not is_gone:
            self.anomalies.append(Anomaly("does not work at rest", f"{op} {op.result}"))
        return op

    def texts(self, read: Op) -> list[str]:
        return list(read.result) if read.outcome == "ok" else []

    def expect(self, what: str, read: Op, texts: list[str]) -> None:
        if read.outcome == "ok" and read.result != texts:
            self.anomalies.append(Anomaly(what, f"{read.key}: {texts} became {read.result}"))


def _home(arguments: dict[str, Any]) -> Home:
    return Home(arguments["sessionIdentifier"], arguments["invocationIdentifier"], arguments["invocationStepId"])


@contextlib.contextmanager
def short_sessions(steps: int) -> Iterator[None]:
    """Have conversations continue after some steps, so that short histories cross many sessions."""
    before = continuation.CONTINUE_AT
    continuation.CONTINUE_AT = steps
    try:
        yield
    finally:
        continuation.CONTINUE_AT = before


def random_history(
    seed: int,
    *,
    kinds: str = "add add add add read read remove",
    times: tuple[float, ...] = (1.0,),
    actions: int = 60,
    faults: float = 0.05,
    crashes: float = 0.02,
    users: bool = False,
    begin: str = "",
    days: tuple[float, ...] = (2 * HOUR, 9 * DAY, 13 * DAY),
    **settings: Any,
) -> History:
    """Run one history and judge it; its `anomalies` should be empty. `begin`: what one process does first."""
    history = History(seed, **settings)
    history.strict = not users
    choose = random.Random(seed * 7919 + 1)
    with short_sessions(history.steps):
        for kind in begin.split():
            history.start(0, kind, choose.randrange(6), history.keys[0])
            history.finish(0)
        for _ in range(actions):
            process = choose.randrange(len(history.skews) if len(history.skews) > 3 else len(history.processes))
            draw = choose.random()
            if draw < 0.30:
                kind, argument = choose.choice(kinds.split()), choose.randrange(6)
                if kind == "tool":
                    history.write_as_tool()
                else:
                    history.start(process, kind, argument, **_keys_for(kind, history, choose))
            elif draw < 0.30 + crashes:
                history.crash(process)
            elif draw < 0.34 + crashes:
                seconds = choose.choice(times)
                # The service deletes what is not written for longer.
                history.advance(seconds if history.unwritten() + seconds < LIFE else min(times))
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


def _keys_for(kind: str, history: History, choose: random.Random) -> dict[str, str]:
    """Choose the key of an operation, and the source of a fork."""
    if len(history.keys) == 1:
        return {"key": history.keys[0]}
    if kind != "fork":
        return {"key": choose.choice(history.keys)}
    key = choose.choice([key for key in history.keys if key in FORKS])
    return {"key": key, "source": choose.choice([source for source in history.keys if source != key])}
