"""Processes on one served emulator that write, read, remove, hide and end at once, while everything goes wrong.

    python -m tests.soak --operations 50000 --processes 8 --seed 1

Every process is one of the operating system's with a store of its own, and a wrong clock. Faults happen to their calls,
processes are frozen, killed with SIGKILL and replaced, another tool ends sessions, and hours and days pass: then all
processes stand still, as in a machine that sleeps. Each writes what it begins, says to the service and is told to a
file of its own, line by line; `judge.py` says whether that kept the promises. The soak goes in rounds of some thousand
operations on new keys. At the end of a round everything comes to rest, and those who remember the conversations and
those who do not have to agree, then and after days.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from llama_index.core.llms import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus

from llama_index_bedrock_sessions import BedrockSessionsChatStore, Conversation
from llama_index_bedrock_sessions.emulator import Emulator
from llama_index_bedrock_sessions.errors import (
    BedrockSessionsError,
    ConversationEnded,
    InvalidMessageError,
    ServiceError,
)
from llama_index_bedrock_sessions.journal import Home, Kind, parse_id
from llama_index_bedrock_sessions.sessions import Clock
from tests import broken
from tests.histories import DAY, HOUR, MINUTE, short_sessions
from tests.judge import agree, judge, redacted
from tests.operations import contents
from tests.ops import CLOCK, NEVER, Anomaly, Op, Said, said
from tests.service import stored

KEYS = 4
ROUND = 5000
"""Operations of a round."""
SESSION = 40
"""Steps after which a session is continued: many generations in few operations."""
MIX = {
    "add": 44,
    "read": 18,
    "cold read": 4,
    "remove": 7,
    "remove last": 3,
    "set": 6,
    "clear": 2,
    "erase": 1,
    "archive": 4,
    "name": 6,
    "named": 5,
    "redact": 0.5,
    "renew": 0.5,
    "hide": 0.3,
    "restore": 2,
    "end": 0.3,
    "reopen": 2,
}
EXPLAINED = (ServiceError, ConversationEnded, InvalidMessageError)
"""Errors that happen: a fault, somebody has ended the conversation, or redacted the same message."""
FAULTS = ("throttle", "internal", "unavailable", "lost_reply", "torn_body", "refused", "reset")
EVERY = {"fault": 12, "kill": 130, "freeze": 90, "end": 500, "hours": 200, "days": 1500}
"""Operations between two of each, on average."""
RUN, REST, COMPARE = range(3)

UNDER_WAY = 5.0
"""Seconds in which a request arrives whose sender was killed."""

_fork = multiprocessing.get_context("fork")
_botocore = botocore.session.Session()


class World:
    """What the processes share: where the service is, how far its clock was moved, and what they are to do now."""

    def __init__(self, url: str, folder: Path, processes: int, sabotage: str | None) -> None:
        self.url, self.folder, self.sabotage = url, folder, sabotage
        self.phase = _fork.RawValue("i", RUN)
        self.moved = _fork.RawValue("d", 0.0)
        self.done = _fork.RawArray("l", processes)
        self.resting = _fork.RawArray("i", [-1] * processes)
        """The phase that each process has ended."""
        self.keys: list[str] = []


def client_of(url: str, attempts: int) -> Any:
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"}, max_pool_connections=4)
    return _botocore.create_client(
        "bedrock-agent-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=config,
    )


# A process


class Teller:
    """A process: its store, and the file it tells everything to. Each line is on its way before anything follows."""

    def __init__(self, world: World, name: str, seed: object) -> None:
        self.world, self.name = world, name
        self.random = random.Random(f"{seed} {name}")
        self.skew = self.random.choice((0.0, 0.0, -240.0, -90.0, 150.0, 300.0))
        self.client = client_of(world.url, self.random.choice((1, 2, 4)))
        events = self.client.meta.events
        events.register("provide-client-params.bedrock-agent-runtime", self._begin_call)
        events.register("provide-client-params.bedrock-agent-runtime.PutInvocationStep", self._say)
        events.register("after-call.bedrock-agent-runtime", self._end_call)
        self.shortest_call = DAY
        self.file = os.open(world.folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.store = self.new_store()
        self.asking = self.store
        self.lists: dict[str, list[str]] = {}
        self.operations = 0

    def new_store(self) -> BedrockSessionsChatStore:
        store = BedrockSessionsChatStore(client=self.client, max_concurrency=4)
        store._sessions.clock = Clock(self.local)
        return store

    def local(self) -> float:
        return time.time() + float(self.world.moved.value) + self.skew

    def tell(self, **line: Any) -> None:
        os.write(self.file, json.dumps(line).encode() + b"\n")

    def _begin_call(self, context: dict[str, Any], **_: Any) -> None:
        context["begun"] = self.local()

    def _end_call(self, context: dict[str, Any], **_: Any) -> None:
        # Replies tell the time in whole seconds; what a store of the moment learns, the other does not.
        if self.asking is self.store:
            self.shortest_call = min(self.shortest_call, self.local() - context["begun"])

    def _say(self, params: dict[str, Any], **_: Any) -> None:
        home = Home(params["sessionIdentifier"], params["invocationIdentifier"], params["invocationStepId"])
        wrong = CLOCK + self.shortest_call
        change = said(home, params["payload"]["contentBlocks"], time.monotonic(), wrong)
        parsed = parse_id(home.step)
        if change or (parsed and parsed.kind is Kind.OPENING):
            line = dataclasses.asdict(change) if change else None
            if line is not None:
                line |= {name: sorted(line[name]) for name in ("removed", "archived")}
            opening = parsed is not None and parsed.kind is Kind.OPENING
            self.tell(say=self.operations, change=line, opening=opening, session=home.session)

    def perform(self, kind: str, key: str, action: Callable[[], Any], **about: Any) -> Any:
        """Do something and tell of it, before and after; return its result, None if it failed."""
        self.operations += 1
        self.tell(begin=self.operations, kind=kind, key=key, at=time.monotonic(), **about)
        end: dict[str, Any] = {"outcome": "ok", "result": None}
        try:
            end["result"] = action()
        except BedrockSessionsError as error:
            sure = not error.may_have_happened
            end |= {"outcome": "failed" if sure else "unknown", "allowed": isinstance(error, EXPLAINED)}
            end |= {"error": repr(error), "ended": isinstance(error, ConversationEnded)}
        except Exception as error:  # noqa: BLE001 - told, and judged
            end |= {"outcome": "unknown", "error": repr(error), "allowed": False}
        fold = self.asking.conversation(key)._chain.fold
        self.tell(end=self.operations, at=time.monotonic(), heads=fold.heads if fold else [], **end)
        return end["result"]

    # What it does

    def read(self, key: str, store: BedrockSessionsChatStore | None = None, *, everything: bool = False) -> Any:
        status = None if everything else MessageStatus.ACTIVE
        self.asking = store or self.store
        found = self.perform(
            "read",
            key,
            lambda: [m.content for m in self.asking.conversation(key).messages(status=status)],
            view="all" if everything else "active",
            cold=store is not None,
        )
        self.asking = self.store
        if found is not None and not everything:
            self.lists[key] = found
        return found

    def named(self, key: str, store: BedrockSessionsChatStore | None = None) -> None:
        self.asking = store or self.store
        self.perform("named", key, self.asking.conversation(key).state.copy, cold=store is not None)
        self.asking = self.store

    def add(self, key: str, count: int = 1) -> Any:
        tokens = self.new(count)

        def add() -> int:
            self.store.conversation(key).add(messages(tokens))
            return count

        return self.perform("add", key, add, tokens=tokens)

    def new(self, count: int) -> list[str]:
        return [f"{self.name}.{self.operations + 1}.{n}" for n in range(count)]

    def anything(self) -> None:
        choose = self.random
        kind = choose.choices(list(MIX), list(MIX.values()))[0]
        key = choose.choice(self.world.keys)
        chat = self.store.conversation(key)
        if kind == "add":
            self.add(key, choose.choice((1, 1, 1, 3)))
        elif kind in {"read", "cold read"}:
            self.read(key, self.new_store() if kind == "cold read" else None, everything=choose.random() < 0.3)
        elif kind == "named":
            self.named(key)
        elif kind == "name":
            name, value = choose.choice(("cart", "mood")), self.new(1)[0]
            self.perform(kind, key, lambda: chat.state.update({name: value}), tokens=[value], name=name)
        elif kind == "set":
            known = dict.fromkeys(self.lists.get(key, []))  # what was hidden, written anew and restored is there twice
            kept = [token for token in known if choose.random() < 0.6]
            if choose.random() < 0.2:
                choose.shuffle(kept)
            tokens = [*kept, *self.new(choose.randrange(3))]
            self.perform(kind, key, lambda: chat.set(messages(tokens)), tokens=tokens)
        elif kind == "erase":
            self.perform(kind, key, lambda: contents(self.store.delete_messages(key)))
        elif kind == "clear":
            self.perform(kind, key, lambda: contents(chat.clear()))
        elif kind == "redact":
            self.perform(kind, key, lambda: self.redact(chat))
        elif kind == "renew":
            self.perform(kind, key, lambda: chat.renew(timedelta(0)))
        elif kind == "hide":
            self.perform(kind, key, lambda: contents(chat.hide()))
        elif kind in {"end", "reopen", "restore"}:
            self.perform(kind, key, getattr(chat, kind))
        elif kind == "archive":
            self.perform(kind, key, lambda: contents(chat.archive_oldest(choose.randint(1, 3))))
        elif kind == "remove last":
            self.perform(kind, key, lambda: contents([chat.remove_last()]))
        else:
            index = choose.randrange(-2, 4)
            self.perform(kind, key, lambda: contents([chat.remove(index)]))

    def redact(self, chat: Conversation) -> list[Any]:
        there = chat.records(status=None)
        if not there:
            return []
        chosen = self.random.choice(there)
        chat.redact(chosen.id)
        return [chosen.message.content]

    def visit(self, *, add: bool) -> None:
        """Read everything as one who remembers nothing, and perhaps write."""
        for key in self.world.keys:
            store = self.new_store()
            self.read(key, store)
            self.read(key, store, everything=True)
            self.named(key, store)
            if add:
                for _ in range(20):
                    if self.add(key):
                        break
                    self.perform("reopen", key, self.store.conversation(key).reopen)


def messages(tokens: Iterable[str]) -> list[ChatMessage]:
    return [ChatMessage(content=token) for token in tokens]


def work(world: World, slot: int, name: str, seed: object) -> None:
    """Be a process of the soak: do anything until it is time to rest, then say what is remembered."""
    with short_sessions(SESSION), pytest.MonkeyPatch.context() as patch:
        if world.sabotage:
            broken.BROKEN[world.sabotage](patch)
        teller = Teller(world, name, seed)
        while world.phase.value == RUN:
            teller.anything()
            world.done[slot] += 1
        world.resting[slot] = REST
        while world.phase.value == REST:
            time.sleep(0.01)
        for key in world.keys if world.phase.value == COMPARE else ():
            if teller.store.conversation(key)._chain.fold is not None:
                teller.read(key)
                teller.read(key, everything=True)
                teller.named(key)
        world.resting[slot] = COMPARE


def visit(world: World, name: str, seed: object, *, add: bool) -> None:
    """Be a process that comes once."""
    with short_sessions(SESSION), pytest.MonkeyPatch.context() as patch:
        if world.sabotage:
            broken.BROKEN[world.sabotage](patch)
        Teller(world, name, seed).visit(add=add)


# What happens to the processes


class Soak:
    """The rounds of a soak, and what happens in them."""

    def __init__(self, world: World, processes: int, seed: int) -> None:
        self.world, self.processes, self.seed = world, processes, seed
        self.random = random.Random(seed)
        self.workers: list[Any] = []
        self.started = 0
        self.happened: Counter[str] = Counter()
        self.anomalies: list[Anomaly] = []
        self.unaware: list[tuple[float, float]] = []
        """When another tool had ended a session, until so much later that everybody asks."""
        self.ended_at: float | None = None
        self.killed: dict[str, float] = {}
        self.rest = (NEVER, NEVER)

    def control(self, method: str, path: str, body: Any = None) -> Any:
        return self.ask(method, f"/__control__{path}", body)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.world.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def start(self, slot: int) -> Any:
        self.started += 1
        name = f"p{self.started}"
        process = _fork.Process(target=work, args=(self.world, slot, name, self.seed), name=name, daemon=True)
        process.start()
        return process

    def round(self, number: int, operations: int) -> None:
        """Let everything happen at once for some operations, let it come to rest, and judge."""
        world = self.world
        world.keys = [f"{self.seed}-{number}-{n}" for n in range(KEYS)]
        before = {path.name for path in world.folder.iterdir()}
        self.unaware = []
        world.phase.value = RUN
        world.resting[:] = [-1] * self.processes
        begun = sum(world.done)
        self.workers = [self.start(slot) for slot in range(self.processes)]
        due = {what: begun + self.random.expovariate(1 / every) for what, every in EVERY.items()}
        while (done := sum(world.done)) < begun + operations:
            time.sleep(0.005)
            for slot, worker in enumerate(self.workers):
                if not worker.is_alive():
                    self.anomalies.append(Anomaly("a process ended by itself", f"{worker.exitcode}"))
                    self.workers[slot] = self.start(slot)
            for what, every in EVERY.items():
                while due[what] < done:
                    due[what] += self.random.expovariate(1 / every)
                    getattr(self, f"_{what}")()
                    self.happened[what] += 1
        self._conclude()
        self.anomalies += self._judge({path for path in world.folder.iterdir() if path.name not in before})

    def _fault(self) -> None:
        fault = {"nth": self.random.randint(1, 12), "times": self.random.choice((1, 1, 1, 1, 2, 5))}
        operation = self.random.choice(("*", "*", "PutInvocationStep", "PutInvocationStep", "ListSessions"))
        self.control("POST", "/faults", {"operation": operation, "fault": self.random.choice(FAULTS), **fault})

    def _kill(self) -> None:
        slot = self.random.randrange(self.processes)
        self.workers[slot].kill()
        self.workers[slot].join()
        self.killed[self.workers[slot].name] = time.monotonic() + UNDER_WAY
        self.workers[slot] = self.start(slot)

    def _freeze(self) -> None:
        worker = self.random.choice(self.workers)
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(0.02, 0.4))
        os.kill(worker.pid, signal.SIGCONT)

    def _end(self) -> None:
        """End a session as another tool would, which those who remember it learn only once it is 50 minutes old."""
        if self.ended_at is not None:
            return
        self.ended_at = time.monotonic()
        try:
            listed = self.ask("POST", "/sessions/", {"maxResults": 50})["sessionSummaries"]
            active = [s["sessionId"] for s in listed if s["sessionStatus"] == "ACTIVE"]
            if active:
                self.ask("PATCH", f"/sessions/{self.random.choice(active)}")
        except (OSError, HTTPException, ValueError):  # a fault, or somebody was faster
            self.happened["end"] -= 1

    def _hours(self) -> None:
        self._pass(self.random.choice((30 * MINUTE, 61 * MINUTE, 61 * MINUTE, 3 * HOUR, 26 * HOUR)))

    def _days(self) -> None:
        """Let days pass, after each conversation was written to: it is complete for 20 days."""
        self._visit(add=True)
        self._pass(self.random.choice((3, 9, 12)) * DAY)

    def _pass(self, seconds: float) -> None:
        """Let time pass for the service and everybody, while all stand still."""
        if self.ended_at is not None:
            seconds = max(seconds, 51 * MINUTE)
        living = [worker.pid for worker in self.workers if worker.is_alive()]
        for pid in living:
            os.kill(pid, signal.SIGSTOP)
        self.control("POST", "/clock", {"advance": seconds})
        self.world.moved.value += seconds
        for pid in living:
            os.kill(pid, signal.SIGCONT)
        if self.ended_at is not None:
            self.unaware.append((self.ended_at, time.monotonic()))
            self.ended_at = None

    def _visit(self, *, add: bool) -> None:
        self.started += 1
        process = _fork.Process(target=visit, args=(self.world, f"p{self.started}", self.seed), kwargs={"add": add})
        process.start()
        process.join()
        if process.exitcode != 0:
            self.anomalies.append(Anomaly("a process ended by itself", f"visitor, {process.exitcode}"))

    def _rest(self, phase: int) -> None:
        while any(w.is_alive() and self.world.resting[slot] < phase for slot, w in enumerate(self.workers)):
            time.sleep(0.01)

    def _conclude(self) -> None:
        world = self.world
        world.phase.value = REST
        fired = self.control("GET", "/faults")["fired"]
        self.happened.update(f"fault: {fault['fault']}" for fault in fired)
        self.control("DELETE", "/faults")
        self._rest(REST)
        calls = None
        while calls != (calls := self.control("GET", "/calls")):  # what was on its way has arrived
            time.sleep(0.05)
        self.happened.update({f"call: {operation}": count for operation, count in calls.items()})
        self.control("DELETE", "/calls")
        if self.ended_at is not None:
            self._pass(51 * MINUTE)
        began = time.monotonic()
        self._visit(add=False)
        world.phase.value = COMPARE
        self._rest(COMPARE)
        self._visit(add=False)
        self.rest = (began, time.monotonic())
        self.stored = stored(client_of(world.url, 1))
        for worker in self.workers:
            worker.join()
        for pause in (2 * HOUR, 9 * DAY, 13 * DAY, 5 * DAY):
            self._visit(add=True)
            self._pass(pause)
        self._visit(add=False)
        self._pass(31 * DAY)

    def _judge(self, files: set[Path]) -> list[Anomaly]:
        ops: list[Op] = []
        found: list[Anomaly] = []
        for path in sorted(files):
            ops += self._told(path, found)
        self.happened["operations"] += len(ops)
        found += [*judge(ops), *redacted(ops, self.stored)]
        began, compared = self.rest
        half_erased = {op.key for op in ops if op.kind == "erase" and op.outcome != "ok"}
        at_rest = [op for op in ops if op.begin > began]
        found += agree(o for o in at_rest if o.end < compared and o.outcome == "ok" and o.key not in half_erased)
        found += [Anomaly("does not work at rest", str(op)) for op in at_rest if op.outcome != "ok" and not op.ended]
        return found

    def _told(self, path: Path, found: list[Anomaly]) -> Iterator[Op]:
        """Yield the operations a process has told of; one that was killed ends in the middle of one."""
        op: Op | None = None
        cold = False
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if "begin" in line:
                cold = line.get("cold", False)
                about = {name: line[name] for name in ("tokens", "view", "name") if name in line}
                # What a store of the moment has read, the one that writes has not.
                reader = f"{path.stem}, cold" if cold else path.stem
                op = Op(reader, line["kind"], line["key"], line["at"], **about)
                op.end = self.killed.get(path.stem, NEVER)
                yield op
            assert op is not None
            if "say" in line:
                self.happened["openings"] += line["opening"]
                op.say(_said(line["change"]) if line["change"] else None)
            elif "end" in line:
                op.end, op.outcome, op.result = line["at"], line["outcome"], line["result"]
                op.ended = line.get("ended", False)
                self.happened[f"{op.kind}: {op.outcome}"] += 1
                if "error" in line and not line["allowed"]:
                    found.append(Anomaly("an error that nothing explains", f"{op}: {line['error']}"))
            op.strict = cold or not any(begin < op.end and op.begin < end for begin, end in self.unaware)


def _said(line: dict[str, Any]) -> Said:
    ids = {name: frozenset((change, position) for change, position in line[name]) for name in ("removed", "archived")}
    return Said(**{**line, **ids, "added": {int(position): token for position, token in line["added"].items()}})


# All of it


@contextmanager
def served(database: Path) -> Iterator[str]:
    """Serve an emulator from a process of its own; give its URL."""
    ours, theirs = _fork.Pipe()

    def serve() -> None:
        with Emulator(database) as emulator, emulator.serve(control=True) as server:
            theirs.send(server.url)
            theirs.recv()

    process = _fork.Process(target=serve, daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        process.join()


def soak(
    *,
    operations: int,
    processes: int,
    seed: int,
    folder: Path,
    sabotage: str | None = None,
    of_round: int = ROUND,
    seconds: float = NEVER,
    progress: Callable[[str], None] = lambda _: None,
) -> Soak:
    """Run rounds until there are so many operations, or until so many seconds have passed, or something is wrong."""
    client_of("http://127.0.0.1:1", 1)  # the model is read once, for all processes
    logs = folder / "told"
    logs.mkdir()
    began = time.monotonic()
    with served(folder / "service.db") as url:
        run = Soak(World(url, logs, processes, sabotage), processes, seed)
        number = 0
        while (left := operations - sum(run.world.done)) > 0 and time.monotonic() - began < seconds:
            number += 1
            run.round(number, min(of_round, left))
            took = time.monotonic() - began
            count = run.happened["operations"]
            progress(
                f"round {number}: {count} operations, {count / took:.0f}/s, "
                f"{run.happened['kill']} kills, {len(run.anomalies)} anomalies"
            )
            if run.anomalies:
                break
    return run


def main() -> int:
    """Run a soak from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--operations", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=NEVER, help="begin no round after that")
    parser.add_argument("--round", type=int, default=ROUND, help="operations of a round")
    parser.add_argument("--keep", type=Path, help="a new folder for what the processes told")
    parser.add_argument("--broken", choices=sorted(broken.BROKEN), help="a library broken on purpose")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        run = soak(
            operations=arguments.operations,
            processes=arguments.processes,
            seed=arguments.seed,
            folder=folder,
            sabotage=arguments.broken,
            of_round=arguments.round,
            seconds=arguments.seconds,
            progress=functools.partial(print, file=sys.stderr, flush=True),
        )
    found = {"seed": arguments.seed, "happened": dict(sorted(run.happened.items())), "anomalies": run.anomalies[:100]}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 1 if run.anomalies else 0


if __name__ == "__main__":
    sys.exit(main())
