"""Print what the store costs in calls, bytes on the wire and seconds, beside what a first program by hand costs.

    python -m tests.benchmarks --save docs --dynamodb .venv-dynamodb     everything: a quarter of an hour
    python -m tests.benchmarks --save docs --dynamodb .venv-dynamodb --counts   calls and bytes alone: some minutes
    python -m tests.benchmarks --quick                                   ten messages, no latency: does it run?

An agent's turn with two tool calls on this store and on its peers (`peers.py`, those that are installed), and single
operations beside one step a message by hand.

By hand is: one step a message, and to read, list everything and get everything. Both run on the emulator of this
process, one after the other, with the same messages and the same latency injected into every call.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import botocore.session
from botocore.config import Config
from rich.console import Console

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from tests.benchmarks import comparison, measurement
from tests.benchmarks.byhand import ByHand
from tests.support.service import IDLE, KEY, Service, english, user

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SERVE = """
import sys
from llama_index_bedrock_sessions.emulator import Emulator
with Emulator() as emulator, emulator.serve() as server:
    emulator.faults.latency = float(sys.argv[1])
    print(server.url, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Profile:
    """What is measured: lengths of conversations, seconds of latency a call, repetitions, appends for the ratios."""

    lengths: tuple[int, ...] = (10, 100, 1000)
    latencies: tuple[float, ...] = (0.0, 0.02)
    repetitions: int = 3
    appends: int = 1000


QUICK = Profile(lengths=(10,), latencies=(0.0,), repetitions=1, appends=20)


@dataclass
class Cost:
    """What one operation took."""

    calls: int
    bytes: int
    seconds: float


class Bench:
    """One conversation, once in our store and once by hand, on one emulator each."""

    def __init__(self, contents: Sequence[str]) -> None:
        self.ours, self.theirs = Service(), Service()
        self.store = self.ours.store()
        self.hand = ByHand(self.theirs.client())
        for text in contents:
            self.store.add_message(KEY, user(text))
            self.hand.add(user(text), self.now())

    def now(self) -> float:
        return self.theirs.clock.now().timestamp()

    def latency(self, seconds: float) -> None:
        self.ours.faults.latency = self.theirs.faults.latency = seconds

    def pause(self) -> None:
        self.ours.later(IDLE)
        self.theirs.later(IDLE)


def cost(service: Service, operation: Callable[[], Any]) -> Cost:
    """Do something and count it."""
    service.calls.clear()
    began = time.perf_counter()
    operation()
    seconds = time.perf_counter() - began
    return Cost(len(service.calls), sum(c.request_size + c.response_size for c in service.calls), seconds)


def median(costs: Sequence[Cost]) -> Cost:
    """Return the one in the middle by time."""
    return sorted(costs, key=lambda one: one.seconds)[len(costs) // 2]


Row = tuple[str, float, Cost, Cost]


def measure(profile: Profile, tell: Callable[[str], None]) -> list[Row]:
    """Return the rows of the table: what, latency in seconds, ours, by hand."""
    rows: list[Row] = []
    for length in profile.lengths:
        tell(f"{length:,} messages of 1 KB")
        contents = english(length + 2 * profile.repetitions * len(profile.latencies))
        more = iter(contents[length:])
        bench = Bench(contents[:length])
        bench.store.get_messages(KEY)
        for latency in profile.latencies:
            bench.latency(latency)
            for what, operations in _operations(bench, more, length).items():
                pairs = [operations() for _ in range(profile.repetitions)]
                rows.append((what, latency, median([a for a, _ in pairs]), median([b for _, b in pairs])))
            bench.latency(0)
        assert [message.content for message in bench.store.get_messages(KEY)] == [
            message.content for message in bench.hand.read()
        ]
    for latency in profile.latencies:
        rows += _pauses(latency, profile)
    return rows


def _operations(bench: Bench, more: Any, length: int) -> dict[str, Callable[[], tuple[Cost, Cost]]]:
    ours, theirs = bench.ours, bench.theirs

    def append() -> tuple[Cost, Cost]:
        text = next(more)
        mine = cost(ours, lambda: bench.store.add_message(KEY, user(text)))
        return mine, cost(theirs, lambda: bench.hand.add(user(text), bench.now()))

    def warm() -> tuple[Cost, Cost]:
        return cost(ours, lambda: bench.store.get_messages(KEY)), cost(theirs, bench.hand.read)

    def cold() -> tuple[Cost, Cost]:
        fresh = ours.store()
        fresh._sessions.client()
        mine = cost(ours, lambda: fresh.get_messages(KEY))
        return mine, cost(theirs, bench.hand.read)

    return {
        f"warm append at {length:,}": append,
        f"warm read of {length:,}": warm,
        f"cold read of {length:,}": cold,
    }


def _pauses(latency: float, profile: Profile) -> list[Row]:
    first: list[tuple[Cost, Cost]] = []
    idle: list[tuple[Cost, Cost]] = []
    for _ in range(profile.repetitions):
        bench = Bench([])
        bench.latency(latency)
        for found in (first, idle):
            mine = cost(bench.ours, lambda b=bench: b.store.add_message(KEY, user("hello")))  # type: ignore[misc]
            found.append((mine, cost(bench.theirs, lambda b=bench: b.hand.add(user("hello"), b.now()))))  # type: ignore[misc]
            bench.pause()
    return [
        (what, latency, median([a for a, _ in found]), median([b for _, b in found]))
        for what, found in (("first message of a key", first), ("first write after an idle hour", idle))
    ]


class Ratio(NamedTuple):
    """What we take for one operation over what boto3 alone takes for the same bytes."""

    elapsed: float
    cpu: float


def append_ratio(appends: int, latency: float) -> Ratio:
    """Return our time for a warm append over that of a bare put of the same payload: the medians of many.

    The service runs in another process, over HTTP, with so many seconds of latency: CPU time is the client's alone.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(latency)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert process.stdout is not None
        client = _client(process.stdout.readline().strip())
        sent: list[dict[str, Any]] = []
        client.meta.events.register(
            "provide-client-params.bedrock-agent-runtime.PutInvocationStep", lambda params, **_: sent.append(params)
        )
        return Ratio(*map(statistics.median, zip(*_ratios(client, sent, appends), strict=True)))
    finally:
        process.communicate("")


def _ratios(client: Any, sent: list[dict[str, Any]], appends: int) -> list[Ratio]:
    store = BedrockSessionsChatStore(client=client)
    store.add_message(KEY, user("first"))
    ratios, session, invocation = list[Ratio](), "", ""
    for number, text in enumerate(english(appends)):
        if number % 900 == 0:
            session = client.create_session()["sessionId"]
            invocation = client.create_invocation(sessionIdentifier=session)["invocationId"]
        message = user(text)
        sent.clear()
        ours = _times(lambda: store.add_message(KEY, message))  # noqa: B023 - called at once
        if len(sent) != 1:
            continue  # it continued in another session
        bare = {"sessionIdentifier": session, "invocationIdentifier": invocation}
        again = {name: sent[0][name] for name in ("invocationStepId", "invocationStepTime", "payload")}
        theirs = _times(lambda: client.put_invocation_step(**bare, **again))  # noqa: B023 - called at once
        ratios.append(Ratio(ours[0] / theirs[0], ours[1] / theirs[1]))
    return ratios


def _times(operation: Callable[[], Any]) -> tuple[float, float]:
    began = time.perf_counter(), time.thread_time()
    operation()
    return time.perf_counter() - began[0], time.thread_time() - began[1]


def _client(url: str) -> Any:
    session = botocore.session.Session()
    session.set_credentials("AKIDBENCHMARK", "benchmark")
    return session.create_client(
        "bedrock-agent-runtime", region_name="us-east-1", endpoint_url=url, config=Config(max_pool_connections=16)
    )


def sheets(rows: Sequence[Row], ratios: Mapping[float, Ratio]) -> list[comparison.Sheet]:
    """Return the costs of single operations as tables, compared with one step per message and with a plain put."""
    units = ("calls", "KB", "ms")
    head = ["what", "latency", *(f"{store}: {unit}" for store in ("this store", "by hand") for unit in units)]
    lines = []
    for what, latency, *costs in rows:
        cells = [
            c for one in costs for c in (f"{one.calls:,}", f"{one.bytes / 1000:,.1f}", f"{one.seconds * 1000:,.1f}")
        ]
        lines.append([what, f"{latency * 1000:.0f} ms", *cells])
    appends = [
        [f"{latency * 1000:.0f} ms", f"{ratio.elapsed:.2f}", f"{ratio.cpu:.2f}"] for latency, ratio in ratios.items()
    ]
    return [
        ("Single operations, compared with one step per message by hand, in one process", head, lines),
        ("Time of a warm append, relative to a plain put of the same bytes", ["latency", "time", "CPU time"], appends),
    ]


def compared(
    profile: measurement.Profile,
    options: argparse.Namespace,
    console: Console,
    again: str,
    more: Sequence[comparison.Sheet] = (),
) -> str:
    """Compare the store with its peers, print the tables and some more, and write them and the picture to a folder."""
    before = os.getloadavg()[0]
    findings = comparison.measure(profile, options.dynamodb, Console(stderr=True).print)
    of_all = [*comparison.sheets(findings, profile), *more]
    for sheet in of_all:
        console.print(comparison.printed(sheet))
    conditions = (
        f"Measured with Python {platform.python_version()}, {_versions()}. Each store uses a stand-in on this machine: "
        "the emulator, moto, a Redis server or a SQLite file. A cold turn uses new objects, a new client and new "
        "connections. Calls and bytes are counted on the wire to the stand-in. SQLite has no wire, so its calls are "
        "statements and commits."
    )
    if profile.latencies:
        conditions += (
            f" Seconds are medians of up to {profile.repetitions} turns on {os.cpu_count()} cores. They include the "
            f"agent, the stand-in and the store, but no imports. The load average was {before:.1f} at the start and "
            f"{os.getloadavg()[0]:.1f} at the end."
        )
    conditions += f"\n\nTo measure again, run: {again}"
    if folder := options.save:
        folder.mkdir(parents=True, exist_ok=True)
        text = [f"# This store and its peers\n\n{conditions}\n", *map(comparison.markdown, of_all)]
        (folder / "benchmark.md").write_text("\n".join(text), encoding="utf-8")
        comparison.picture(findings, folder / "benchmark.png", profile.latencies)
    return conditions


def _versions() -> str:
    packages = ("botocore", "llama-index-core", "langgraph-checkpoint-aws", "moto", "redis", "sqlalchemy")
    with_version = [(name, _version(name)) for name in packages]
    return ", ".join(f"{name} {found}" for name, found in with_version if found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables, the ratios of times, where it ran, and the command that says it again."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").split("\n")[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="ten messages, no latency")
    how.add_argument("--counts", action="store_true", help="calls and bytes of the comparison alone: on a busy machine")
    parser.add_argument("--dynamodb", type=Path, metavar="FOLDER", help="virtual environment for DynamoDBChatStore")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write benchmark.md and benchmark.png there")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    again = " ".join([parser.prog, *given])
    console = Console()
    if options.counts:
        conditions = compared(comparison.COUNTS, options, console, again)
    else:
        of_all = comparison.QUICK if options.quick else measurement.Profile()
        profile = QUICK if options.quick else Profile()
        rows = measure(profile, Console(stderr=True).print)
        ratios = {latency: append_ratio(profile.appends, latency) for latency in profile.latencies}
        conditions = compared(of_all, options, console, again, sheets(rows, ratios))
    console.print(conditions)


if __name__ == "__main__":
    main()
