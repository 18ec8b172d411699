"""What an agent's turn costs on this store and on its peers: the measurement of all, the tables, and the picture."""

# The peers come with an extra of their own:
# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tests.benchmarks.measurement import ADDS, RACERS, Case, Cell, Profile
from tests.benchmarks.wire import AGENTCORE, EMULATOR, MOTO, redis, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

QUICK = Profile(lengths=(10,), pictured=(10,), latencies=(0.0,), repetitions=1, race=0.002)
COUNTS = Profile(lengths=(10, 100, 1000), pictured=(10, 100), latencies=(), repetitions=1)
OURS = "BedrockSessionsMemory"
EXTRA = "not installed: install the extra `benchmark`"
OLDER = "not installed: its aioboto3 needs an older botocore than the others; pass --dynamodb FOLDER"


@dataclass(frozen=True)
class Peer:
    """How one is run: its server, and the module whose absence means that it is not installed."""

    name: str
    server: Callable[[], AbstractContextManager[int]]
    module: str = ""
    absent: str = EXTRA


emulator = partial(serving, EMULATOR)
DYNAMODB = Peer("DynamoDBChatStore", partial(serving, MOTO), "llama_index.storage.chat_store.dynamodb", OLDER)
PEERS = (
    Peer(OURS, emulator),
    Peer("by hand", emulator),
    Peer("LangGraph BedrockSessionSaver", emulator, "langgraph_checkpoint_aws"),
    DYNAMODB,
    Peer("RedisChatStore", redis, "llama_index.storage.chat_store.redis"),
    Peer("SQLAlchemyChatStore", lambda: nullcontext(0)),
    Peer("AgentCoreMemory", partial(serving, AGENTCORE), "llama_index.memory.bedrock_agentcore"),
)


@dataclass
class Finding:
    """Of one peer: its cases, what was left of a race, a note; or why there is nothing."""

    name: str
    cases: list[Case]
    race: str = ""
    note: str = ""


def environment(folder: Path) -> str:
    """Return the Python of a virtual environment that has DynamoDBChatStore; make it if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        packages = ["llama-index-core>=0.14.24,<0.15", "llama-index-storage-chat-store-dynamodb", "filetype", "pillow"]
        command = [sys.executable, "-m", "pip", "--python", str(folder), "install", "-q", *packages]
        subprocess.run(command, check=True)
    return str(python)


def measure(profile: Profile, dynamodb: Path | None, tell: Callable[[str], None]) -> list[Finding]:
    """Measure every peer that is installed, one after the other, each in a process and on a server of its own."""
    found = []
    for peer in PEERS:
        tell(peer.name)
        python = sys.executable
        if peer is DYNAMODB and dynamodb:
            python = environment(dynamodb)
        elif peer.module and not _installed(peer.module):
            found.append(Finding(peer.name, [], note=peer.absent))
            continue
        try:
            with peer.server() as port:
                found.append(_finding(peer.name, python, port, profile))
        except FileNotFoundError as error:
            found.append(Finding(peer.name, [], note=f"not run: {error}"))
    return found


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def _finding(name: str, python: str, port: int, profile: Profile) -> Finding:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    command = [python, "-m", "tests.benchmarks.measurement", name, str(port), json.dumps(asdict(profile))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths})
    if done.returncode:
        return Finding(name, [], note=f"not measured: {done.stderr.strip().splitlines()[-1]}")
    said = json.loads(done.stdout.splitlines()[-1])
    cases = [
        Case(**(case | {"warm": Cell(**case["warm"]), "cold": Cell(**case["cold"])})) for case in said.pop("cases")
    ]
    return Finding(name, cases, **said)


Sheet = tuple[str, list[str], list[list[str]]]


def sheets(findings: Sequence[Finding], profile: Profile) -> list[Sheet]:
    """Return the tables as text: title, head, rows."""
    return [_costs(findings, profile, False), _costs(findings, profile, True), _kept(findings)]


def _costs(findings: Sequence[Finding], profile: Profile, pictures: bool) -> Sheet:
    seconds = [f"s at {latency * 1000:.0f} ms" for latency in profile.latencies]
    head = ["store", "messages", *(f"{how}: {unit}" for how in ("warm", "cold") for unit in ("calls", "KB", *seconds))]
    rows = []
    for finding in findings:
        cases = [case for case in finding.cases if case.pictures == pictures]
        rows += [[finding.name, f"{case.length:,}", *_cells(case, profile)] for case in cases]
        if not cases:
            rows.append([finding.name, "", finding.note, *[""] * (2 * (2 + len(seconds)) - 1)])
    about = "with a picture of 32 KB in the question and in every tenth message" if pictures else "without pictures"
    return f"An agent's turn with two tool calls, {about}", head, rows


def _cells(case: Case, profile: Profile) -> Iterator[str]:
    if case.warm.raised:
        yield from [case.warm.raised, *[""] * (2 * (2 + len(profile.latencies)) - 1)]
        return
    for cell in (case.warm, case.cold):
        yield f"{cell.calls:,}"
        yield "-" if cell.bytes is None else f"{cell.bytes / 1000:,.1f}"
        for latency in profile.latencies:
            took = (cell.seconds or {}).get(str(latency))
            yield "-" if took is None else f"{took:,.2f}"


def _kept(findings: Sequence[Finding]) -> Sheet:
    head = ["store", "without pictures", "with pictures", f"{RACERS} concurrent writers, {ADDS} messages each", "note"]
    rows = []
    for finding in findings:
        came = [
            "; ".join(dict.fromkeys(f"{case.kept}" for case in finding.cases if case.pictures == pictures))
            for pictures in (False, True)
        ]
        rows.append([finding.name, *came, finding.race, finding.note])
    return "Messages that new objects read back, compared with those written", head, rows


def printed(sheet: Sheet) -> Table:
    """Return a table for a terminal."""
    title, head, rows = sheet
    table = Table(title=title, show_lines=False)
    for number, name in enumerate(head):
        table.add_column(name.replace(": ", ":\n"), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(sheet: Sheet) -> str:
    """Return a table as Markdown."""
    title, head, rows = sheet
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def picture(findings: Sequence[Finding], path: Path, latencies: Sequence[float] = ()) -> None:
    """Draw a warm and a cold turn against the length, a line for each store: calls, bytes, seconds at a latency."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    rows: list[tuple[str, Callable[[Cell], float | None]]] = [
        ("calls a turn", lambda cell: cell.calls),
        ("KB on the wire a turn", lambda cell: None if cell.bytes is None else cell.bytes / 1000),
    ]
    if latencies:
        slow = max(latencies)
        name = f"seconds a turn, {slow * 1000:.0f} ms a call"
        rows.append((name, lambda cell: (cell.seconds or {}).get(str(slow))))
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    size = (9, 1 + 3.2 * len(rows))
    figure, axes = plt.subplots(len(rows), 2, figsize=size, sharex=True, sharey="row", layout="constrained")
    for finding, marker in zip(findings, "osD^vP*X", strict=False):
        cases = [case for case in finding.cases if not case.pictures and not case.warm.raised]
        for column, how in enumerate(("warm", "cold")):
            for row, (_, value) in enumerate(rows):
                points = [(case.length, value(getattr(case, how))) for case in cases]
                drawn = [point for point in points if point[1]]
                ours = {"linewidth": 3, "zorder": 3, "color": "black"} if finding.name == OURS else {}
                label = {"label": finding.name} if (row, column) == (0, 0) and cases else {}
                losing = {"linestyle": "solid" if all(case.kept == "all" for case in cases) else "dotted"}
                more: dict[str, Any] = ours | label | losing
                axes[row][column].plot(*(zip(*drawn, strict=True) if drawn else ([], [])), marker=marker, **more)
    for column, title in enumerate(("warm: the objects of the turn before", "cold: new objects, as in a new process")):
        axes[0][column].set_title(title)
        axes[-1][column].set_xlabel("messages in the conversation")
    for row, (name, _) in enumerate(rows):
        axes[row][0].set_ylabel(name)
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(plain)
        axis.yaxis.set_major_formatter(plain)
        axis.grid(visible=True, which="major", alpha=0.3)
    figure.suptitle(
        "An agent's turn with two tool calls\n"
        "A line ends where the store raises or was too slow to run; dotted: not everything came back",
        fontsize="medium",
    )
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=170, metadata={"Software": None})
    plt.close(figure)
