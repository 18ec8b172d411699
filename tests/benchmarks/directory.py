"""Print how many calls it takes to find a conversation among many sessions, with each kind of directory.

    python -m tests.benchmarks.directory            10, 200 and 2,000 sessions
    python -m tests.benchmarks.directory --quick    10

Sessions are visits, not conversations: each user here comes back ten times, and the visits are spread evenly over 26
days. What is counted is the first read in a new process, on the emulator: calls to Bedrock, and reads of the key-value
store.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions._bedrock.session_metadata import FORMAT, NAMESPACE
from llama_index_bedrock_sessions._bedrock.session_metadata import KEY as KEY_NAME
from tests.support.kvstores import CountingKVStore
from tests.support.service import DAY, Service, user

COUNTS = (10, 200, 2000)
VISITS = 10
KEYS = {
    "whose newest session is the newest of all": "recent",
    "that was last used before half of the others": "earlier",
    "that does not exist": "unknown",
}

Row = tuple[str, int, int, int, int]


def measure(count: int) -> list[Row]:
    """Return, for each kind of key: what, sessions, Bedrock calls by metadata, and with a store its calls and reads."""
    service, kv = Service(), CountingKVStore()
    writer = service.store()
    pause = 26 * DAY / count
    _visit(service, count // 2 - 1, pause)
    writer.add_message("earlier", user("hello"))
    _visit(service, count - count // 2 - 1, pause)
    writer.add_message("recent", user("hello"))
    service.store(directory=kv).rebuild_directory()
    rows = []
    for what, key in KEYS.items():
        metadata = _calls(service, lambda: service.store(scan_rate=1e9), key)
        kv.calls.clear()
        keyed = _calls(service, lambda: service.store(directory=kv), key)
        rows.append((what, count, metadata, keyed, kv.calls["get_all"]))
    return rows


def _visit(service: Service, sessions: int, pause: float) -> None:
    for number in range(sessions):
        service.clock.advance(pause)
        metadata = {KEY_NAME: f"user-{number // VISITS}", NAMESPACE: "default", FORMAT: "1"}
        service.boto3.create_session(sessionMetadata=metadata)


def _calls(service: Service, make: Callable[[], BedrockSessionsChatStore], key: str) -> int:
    with service.counting() as calls:
        found: list[Any] = make().get_messages(key)
    assert len(found) == (key != "unknown")
    return calls["total"]


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table."""
    result = Table(title="Finding a conversation in a new process: calls")
    result.add_column("a key")
    for name in ("sessions", '"metadata":\nBedrock', "key-value store:\nBedrock", "key-value store:\nits reads"):
        result.add_column(name, justify="right")
    for what, *numbers in rows:
        result.add_row(what, *(f"{number:,}" for number in numbers))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print the table and the command that says it again."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.directory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="10 sessions")
    quick = parser.parse_args(arguments).quick
    console = Console(width=120)
    console.print(table([row for count in (COUNTS[:1] if quick else COUNTS) for row in measure(count)]))
    console.print(f"Again: python -m tests.benchmarks.directory{' --quick' if quick else ''}")


if __name__ == "__main__":
    main()
