"""The commands of `bedrock-sessions`. They read options and print results; other modules do the work."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import click
    from rich.console import Console
    from rich.progress import Progress
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"bedrock-sessions needs the package {missing.name}: pip install 'llama-index-bedrock-sessions[cli]'"
    ) from None

from llama_index_bedrock_sessions.cli.wording import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from llama_index_bedrock_sessions import BedrockSessionsChatStore


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llama-index-bedrock-sessions", prog_name="bedrock-sessions")
def main() -> None:
    """Durable LlamaIndex conversations on Amazon Bedrock sessions."""


@main.command()
@click.option(
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file in which the embedded service stores its sessions. Default: a file in a temporary directory.",
)
@click.option("--forget", is_flag=True, help="Use LlamaIndex's SimpleChatStore, to show the difference.")
@click.option(
    "--region", help="Use AWS in this region, with boto3's usual credentials. Deletes its sessions at the end."
)
@click.option("--profile", help="Use AWS with this profile of the AWS configuration. Deletes its sessions at the end.")
@click.option("--model", help="On AWS, use the Bedrock model with this id instead of the scripted one.")
def demo(*, database: Path | None, forget: bool, region: str | None, profile: str | None, model: str | None) -> None:
    """Run one conversation in two processes, a day apart, and show what Bedrock stores.

    An engineer sends a report of an incident, with a picture of a dashboard, to an agent with two tools. Then the
    process ends. A day later, another process continues the conversation. The demo needs no account, key or network.

    With --region or --profile, the demo runs on AWS, and AWS bills your account for a few calls. The demo deletes its
    sessions at the end.
    """
    on_aws = bool(region or profile)
    if on_aws and (database or forget):
        raise click.UsageError("--region and --profile use AWS: leave out --database and --forget.")
    if forget and database:
        raise click.UsageError("--forget stores nothing in a file: leave out --database.")
    if model and not on_aws:
        raise click.UsageError("--model needs AWS: add --region or --profile.")
    if model and importlib.util.find_spec("llama_index.llms.bedrock_converse") is None:
        raise click.ClickException("--model needs another package: pip install llama-index-llms-bedrock-converse")
    if database is None:
        database = Path(tempfile.mkdtemp(prefix="bedrock-sessions-")) / "incident.db"
    for path in (database, database.with_suffix(".png")):
        if path.exists():
            raise click.ClickException(f"{path} already exists. Choose a new file for --database.")
    from llama_index_bedrock_sessions.cli import demo_view

    demo_view.run(database, forget=forget, region=region, profile=profile, model=model)


def _store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select a chat store, and pass that store to the command as its first argument."""

    @click.option("--database", type=click.Path(exists=True, dir_okay=False), help="A file of the embedded service.")
    @click.option("--region", help="The AWS region. Default: boto3's.")
    @click.option("--profile", help="A profile of the AWS configuration. Default: boto3's.")
    @click.option("--endpoint-url", help="Another endpoint, such as that of `bedrock-sessions emulate`.")
    @click.option("--namespace", default="default", show_default=True, help="The namespace of the application.")
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
@click.option(
    "--older-than",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="DAYS",
    help="Renew a conversation if its newest session is older than this.",
)
@_store_options
def renew(store: BedrockSessionsChatStore, *, older_than: int) -> None:
    """Continue old conversations in new sessions.

    Bedrock deletes a session 30 days after its creation. To keep conversations that receive no messages, run this
    command once a week.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Finding old conversations", total=None)
        done = store.renew(
            older_than=timedelta(days=older_than),
            progress=lambda now, total: bar.update(task, description="Renewing", completed=now, total=total),
        )
    click.echo(f"{count(len(done.keys), 'conversation')} renewed.")
    for key, error in done.failed.items():
        click.echo(f"{key}: {error}", err=True)
    if done.failed:
        raise SystemExit(1)


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port; 0 (the default) selects a free one.")
@click.option(
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The SQLite file that stores the sessions; created if it is missing. Default: in memory.",
)
@click.option("--region", default="us-east-1", show_default=True, help="The region that the service reports.")
@click.option(
    "--behaviour",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON file of settings for behaviour that AWS does not document.",
)
@click.option(
    "--fault",
    "faults",
    metavar="OPERATION:NTH:FAULT",
    multiple=True,
    help="Make the nth call of an operation fail, such as PutInvocationStep:2:lost_reply. Can be repeated.",
)
@click.option("--latency", type=click.FloatRange(0, 3600), default=0.0, metavar="SECONDS", help="Delay of every call.")
@click.option("--control", is_flag=True, help="Let clients set faults, clock and behaviour under /__control__.")
@click.option("-v", "--verbose", is_flag=True, help="Log every request to standard error, without its content.")
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
    """Serve Amazon Bedrock sessions on 127.0.0.1 to any program that uses an AWS SDK.

    The command prints the environment variable to set, and runs until you interrupt it.
    """
    from llama_index_bedrock_sessions.emulator import Behaviour, Emulator, EmulatorError, run

    location = f"in {database}" if database else "in memory"

    def started(url: str) -> None:
        click.echo(f"export AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME={url}")
        click.echo(f"Ready: Amazon Bedrock sessions in {region}, stored {location}. Press Ctrl+C to stop.")

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
