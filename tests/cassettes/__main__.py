"""Record the cassettes: see `tests.cassettes`."""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import time
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import urlsplit

from rich.console import Console

from llama_index_bedrock_sessions.emulator import Emulator, database
from llama_index_bedrock_sessions.emulator import store as emulator_store
from tests.cassettes import conversations, facts
from tests.cassettes.tape import FOLDER, Tape, World, client, record, scrubbed, tapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EMULATOR_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEEDS_CLOCK = facts.NEEDS_CLOCK | conversations.NEEDS_CLOCK


def scenarios() -> Iterator[tuple[str, Callable[[World], Any]]]:
    """Give every scenario and its path below a folder of cassettes/."""
    for name, scenario in conversations.CONVERSATIONS.items():
        yield f"conversations/{name}", scenario
    for name, scenario in facts.FACTS.items():
        yield f"facts/{name}", scenario


SCENARIOS = dict(scenarios())


class EmulatorWorld(World):
    """An emulator behind real HTTP; its own ids come from a seed as well, so that recording again changes nothing."""

    def __init__(self, tape: Tape, emulator: Emulator, url: str) -> None:
        super().__init__(tape, client(url))
        self.emulator = emulator

    def later(self, seconds: float) -> None:
        super().later(seconds)
        self.emulator.clock.advance(seconds)

    def lose_reply(self, operation: str) -> None:
        self.emulator.faults.add(operation, 1, "lost_reply")


def record_emulator(path: str) -> Tape:
    """Record a scenario against a new emulator, over HTTP."""
    tape = Tape.new(path, "the emulator of this project", EMULATOR_START, 1)
    bits = random.Random(2)
    with ExitStack() as stack:
        served = SimpleNamespace(uuid4=lambda: uuid.UUID(bytes=bits.randbytes(16), version=4))
        stack.enter_context(mock.patch.object(emulator_store, "uuid", served))
        stack.enter_context(mock.patch.object(database, "secrets", SimpleNamespace(token_bytes=bits.randbytes)))
        emulator = stack.enter_context(Emulator())
        emulator.clock.stop(EMULATOR_START)
        server = stack.enter_context(emulator.serve())
        return record(tape, EmulatorWorld(tape, emulator, server.url), SCENARIOS[path])


class AwsWorld(World):
    """An account on AWS. An hour takes an hour; a reply is lost by dropping it when it has come."""

    _losing: str | None = None

    def later(self, seconds: float) -> None:
        super().later(seconds)
        time.sleep(seconds)

    def lose_reply(self, operation: str) -> None:
        self._losing = {"PutInvocationStep": "/invocationSteps/"}[operation]

    def drops(self, request: Any) -> bool:
        losing, path = self._losing, urlsplit(request.url).path
        if losing is None or request.method != "PUT" or not path.endswith(losing):
            return False
        self._losing = None
        return True


def record_aws(path: str, region: str, profile: str | None) -> Tape:
    """Record a scenario in an account; what it made it deletes, unless it fails."""
    tape = Tape.new(path, f"AWS, {region}", datetime.now(UTC), secrets.randbits(48))
    return scrubbed(record(tape, AwsWorld(tape, client(region_name=region, profile_name=profile)), SCENARIOS[path]))


def main() -> int:
    """Record, or list what there is."""
    say = Console(highlight=False, soft_wrap=True).out
    parser = argparse.ArgumentParser(prog="python -m tests.cassettes")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the recordings")
    recording = commands.add_parser("record", help="record scenarios")
    recording.add_argument("--against", choices=["emulator", "aws"], required=True)
    recording.add_argument("--only", metavar="NAME", help="scenarios whose path contains this")
    recording.add_argument("--region", help="AWS: the region, as us-west-2")
    recording.add_argument("--profile", help="AWS: the profile of your configuration")
    recording.add_argument("--wait", action="store_true", help="AWS: record what takes an idle hour too")
    given = parser.parse_args()
    if given.command == "list":
        for kind in ("emulator", "published", "aws"):
            for file in tapes(kind):
                say(f"{file.relative_to(FOLDER)}: {Tape.load(file).against}")
        return 0
    wanted = [name for name in SCENARIOS if not given.only or given.only in name]
    if given.against == "emulator":
        for name in wanted:
            record_emulator(name).save(FOLDER / "emulator" / f"{name}.json")
            say(f"recorded emulator/{name}")
        return 0
    if not given.region:
        parser.error("--against aws needs --region")
    folder = FOLDER / "aws" / f"{given.region}-{datetime.now(UTC):%Y-%m-%d}"
    failed = 0
    for name in wanted:
        if name.rpartition("/")[2] in NEEDS_CLOCK and not given.wait:
            say(f"left out aws/{name}: it takes hours, --wait records it")
            continue
        try:
            record_aws(name, given.region, given.profile).save(folder / f"{name}.json")
        except Exception as error:  # noqa: BLE001 - one question that fails leaves the others their answers
            failed += 1
            say(f"failed aws/{name}: {type(error).__name__}: {error}")
        else:
            say(f"recorded aws/{name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
