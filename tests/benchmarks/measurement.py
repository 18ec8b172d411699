"""The measurement of one store, in a process of its own, which may be one of another virtual environment.

    python -m tests.benchmarks.measurement NAME PORT PROFILE      prints what was found as JSON

What a store has lost is found by reading the conversation back and comparing; what it raises is a finding as well.
"""

from __future__ import annotations

import functools
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from tests.benchmarks.peers import PEERS, Peer, Said, asks, chat, said, turn_of, why
from tests.benchmarks.wire import Wire, wire

RACERS, ADDS = 2, 9


@dataclass(frozen=True)
class Profile:
    """What is measured: lengths in messages (`pictured` also with pictures), seconds of latency, repetitions.

    Without any latency only calls and bytes are told, which are the same on a busy machine. `race` is the latency while
    several write at once.
    """

    lengths: tuple[int, ...] = (10, 100, 1000, 10_000)
    pictured: tuple[int, ...] = (10, 100, 1000)
    latencies: tuple[float, ...] = (0.0, 0.02)
    repetitions: int = 3
    race: float = 0.02


@dataclass
class Cell:
    """The cost of a turn: calls and bytes on the wire (None: it has none), seconds (by latency); or what was raised."""

    calls: int = 0
    bytes: int | None = None
    seconds: dict[str, float] | None = None
    raised: str = ""


@dataclass
class Case:
    """A conversation of so many messages: its cells, and what came back of it."""

    length: int
    pictures: bool
    warm: Cell
    cold: Cell
    kept: str


class Statements:
    """The counterpart of a wire for a database in this process: statements and commits, and nothing to delay."""

    def __init__(self) -> None:
        from sqlalchemy import Engine, event

        self._calls = 0
        for name in ("before_cursor_execute", "commit"):
            event.listen(Engine, name, self._counted)

    def _counted(self, *_: Any) -> None:
        self._calls += 1

    def count(self) -> tuple[int, None]:
        found, self._calls = self._calls, 0
        return found, None


@dataclass
class Talk:
    """A conversation: where it is, the peer that has read it (`warm`), and what is in it."""

    length: int
    pictures: bool
    name: str
    warm: Peer
    expected: list[ChatMessage]
    others: bool = False
    """Whether another has had turns since."""

    def turn(self, make: Callable[[], Peer] | None = None) -> float:
        """Let the warm peer take a turn, or another that is made for it; return the seconds that takes."""
        question = asks(f"What is new? {len(self.expected)}", self.pictures)
        began = time.perf_counter()
        peer = make() if make else self.warm
        peer.turn(question)
        took = time.perf_counter() - began
        self.expected += turn_of(question)
        self.others = peer is not self.warm
        return took

    def has_grown(self) -> bool:
        """Whether the turns have made another length of it: by more than a hundredth."""
        return len(self.expected) > self.length * 1.01


class Measurement:
    """Of one peer."""

    def __init__(self, make: type[Peer], port: int, profile: Profile, line: Wire | None) -> None:
        self.make, self.port, self.profile, self.line = make, port, profile, line
        self.meter: Wire | Statements = line or Statements()

    def cases(self) -> list[Case]:
        """Return a case for each length, first without pictures, then with them."""
        found = []
        full: dict[int, str] = {}
        for pictures, lengths in ((False, self.profile.lengths), (True, self.profile.pictured)):
            for length in lengths:
                known = [said for least, said in full.items() if length >= least]
                if length > self.make.longest:
                    known.append("not run: too slow")
                if known:
                    case = Case(length, pictures, Cell(raised=known[0]), Cell(raised=known[0]), known[0])
                else:
                    case = self._case(length, pictures)
                    if case.warm.raised:
                        full[length] = case.kept
                found.append(case)
        return found

    def note(self) -> str:
        """Return what else there is to know."""
        try:
            return self.make(self.port, self.make.begin(self.port)).note()
        except Exception as error:  # noqa: BLE001 - whatever it raises is what is to be known
            return why(error)

    def _case(self, length: int, pictures: bool) -> Case:
        try:
            talk, warm, cold = self._begun(length, pictures), Cell(seconds={}), Cell(seconds={})
            for latency in (self.profile.latencies if self.line else ()) or (0.0,):
                for cell in (warm, cold):
                    talk = self._measure(cell, latency, talk, is_new=cell is cold)
            kept = compare(talk.expected, self.make(self.port, talk.name).read())
            talk.warm.forget()
        except Exception as error:  # noqa: BLE001 - whatever it raises is what is to be known
            raised = Cell(raised=why(error))
            return Case(length, pictures, raised, raised, raised.raised)
        return Case(length, pictures, warm, cold, kept)

    def _begun(self, length: int, pictures: bool) -> Talk:
        """Return a conversation of so many messages, the last of them by a turn, which warms up."""
        self._latency(0)
        name, expected = self.make.begin(self.port), chat(length - len(turn_of(asks(""))), pictures)
        talk = Talk(length, pictures, name, self.make(self.port, name), expected)
        talk.warm.fill(expected)
        talk.turn()
        return talk

    def _latency(self, seconds: float) -> None:
        if self.line:
            self.line.latency(seconds)

    def _measure(self, cell: Cell, latency: float, talk: Talk, *, is_new: bool) -> Talk:
        """Measure some turns, and return the conversation, or the one that has followed it."""
        times: list[float] = []
        while len(times) < self.profile.repetitions and sum(times) < 10:
            if talk.has_grown():
                talk.warm.forget()
                talk = self._begun(talk.length, talk.pictures)
            elif talk.others and not is_new:
                talk.turn()  # warms up
            self._latency(latency)
            gc.collect()  # of what was left before: a turn pays for its own
            self.meter.count()
            times.append(talk.turn(functools.partial(self.make, self.port, talk.name) if is_new else None))
            counted = self.meter.count()
            self._latency(0)
            if not cell.calls:
                cell.calls, cell.bytes = counted
        assert cell.seconds is not None
        cell.seconds[str(latency)] = statistics.median(times)
        return talk

    def race(self) -> str:
        """Let some processes' objects add to one conversation at once; say how much of it is there afterwards."""
        name = self.make.begin(self.port)
        raised = list[str]()
        start = threading.Barrier(RACERS)

        def add(writer: int) -> None:
            try:
                peer = self.make(self.port, name)
                start.wait(30)
                for number in range(ADDS):
                    peer.add(f"{writer}-{number}")
            except Exception as error:  # noqa: BLE001 - as above
                raised.append(why(error))

        try:
            self._latency(0)
            self.make(self.port, name).add("first")
            self._latency(self.profile.race)
            threads = [threading.Thread(target=add, args=(writer,)) for writer in range(RACERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found = {message.text for message in self.make(self.port, name).read()} - {"first"}
        except Exception as error:  # noqa: BLE001 - as above
            return why(error)
        return "; ".join([f"{len(found)} of {RACERS * ADDS}", *sorted(set(raised))])


def compare(expected: Sequence[ChatMessage], found: Sequence[Said]) -> str:
    """Say what was lost."""
    wanted = [said(message) for message in expected]
    if wanted == list(found):
        return "all"
    lost = []
    for part, what in (("calls", "tool calls"), ("pictures", "pictures"), ("text", "texts")):
        put, came = ([getattr(one, part) for one in of if getattr(one, part)] for of in (wanted, found))
        if put != came:
            lost.append(what)
    return f"{len(found):,} of {len(wanted):,} messages; loses {', '.join(lost) or 'their order or roles'}"


def main() -> None:
    """Measure one peer."""
    name, port, profile = sys.argv[1], int(sys.argv[2]), Profile(**json.loads(sys.argv[3]))
    with ExitStack() as stack:
        tempfile.tempdir = str(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        line = stack.enter_context(wire(port)) if port else None
        measurement = Measurement(PEERS[name], line.port if line else 0, profile, line)
        found = {
            "cases": [asdict(case) for case in measurement.cases()],
            "race": measurement.race(),
            "note": measurement.note(),
        }
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
