"""Run and show the demo: two days of one conversation, each in a separate process, and the stored sessions."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llama_index_bedrock_sessions.cli import demo
from llama_index_bedrock_sessions.cli.wording import count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llama_index_bedrock_sessions.cli.demo import Held

PAUSE = timedelta(hours=26)
ENVELOPE = '{"llama_index_bedrock_sessions"'
SCRIPTED = "scripted: no key, no network; its answers depend only on the messages it is given"
SPEAKERS = {"engineer": "bold cyan", "agent": "bold green", "tool": "bold magenta"}


def run(database: Path, *, forget: bool, region: str | None, profile: str | None, model: str | None) -> None:
    """Run the demo on SimpleChatStore with `forget`, on AWS with a region or profile, else on the embedded service."""
    picture = database.with_suffix(".png")
    if forget:
        _ForgettingDemo(picture).run()
    elif region or profile:
        _AwsDemo(picture, region, profile, model).run()
    else:
        _LocalDemo(picture, database).run()


class _Demo:
    """The part that the three demos share: two days, each in a separate process, and their display."""

    store: str

    def __init__(self, picture: Path, **where: str | None) -> None:
        self.picture, self.where = picture, where
        self.console = Console(highlight=False)
        self.calls: list[Counter[str]] = []

    def run(self) -> None:
        """Run both days and show them."""
        self.picture.parent.mkdir(parents=True, exist_ok=True)
        self.picture.write_bytes(demo.draw_dashboard())
        self.console.print(self.introduction())
        self.spend_day(1)
        self.console.print(self.pause())
        self.spend_day(2)
        self.conclude()

    def introduction(self) -> RenderableType:
        """Describe the store and the model."""
        raise NotImplementedError

    def pause(self) -> RenderableType:
        """Advance the clock if possible, and describe the pause."""
        raise NotImplementedError

    def conclude(self) -> None:
        """Show what is stored, and the commands to type next."""
        raise NotImplementedError

    def spend_day(self, day: int) -> None:
        """Run one day in a new process, and show the conversation while it runs."""
        request = demo.Request(day=day, store=self.store, picture=str(self.picture), **self.where)  # type: ignore[arg-type]
        given: Counter[str] = Counter()
        failure = ""
        with self.console.status("Starting a new process ..."):
            for event in demo.in_another_process(request):
                kind = event.pop("event")
                if kind == "process":
                    self.console.rule(f"[bold]Day {day}[/] · process {event['pid']}", style="cyan")
                elif kind == "given" and not given:
                    given = Counter(event["roles"])
                elif kind == "calls":
                    self.calls.append(Counter(event))
                elif kind == "error":
                    failure = event["text"]
                elif kind == "end" and event["status"]:
                    raise click.ClickException(failure or f"The process of day {day} failed:\n{event['stderr']}")
                else:
                    self.show(kind, event)
        self.console.print(Padding(Text(f"The model received {_roles(given)}.", "dim"), (0, 0, 1, 10)))

    def show(self, kind: str, event: dict[str, Any]) -> None:
        """Show one event of the conversation."""
        if kind == "user":
            self.show_line("engineer", event["text"])
            if event["images"]:
                self.show_line("", f"[{self.picture.name}: {_pixels(self.picture.read_bytes())}]", style="cyan")
        elif kind == "tool":
            arguments = ", ".join(f"{name}={value!r}" for name, value in event["kwargs"].items())
            self.show_line("agent", f"calls {event['name']}({arguments})", style="dim")
            self.show_line("tool", event["result"], style="dim")
        elif kind == "answer":
            self.show_line("agent", event["text"])

    def show_line(self, speaker: str, text: str, style: str = "") -> None:
        """Show a text, with the speaker's name in a separate column."""
        row = Table.grid(padding=(0, 1))
        row.add_column(width=9, justify="right")
        row.add_column()
        row.add_row(Text(speaker, SPEAKERS.get(speaker, "")), Text(text, style))
        self.console.print(row)

    def show_held(self, sessions: list[Held]) -> None:
        """Show the sessions that boto3 read, and compare the stored picture with the file."""
        self.console.rule("[bold]What Bedrock stores, read with plain boto3[/]", style="cyan")
        self.console.print("", _session_table(sessions), "", _step_table(sessions))
        self.console.print(
            Text("envelope: bytes of data without a native block type: roles, tool calls, the order of blocks\n", "dim")
        )
        on_disk = _digest(self.picture.read_bytes())
        stored = [_digest(block["image"]["source"]["bytes"]) for block in _blocks(sessions) if "image" in block]
        self.console.print(Text("sha256 of the picture on disk and in Bedrock", "bold"))
        for digest, name in [(on_disk, self.picture.name), *((digest, "image block") for digest in stored)]:
            self.console.print(f"{digest}  {name}", soft_wrap=True)
        if stored != [on_disk]:
            raise click.ClickException("The picture in Bedrock differs from the file on disk.")
        self.console.print("The hashes are equal.\n")
        for day, calls in enumerate(self.calls, 1):
            listed = ", ".join(f"{operation} {number}" for operation, number in calls.most_common())
            self.console.print(Text(f"Day {day}: {sum(calls.values())} calls to the service ({listed})", "dim"))
        self.console.print()

    def show_next(self, *lines: str) -> None:
        """Show the commands to type next, without line wrapping, so that they can be copied."""
        self.console.rule("[bold]What to type next[/]", style="cyan")
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)


class _ForgettingDemo(_Demo):
    """The demo on LlamaIndex's SimpleChatStore, which loses its messages when the process ends."""

    store = "simple"

    def introduction(self) -> RenderableType:
        return _panel(
            "An incident, and the day after: SimpleChatStore",
            ("Store", "SimpleChatStore(), LlamaIndex's default: the memory of one process"),
            ("Model", SCRIPTED),
        )

    def pause(self) -> RenderableType:
        return _panel("", "The process ended. The next day, the next shift asks in another process.")

    def conclude(self) -> None:
        self.console.print(
            _panel("What is left of day 1", "Nothing. SimpleChatStore lost its messages when the process ended.")
        )
        self.show_next("bedrock-sessions demo        # the same program with a durable store")


class _LocalDemo(_Demo):
    """The demo on the embedded service, whose clock the demo advances."""

    store = "local"

    def __init__(self, picture: Path, database: Path) -> None:
        super().__init__(picture, database=str(database))
        self.database = database

    def introduction(self) -> RenderableType:
        return _panel(
            "An incident, and the day after: Amazon Bedrock sessions on this machine",
            ("Store", f"BedrockSessionsChatStore.local({str(self.database)!r})"),
            ("", "The embedded service stores its sessions in that file: no account, no network."),
            ("Model", SCRIPTED),
        )

    def pause(self) -> RenderableType:
        from llama_index_bedrock_sessions.emulator import Emulator

        with Emulator(self.database) as emulator:
            before = emulator.clock.now()
            emulator.clock.advance(PAUSE.total_seconds())
            passed = emulator.clock.now() - before
            client = emulator.client()
            statuses = Counter(summary["sessionStatus"] for summary in client.list_sessions()["sessionSummaries"])
        states = " and ".join(f"{number} {status}" for status, number in statuses.items())
        return _panel(
            "",
            f"The process ended. The service's clock advances by {_hours(passed)} hours. A Bedrock session expires "
            f"after an idle hour, so list_sessions now returns {states}. The next shift asks in another process.",
        )

    def conclude(self) -> None:
        from llama_index_bedrock_sessions.emulator import Emulator

        with Emulator(self.database) as emulator:
            self.show_held(demo.held(emulator.client(), "default"))
        self.show_next(
            "bedrock-sessions demo --forget              # the same on SimpleChatStore",
            "bedrock-sessions demo --region us-west-2    # the same on AWS, deleted at the end",
            f"python examples/raw_boto3.py {self.database}    # in a checkout: read it with boto3 alone",
            "",
            "# in Python: print the conversation",
            "from llama_index_bedrock_sessions import BedrockSessionsChatStore",
            f"store = BedrockSessionsChatStore.local({str(self.database)!r})",
            f"for message in store.get_messages({demo.INCIDENT!r}): print(message)",
        )


class _AwsDemo(_Demo):
    """The demo on AWS, where no clock can be advanced. The demo always deletes its sessions, even after an error."""

    store = "aws"

    def __init__(self, picture: Path, region: str | None, profile: str | None, model: str | None) -> None:
        self.namespace = f"demo-{uuid.uuid4().hex[:12]}"
        super().__init__(picture, region=region, profile=profile, model=model, namespace=self.namespace)
        self.model = model
        # The clocks of the service and of this machine can differ by some minutes.
        self.began = datetime.now(UTC) - timedelta(minutes=15)

    def run(self) -> None:
        """Run both days, show them, and delete the sessions."""
        try:
            super().run()
        finally:
            self.delete()

    def client(self) -> Any:
        """Create a boto3 client."""
        import boto3

        session = boto3.Session(profile_name=self.where["profile"], region_name=self.where["region"])
        return session.client("bedrock-agent-runtime")

    def introduction(self) -> RenderableType:
        arguments = [f"{name}_name={value!r}" for name in ("region", "profile") if (value := self.where[name])]
        return _panel(
            "An incident, and the day after: Amazon Bedrock sessions on AWS",
            ("Store", f"BedrockSessionsChatStore({', '.join([*arguments, f'namespace={self.namespace!r}'])})"),
            ("", "Everything is deleted at the end."),
            ("Model", self.model or SCRIPTED),
        )

    def pause(self) -> RenderableType:
        return _panel(
            "",
            "The process ended. The demo cannot advance the clock of AWS, so no day passes and the session stays "
            "active. The next shift asks in another process.",
        )

    def conclude(self) -> None:
        self.show_held(demo.held(self.client(), self.namespace, since=self.began))

    def delete(self) -> None:
        """Delete the sessions of this run, and count with boto3 those that are left."""
        from llama_index_bedrock_sessions import BedrockSessionsChatStore

        try:
            made = demo.held(self.client(), self.namespace, since=self.began)
            store = BedrockSessionsChatStore(
                region_name=self.where["region"], profile_name=self.where["profile"], namespace=self.namespace
            )
            store.delete_messages(demo.INCIDENT)
            left = demo.held(self.client(), self.namespace, since=self.began)
        except Exception as error:  # noqa: BLE001 - after any error, sessions may be left on AWS
            self.console.print(_panel("", f"Sessions may be left on AWS, in namespace {self.namespace}: {error}"))
        else:
            self.console.print(_panel("", f"Deleted on AWS: {count(len(made), 'session')}. Left: {len(left)}."))


def _panel(title: str, *rows: str | tuple[str, str]) -> Panel:
    """Frame paragraphs. Each pair is shown as a label and a text."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    paragraphs: list[RenderableType] = [Text(row) for row in rows if isinstance(row, str)]
    for row in rows:
        if not isinstance(row, str):
            grid.add_row(*(Text(part) for part in row))
    if grid.row_count:
        paragraphs.insert(0, grid)
    return Panel(Group(*paragraphs), title=title or None, box=box.ROUNDED)


def _table(*, expand: bool = False) -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=expand)


def _session_table(sessions: list[Held]) -> Table:
    table = _table()
    for name in ("session", "created", "status", "invocations", "steps"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("invocations", "steps") else "left")
    for one in sessions:
        created = one.session["createdAt"].astimezone(UTC)
        table.add_row(
            one.session["sessionId"],
            f"{created:%d %b %H:%M}",
            one.session["sessionStatus"],
            str(len(one.invocations)),
            str(len(one.steps)),
        )
    return table


def _step_table(sessions: list[Held]) -> Table:
    table = _table(expand=True)
    table.add_column("session", width=8)
    table.add_column("step", width=4, justify="right")
    table.add_column("native content blocks, readable by any tool", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("envelope", width=8, justify="right")
    for one in sessions:
        for number, step in enumerate(one.steps, 1):
            native, envelope = [], 0
            for block in step["payload"]["contentBlocks"]:
                if "image" in block:
                    native.append(f"image: {_pixels(block['image']['source']['bytes'])}")
                elif block["text"].startswith(ENVELOPE):
                    envelope += len(block["text"].encode())
                else:
                    native.append(block["text"])
            row = Text("\n".join(native)) if native else Text("(none)", "dim")
            table.add_row(one.session["sessionId"][:8], str(number), row, f"{envelope:,}")
    return table


def _blocks(sessions: list[Held]) -> list[dict[str, Any]]:
    return [block for one in sessions for step in one.steps for block in step["payload"]["contentBlocks"]]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _pixels(picture: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        return f"{(image.format or '').lower()} {image.width} x {image.height}, {len(picture):,} bytes"


def _roles(given: Counter[str]) -> str:
    listed = ", ".join(f"{number} {role}" for role, number in given.items())
    return f"{count(sum(given.values()), 'message')} ({listed})"


def _hours(time: timedelta) -> str:
    return f"{time / timedelta(hours=1):.0f}"
