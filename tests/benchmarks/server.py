"""Measure the emulator over HTTP: calls a second from one boto3 client, and what validating costs.

    python -m tests.benchmarks.server              some 20 seconds
    python -m tests.benchmarks.server --calls 50   does it run?

One boto3 client makes one call after the other, each server in a process of its own. The other server validates
nothing: the same HTTP, and for each operation one answer that it was given beforehand. A round is a PutInvocationStep
of 1 KB, a GetInvocationStep of it, a GetSession, and a ListInvocationSteps of one entry. Rounds on the two servers
alternate, so that what else the machine does falls on both; the medians are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore.config import Config
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EMULATOR = """
import sys
from llama_index_bedrock_sessions.emulator import Emulator
with Emulator(sys.argv[1] or None) as emulator, emulator.serve() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
UNCHECKED = """
import sys
from llama_index_bedrock_sessions.emulator import Emulator, Server
from llama_index_bedrock_sessions.emulator.wire import Exchange, Request, route
answers = {}
with Emulator() as emulator:
    def answer(request):
        name = route(request)[0].name
        if name not in answers or name.startswith("Create"):
            answers[name] = emulator.exchange(request)
        return answers[name]
    server = Server(answer)
    print(server.url, flush=True)
    sys.stdin.read()
    server.close()
"""
TEXT = "x" * 1024


@contextmanager
def served(script: str, database: str = "") -> Iterator[str]:
    """Run a server in a process of its own; give its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdin
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


class Client:
    """A boto3 client of a server, and the four small calls on one session."""

    def __init__(self, url: str) -> None:
        self.boto3: Any = botocore.session.Session().create_client(
            "bedrock-agent-runtime",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=Config(retries={"total_max_attempts": 1}),
        )
        self.begin()

    def begin(self) -> None:
        """Start a new session: one takes 1,000 steps."""
        self.session = self.boto3.create_session()["sessionId"]
        self.invocation = self.boto3.create_invocation(sessionIdentifier=self.session)["invocationId"]
        self.step = ""
        self.step = self.put()

    def put(self) -> Any:
        return self.boto3.put_invocation_step(
            sessionIdentifier=self.session,
            invocationIdentifier=self.invocation,
            invocationStepTime=datetime(2026, 1, 2, tzinfo=UTC),
            payload={"contentBlocks": [{"text": TEXT}]},
        )["invocationStepId"]

    def get(self) -> Any:
        return self.boto3.get_invocation_step(
            sessionIdentifier=self.session, invocationIdentifier=self.invocation, invocationStepId=self.step
        )

    def look(self) -> Any:
        return self.boto3.get_session(sessionIdentifier=self.session)

    def scan(self) -> Any:
        return self.boto3.list_invocation_steps(sessionIdentifier=self.session, maxResults=1)

    def calls(self) -> list[tuple[str, Callable[[], Any]]]:
        return [
            ("PutInvocationStep", self.put),
            ("GetInvocationStep", self.get),
            ("GetSession", self.look),
            ("ListInvocationSteps", self.scan),
        ]


def measure(urls: dict[str, str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every call, by server and operation."""
    clients = {name: Client(url) for name, url in urls.items()}
    took: dict[str, dict[str, list[float]]] = {name: {} for name in urls}
    for number in range(rounds + 20):
        for name, client in clients.items():
            if number % 900 == 899:
                client.begin()
            for operation, call in client.calls():
                started = time.perf_counter()
                call()
                if number >= 20:  # the first ones warm up
                    took[name].setdefault(operation, []).append(time.perf_counter() - started)
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.server", description="Measure the emulator over HTTP."
    )
    parser.add_argument("--calls", type=int, default=4000, help="calls to each server (default: %(default)s)")
    calls = parser.parse_args().calls
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {
            "in memory": stack.enter_context(served(EMULATOR)),
            "in a file": stack.enter_context(served(EMULATOR, str(folder / "chats.db"))),
            "validates nothing": stack.enter_context(served(UNCHECKED)),
        }
        took = measure(urls, max(1, calls // 4))
    nothing = took["validates nothing"]
    say = Console(highlight=False, soft_wrap=True).out
    say(f"$ {parser.prog} --calls {calls}")
    say(f"Python {platform.python_version()}, boto3 {version('boto3')}, {platform.system()}, serial, one client")
    say(f"{'':20}" + "".join(f"{name:>34}" for name in took))
    for operation in [*nothing, "all"]:
        row = f"{operation:20}"
        for by in took.values():
            one = _median(by, operation)
            row += f"{1 / one:>12,.0f} calls/s {one * 1000:>5.2f} ms {one / _median(nothing, operation):>4.2f} x"
        say(row)


def _median(by: dict[str, list[float]], operation: str) -> float:
    """Return the median seconds of an operation; of "all" the mean of the medians, for a round has one of each."""
    if operation == "all":
        return statistics.mean(statistics.median(times) for times in by.values())
    return statistics.median(by[operation])


if __name__ == "__main__":
    main()
