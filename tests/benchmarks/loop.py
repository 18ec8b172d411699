"""Measure how long many conversations at once block the event loop they share.

    python -m tests.benchmarks.loop             200 conversations at 20 ms a call; about a minute
    python -m tests.benchmarks.loop --quick     does it run?

The emulator is in another process, and takes 20 ms for each call besides its own time. In each round every conversation
does a turn at once, in one event loop: it reads, and adds two messages. Rounds of our store alternate with rounds of
the same calls by boto3 alone, from a pool of as many threads, so that what else the machine does falls on both. While
they run, a task sleeps 5 ms again and again: by how much later it wakes is how long the loop was blocked.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import platform
import statistics
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore.config import Config
from rich.console import Console
from rich.table import Table

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from tests.support.service import user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

EMULATOR = """
import sys
from llama_index_bedrock_sessions.emulator import Emulator
with Emulator() as emulator, emulator.serve() as server:
    print(server.url, flush=True)
    sys.stdin.readline()
    emulator.faults.latency = float(sys.argv[1])
    print("slow", flush=True)
    sys.stdin.read()
"""
TICK = 0.005
THREADS = 16
TEXT = "It is what one says in a chat. " * 8


@contextmanager
def served(latency: float) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give the URL of an emulator in another process, and what makes it slow."""
    command = [sys.executable, "-c", EMULATOR, str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        stdin, stdout = process.stdin, process.stdout

        def slow() -> None:
            print(file=stdin, flush=True)
            assert stdout.readline() == "slow\n"

        try:
            yield stdout.readline().strip(), slow
        finally:
            process.terminate()


def client(url: str) -> Any:
    session = botocore.session.get_session()
    session.set_credentials("none", "none")
    config = Config(max_pool_connections=THREADS, retries={"total_max_attempts": 1})
    return session.create_client("bedrock-agent-runtime", "us-east-1", endpoint_url=url, config=config)


async def lateness(turns: Sequence[Callable[[], Awaitable[None]]]) -> list[float]:
    """Do all turns at once; give by how many seconds each tick meanwhile was late."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - before - TICK)

    heart = asyncio.create_task(beat())
    await asyncio.gather(*(turn() for turn in turns))
    heart.cancel()
    return late


class Bare:
    """The same calls by boto3 alone: a list and two steps, in a session of one's own."""

    def __init__(self, client: Any, pool: ThreadPoolExecutor) -> None:
        self.client, self.pool = client, pool
        self.session = client.create_session()["sessionId"]
        self.invocation = client.create_invocation(sessionIdentifier=self.session)["invocationId"]

    async def turn(self) -> None:
        await self._call(self.client.list_invocation_steps, maxResults=1000)
        for _ in range(2):
            await self._call(
                self.client.put_invocation_step,
                invocationIdentifier=self.invocation,
                invocationStepId=str(uuid.uuid4()),
                invocationStepTime=datetime.now(UTC),
                payload={"contentBlocks": [{"text": TEXT}]},
            )

    async def _call(self, method: Callable[..., Any], **arguments: Any) -> None:
        call = functools.partial(method, sessionIdentifier=self.session, **arguments)
        await asyncio.get_running_loop().run_in_executor(self.pool, call)


def measure(conversations: int, rounds: int, latency: float) -> tuple[list[list[float]], list[list[float]]]:
    """Return the lateness of the ticks of each round, ours and of boto3 alone, in seconds."""
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    with served(latency) as (url, slow), ThreadPoolExecutor(THREADS) as pool:
        store = BedrockSessionsChatStore(
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",
            max_concurrency=THREADS,
        )
        keys = [f"user-{number}" for number in range(conversations)]
        for key in keys:
            store.add_message(key, user(TEXT))
        alone = client(url)
        hands = [Bare(alone, pool) for _ in keys]
        slow()

        async def turn(key: str) -> None:
            await store.aget_messages(key)
            for _ in range(2):
                await store.async_add_message(key, user(TEXT))

        for _ in range(rounds):
            ours.append(asyncio.run(lateness([functools.partial(turn, key) for key in keys])))
            bare.append(asyncio.run(lateness([hand.turn for hand in hands])))
    return ours, bare


def percentile(late: Sequence[float], percent: float) -> float:
    """Return a percentile, in ms."""
    return 1000 * sorted(late)[min(int(len(late) * percent / 100), len(late) - 1)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table and where it ran."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loop", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four conversations, one round, no latency")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that every call takes")
    given = parser.parse_args(arguments)
    if given.quick:
        given.conversations, given.rounds, given.latency = 4, 1, 0.0
    results = measure(given.conversations, given.rounds, given.latency)
    table = Table("ms the loop was blocked", "median", "p99", "p99, round by round", "most")
    worst = []
    for name, measured in zip(("our store", "boto3 alone"), results, strict=True):
        everything = [late for one in measured for late in one]
        by_round = sorted(percentile(one, 99) for one in measured)
        worst.append(statistics.median(by_round))
        table.add_row(
            name,
            f"{percentile(everything, 50):.1f}",
            f"{percentile(everything, 99):.1f}",
            f"{by_round[0]:.1f} to {by_round[-1]:.1f}",
            f"{1000 * max(everything):.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{given.conversations} conversations at once, {given.rounds} rounds, {1000 * given.latency:.0f} ms a call, "
        f"{THREADS} threads; median p99 of a round: {worst[0]:.1f} ms to {worst[1]:.1f} ms, "
        f"ratio {worst[0] / worst[1]:.2f}. Python {platform.python_version()}, {platform.machine()}."
    )


if __name__ == "__main__":
    main()
