"""The command line, `bedrock-sessions`. It asks and shows; what is done is done in the modules below it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import tempfile
import uuid
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import click
    from rich import box
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"bedrock-sessions needs the package {missing.name}: pip install 'llama-index-bedrock-sessions[cli]'"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from llama_index_bedrock_sessions import BedrockSessionsChatStore
    from llama_index_bedrock_sessions._demo import Held

PAUSE = timedelta(hours=26)
ENVELOPE = '{"llama_index_bedrock_sessions"'
SCRIPTED = "scripted: no key, no network; it knows the messages it is given, and nothing else"
SPEAKERS = {"engineer": "bold cyan", "agent": "bold green", "tool": "bold magenta"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llama-index-bedrock-sessions", prog_name="bedrock-sessions")
def main() -> None:
    """Durable LlamaIndex conversations on Amazon Bedrock sessions."""


@main.command()
@click.option(
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file for the embedded service to keep its sessions in. Default: in a temporary directory.",
)
@click.option("--forget", is_flag=True, help="The same on LlamaIndex's SimpleChatStore, to see the difference.")
@click.option("--region", help="The same on AWS, in this region, with boto3's usual credentials; deleted afterwards.")
@click.option("--profile", help="The same on AWS, with this profile of the AWS configuration; deleted afterwards.")
@click.option("--model", help="On AWS: the id of a Bedrock model to use in place of the scripted one.")
def demo(*, database: Path | None, forget: bool, region: str | None, profile: str | None, model: str | None) -> None:
    """Hold one conversation in two processes, a day apart, and show what Bedrock then holds.

    An agent with two tools is told of an incident and shown a dashboard; its process ends. 26 hours later another
    process goes on with the conversation. It needs no account, no key and no network.

    With --region or --profile the same is done on AWS, where a few calls to Amazon Bedrock are billed to the account
    and everything is deleted at the end.
    """
    on_aws = bool(region or profile)
    if on_aws and (database or forget):
        raise click.UsageError("--region and --profile are for AWS, --database and --forget for this machine.")
    if forget and database:
        raise click.UsageError("--forget keeps nothing in a file: leave out --database.")
    if model and not on_aws:
        raise click.UsageError("--model runs on AWS: give --region or --profile as well.")
    if model and importlib.util.find_spec("llama_index.llms.bedrock_converse") is None:
        raise click.ClickException("--model needs one more package: pip install llama-index-llms-bedrock-converse")
    if database is None:
        database = Path(tempfile.mkdtemp(prefix="bedrock-sessions-")) / "incident.db"
    for path in (database, database.with_suffix(".png")):
        if path.exists():
            raise click.ClickException(f"{path} exists, and nothing is overwritten. Name a new file.")
    if forget:
        _ForgettingDemo(database.with_suffix(".png")).run()
    elif on_aws:
        _AwsDemo(database.with_suffix(".png"), region, profile, model).run()
    else:
        _LocalDemo(database.with_suffix(".png"), database).run()


def _store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command say which store it is about: on AWS as boto3 finds it, or a file of this machine."""

    @click.option("--database", type=click.Path(exists=True, dir_okay=False), help="A file of the embedded service.")
    @click.option("--region", help="The AWS region; boto3's usual default if left out.")
    @click.option("--profile", help="A profile of the AWS configuration; boto3's usual default.")
    @click.option("--endpoint-url", help="Another endpoint, such as that of `bedrock-sessions emulate`.")
    @click.option("--namespace", default="default", show_default=True, help="That of the application.")
    @functools.wraps(command)
    def run(
        *,
        database: str | None,
        region: str | None,
        profile: str | None,
        endpoint_url: str | None,
        namespace: str,
        **options: Any,
    ) -> None:
        from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsError

        try:
            store = BedrockSessionsChatStore(
                region_name=region,
                profile_name=profile,
                endpoint_url=endpoint_url,
                database=database,
                namespace=namespace,
            )
            command(store, **options)
        except BedrockSessionsError as error:
            raise click.ClickException(str(error)) from error

    return run


@main.command()
@click.option("--older-than", type=click.IntRange(min=0), default=10, show_default=True, metavar="DAYS")
@_store_options
def renew(store: BedrockSessionsChatStore, *, older_than: int) -> None:
    """Let every conversation go on in a new session whose newest one is older than so many days.

    Bedrock deletes a session 30 days after it was made. Run this once a week for conversations that have to stay
    although nobody writes to them.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Looking for old conversations", total=None)
        done = store.renew(
            older_than=timedelta(days=older_than),
            progress=lambda now, total: bar.update(task, description="Renewing", completed=now, total=total),
        )
    click.echo(f"{_count(len(done.keys), 'conversation')} renewed.")
    for key, error in done.failed.items():
        click.echo(f"{key}: {error}", err=True)
    if done.failed:
        raise SystemExit(1)


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port; 0, the default, takes a free one.")
@click.option(
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The SQLite file that keeps the sessions; created if it is missing. Default: in memory.",
)
@click.option("--region", default="us-east-1", show_default=True, help="The region the service stands for.")
@click.option(
    "--behaviour",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON file of settings for what AWS leaves open.",
)
@click.option(
    "--fault",
    "faults",
    metavar="OPERATION:NTH:FAULT",
    multiple=True,
    help="Let the nth call of an operation fail, such as PutInvocationStep:2:lost_reply. May be repeated.",
)
@click.option("--latency", type=click.FloatRange(0, 3600), default=0.0, metavar="SECONDS", help="Added to every call.")
@click.option("--control", is_flag=True, help="Let clients set faults, clock and behaviour beneath /__control__.")
@click.option("-v", "--verbose", is_flag=True, help="Log every request to standard error: never its content.")
def emulate(
    *,
    port: int,
    database: Path | None,
    region: str,
    behaviour: Path | None,
    faults: tuple[str, ...],
    latency: float,
    control: bool,
    verbose: bool,
) -> None:
    """Serve Amazon Bedrock sessions on 127.0.0.1, for any program that uses an AWS SDK.

    It prints the one environment variable to set, and runs until it is interrupted.
    """
    from llama_index_bedrock_sessions.emulator import Behaviour, Emulator, EmulatorError, run

    def started(url: str) -> None:
        click.echo(f"export AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME={url}")
        click.echo(f"Ready: Amazon Bedrock sessions of {region}, {database or 'in memory'}. Interrupt to stop.")

    log = (lambda line: click.echo(line, err=True)) if verbose else None
    try:
        settings = Behaviour.load(behaviour) if behaviour else Behaviour()
        with Emulator(database, behaviour=settings, region_name=region) as emulator:
            emulator.faults.latency = latency
            for fault in faults:
                emulator.faults.add_written(fault)
            run(emulator, port, started=started, log=log, control=control)
    except (EmulatorError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


class _Demo:
    """What the three demos share: two days, each in a process of its own, and how they are shown."""

    store: str

    def __init__(self, picture: Path, **where: str | None) -> None:
        self.picture, self.where = picture, where
        self.console = Console(highlight=False)
        self.calls: list[Counter[str]] = []

    def run(self) -> None:
        """Do it all and show it."""
        from llama_index_bedrock_sessions import _demo

        self.picture.parent.mkdir(parents=True, exist_ok=True)
        self.picture.write_bytes(_demo.draw_dashboard())
        self.console.print(self.introduction())
        self.spend_day(1)
        self.console.print(self.pause())
        self.spend_day(2)
        self.conclude()

    def introduction(self) -> RenderableType:
        """Say what will be used."""
        raise NotImplementedError

    def pause(self) -> RenderableType:
        """Let the day pass, and say so."""
        raise NotImplementedError

    def conclude(self) -> None:
        """Show what is left, and what to type next."""
        raise NotImplementedError

    def spend_day(self, day: int) -> None:
        """Run one day in a process of its own and show the conversation as it is held."""
        from llama_index_bedrock_sessions import _demo

        request = _demo.Request(day=day, store=self.store, picture=str(self.picture), **self.where)  # type: ignore[arg-type]
        given: Counter[str] = Counter()
        failure = ""
        with self.console.status("A new process starts ..."):
            for event in _demo.in_another_process(request):
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
                    raise click.ClickException(failure or f"the process of day {day} failed:\n{event['complaints']}")
                else:
                    self.show(kind, event)
        self.console.print(Padding(Text(f"The model was given {_roles(given)}.", "dim"), (0, 0, 1, 10)))

    def show(self, kind: str, event: dict[str, Any]) -> None:
        """Show one line of the conversation."""
        if kind == "user":
            self.say("engineer", event["text"])
            if event["images"]:
                self.say("", f"[{self.picture.name}: {_pixels(self.picture.read_bytes())}]", style="cyan")
        elif kind == "tool":
            arguments = ", ".join(f"{name}={value!r}" for name, value in event["kwargs"].items())
            self.say("agent", f"calls {event['name']}({arguments})", style="dim")
            self.say("tool", event["result"], style="dim")
        elif kind == "answer":
            self.say("agent", event["text"])

    def say(self, speaker: str, text: str, style: str = "") -> None:
        """Show what somebody says, the speaker's name in a column of its own."""
        row = Table.grid(padding=(0, 1))
        row.add_column(width=9, justify="right")
        row.add_column()
        row.add_row(Text(speaker, SPEAKERS.get(speaker, "")), Text(text, style))
        self.console.print(row)

    def show_held(self, sessions: list[Held]) -> None:
        """Show what plain boto3 read from the service, and compare the picture with the file."""
        self.console.rule("[bold]What Bedrock now holds, asked with plain boto3[/]", style="cyan")
        self.console.print("", _session_table(sessions), "", _step_table(sessions))
        self.console.print(
            Text("envelope: bytes of what Bedrock has no block for: roles, tool calls, their order\n", "dim")
        )
        on_disk = _digest(self.picture.read_bytes())
        stored = [_digest(block["image"]["source"]["bytes"]) for block in _blocks(sessions) if "image" in block]
        self.console.print(Text("sha256 of the picture on disk and in Bedrock", "bold"))
        for digest, name in [(on_disk, self.picture.name), *((digest, "image block") for digest in stored)]:
            self.console.print(f"{digest}  {name}", soft_wrap=True)
        if stored != [on_disk]:
            raise click.ClickException("the picture in Bedrock is not the one on disk")
        self.console.print("They are equal.\n")
        for day, calls in enumerate(self.calls, 1):
            listed = ", ".join(f"{operation} {number}" for operation, number in calls.most_common())
            self.console.print(Text(f"Day {day}: {sum(calls.values())} calls to the service ({listed})", "dim"))
        self.console.print()

    def show_next(self, *lines: str) -> None:
        """Show what to type next, unwrapped, so that it can be copied."""
        self.console.rule("[bold]What to type next[/]", style="cyan")
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)


class _ForgettingDemo(_Demo):
    """The days on LlamaIndex's SimpleChatStore, which ends with its process."""

    store = "simple"

    def introduction(self) -> RenderableType:
        return _panel(
            "An incident, and the day after: SimpleChatStore",
            ("Store", "SimpleChatStore(), LlamaIndex's default: the memory of one process"),
            ("Model", SCRIPTED),
        )

    def pause(self) -> RenderableType:
        return _panel("", "The process ended. The next day the next shift asks, in another process.")

    def conclude(self) -> None:
        self.console.print(
            _panel("What is left of day 1", "Nothing: what SimpleChatStore held ended with its process.")
        )
        self.show_next("bedrock-sessions demo        # the same program, with a store that remembers")


class _LocalDemo(_Demo):
    """The days on the embedded service, whose clock can be moved."""

    store = "local"

    def __init__(self, picture: Path, database: Path) -> None:
        super().__init__(picture, database=str(database))
        self.database = database

    def introduction(self) -> RenderableType:
        return _panel(
            "An incident, and the day after: Amazon Bedrock sessions on this machine",
            ("Store", f"BedrockSessionsChatStore.local({str(self.database)!r})"),
            ("", "The embedded service keeps its sessions in that file: no account, no network."),
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
            f"The process ended. The service's clock moves on by {_hours(passed)} hours. A Bedrock session expires "
            f"after an idle hour: list_sessions now says: {states}. The next shift asks, in another process.",
        )

    def conclude(self) -> None:
        from llama_index_bedrock_sessions import _demo
        from llama_index_bedrock_sessions.emulator import Emulator

        with Emulator(self.database) as emulator:
            self.show_held(_demo.held(emulator.client(), "default"))
        self.show_next(
            "bedrock-sessions demo --forget              # the same on SimpleChatStore",
            "bedrock-sessions demo --region us-west-2    # the same on AWS, deleted at the end",
            f"python examples/raw_boto3.py {self.database}    # in a checkout: read it with boto3 alone",
            "",
            "# in Python: what was said",
            "from llama_index_bedrock_sessions import BedrockSessionsChatStore",
            f"store = BedrockSessionsChatStore.local({str(self.database)!r})",
            f"for message in store.get_messages({_demo.INCIDENT!r}): print(message)",
        )


class _AwsDemo(_Demo):
    """The days on AWS, where no clock can be moved; what was made is deleted, whatever happens."""

    store = "aws"

    def __init__(self, picture: Path, region: str | None, profile: str | None, model: str | None) -> None:
        self.namespace = f"demo-{uuid.uuid4().hex[:12]}"
        super().__init__(picture, region=region, profile=profile, model=model, namespace=self.namespace)
        self.model = model
        # The service's clock and this one may differ by some minutes.
        self.began = datetime.now(timezone.utc) - timedelta(minutes=15)

    def run(self) -> None:
        """Do it all, show it, and delete it."""
        try:
            super().run()
        finally:
            self.delete()

    def client(self) -> Any:
        """Make a plain boto3 client."""
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
            "The process ended. On AWS no clock can be moved: the day does not pass, and the session stays as it is. "
            "The next shift asks, in another process.",
        )

    def conclude(self) -> None:
        from llama_index_bedrock_sessions import _demo

        self.show_held(_demo.held(self.client(), self.namespace, since=self.began))

    def delete(self) -> None:
        """Delete all that this run made, and ask with plain boto3 whether anything is left."""
        from llama_index_bedrock_sessions import BedrockSessionsChatStore, _demo

        try:
            made = _demo.held(self.client(), self.namespace, since=self.began)
            store = BedrockSessionsChatStore(
                region_name=self.where["region"], profile_name=self.where["profile"], namespace=self.namespace
            )
            store.delete_messages(_demo.INCIDENT)
            left = _demo.held(self.client(), self.namespace, since=self.began)
        except Exception as error:  # noqa: BLE001 - whatever it is, what may be left behind is said
            said = f"Whether anything is left on AWS could not be found out: {error}\nIts namespace: {self.namespace}"
            self.console.print(_panel("", said))
        else:
            self.console.print(_panel("", f"Deleted on AWS: {_count(len(made), 'session')}. Left: {len(left)}."))


def _panel(title: str, *rows: str | tuple[str, str]) -> Panel:
    """Frame some paragraphs; those that are pairs get their first part as a label before them."""
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
        created = one.session["createdAt"].astimezone(timezone.utc)
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
    table.add_column("native content blocks: any tool can read them", ratio=1, no_wrap=True, overflow="ellipsis")
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
    return f"{_count(sum(given.values()), 'message')} ({listed})"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _hours(time: timedelta) -> str:
    return f"{time / timedelta(hours=1):.0f}"


if __name__ == "__main__":
    main()
